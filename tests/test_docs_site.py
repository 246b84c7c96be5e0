"""The site: what every page says of the library is true of it, and both languages say the same."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import sparring as sp
from sparring import inspection

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TABLES = [*sorted(DOCS.glob("from-*.md")), DOCS / "papers.md", DOCS / "own-model.md", DOCS / "how-attacks-work.md"]
BOTH = [("README.md", "README.zh-CN.md"), ("docs/getting-started.md", "docs/getting-started.zh-CN.md")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(text: str) -> Iterator[str]:
    """The blocks of a page, without comments and what they print."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        lines = (re.sub(r"\s+# .*", "", line).rstrip() for line in block.splitlines())
        yield "\n".join([language, *lines])


def anchors(path: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.S | re.M), flags=re.M
    )
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(("english", "chinese"), BOTH)
def test_both_languages_have_the_same_code_in_the_same_order(english: str, chinese: str) -> None:
    one, other = ((ROOT / page).read_text("utf-8") for page in (english, chinese))
    assert list(code(one)) == list(code(other))
    assert one.count("\n## ") == other.count("\n## ")


def test_the_reference_is_complete() -> None:
    text = "".join(path.read_text("utf-8") for path in (DOCS / "reference").glob("*.md"))
    said = re.findall(r"^\.\. auto\w+:: (\S+)$", text, flags=re.MULTILINE)
    assert len(said) == len(set(said))
    assert {each for each in said if re.fullmatch(r"sparring\.\w+", each)} == {
        f"sparring.{each}" for each in sp.__all__ if each != "__version__"
    }
    assert {f"sparring.inspection.{each}" for each in inspection.__all__} <= set(said)
    for each in said:
        home, _, what = each.rpartition(".")
        if home not in ("sparring.lightning", "sparring.keras", "sparring.huggingface"):  # extras
            assert getattr(importlib.import_module(home), what).__doc__, each


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_every_sparring_name_in_the_tables_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    names = set(re.findall(r"\bsp\.([A-Za-z_]\w*)", text))
    assert names
    assert names <= set(sp.__all__)
    for call, arguments in re.findall(r"\bsp\.([A-Z]\w+)\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text):
        known = set(importlib.import_module("inspect").signature(getattr(sp, call)).parameters)
        given = re.findall(r"(?<![\w(])(\w+)=", re.sub(r"\([^()]*\)", "", arguments))
        assert set(given) <= known, f"sp.{call}({arguments})"


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=name)
def test_links_lead_to_pages_and_headings(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, fragment in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        page = path.parent / target if target else path
        assert page.exists(), target
        if fragment and page.suffix == ".md" and page.parent.name != "_build":
            assert fragment in anchors(page), f"{target}#{fragment}"


def test_every_page_has_its_place() -> None:
    trees = "\n".join(
        block
        for path in PAGES
        for block in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text("utf-8"), flags=re.DOTALL)
    )
    for path in PAGES:
        if path.parent == DOCS and path.name != "index.md":
            assert re.search(rf"^{re.escape(path.stem)}$", trees, flags=re.MULTILINE), f"{path.name} is in no toctree"


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SPARRING_DOCS"), reason="builds the site: SPARRING_DOCS=1, or make docs")
@pytest.mark.skipif(find_spec("sphinx") is None, reason="sphinx is not installed: pip install 'sparring[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sparring.PGD" in (tmp_path / "reference" / "attacks.html").read_text("utf-8")
