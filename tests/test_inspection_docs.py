"""The code of docs/gallery.md runs, its pictures are there, and every figure's docstring names its place on the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from PIL import Image

import pages
from sparring import inspection

PAGE = (pages.DOCS / "gallery.md").read_text("utf-8")


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, blocks = pages.run("gallery.md")
    assert blocks == PAGE.count("```python")
    with Image.open("sandal-to-bag.gif") as animation:
        assert animation.n_frames == names["way"].steps + 1
    assert names["way"].reached


def test_pictures_and_docstrings_lead_to_each_other() -> None:
    shown = re.findall(r"!\[.+?\]\((.+?)\)", PAGE)
    assert all((pages.DOCS / path).is_file() for path in shown)
    drawn = {f"figures/gallery/{path.name}" for path in (pages.DOCS / "figures" / "gallery").iterdir()}
    assert drawn == set(shown)
    headings = set(re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE))
    named = set()
    for name in set(inspection.__all__) - {"save", "logit_gradients", "ascend_class"}:
        thing = getattr(inspection, name)
        text = inspect.getdoc(thing.figure if name == "ClassAscent" else thing) or ""
        found = re.search(r"Picture:\s+docs/gallery\.md,\s+\"(.+?)\"", text)
        assert found, f"{name} names no picture"
        named.add(found[1])
    assert named == headings
