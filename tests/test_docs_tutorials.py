"""Pages that are notebooks run from top to bottom and print what they say they print."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

import outputs  # noqa: E402  (of docs/)

NOTEBOOKS = [*sorted((DOCS / "tutorials").glob("*-*.md")), DOCS / "tutorials" / "optimizers.md"]
PAGES = [DOCS / page for page in ("getting-started.md", "own-model.md", "adding-an-attack.md", "adding-a-strategy.md")]
NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*(?:e-?\d+)?%?")


def numbers(text: str) -> list[float]:
    return [float(found.strip("%").replace(",", "").replace("−", "-")) for found in NUMBER.findall(text)]


def near(one: float, other: float) -> bool:
    """Kernels and threads differ between machines, and training makes more of it; a digit of the story must stay."""
    return abs(one - other) <= 0.25 * max(abs(one), abs(other)) + (0.02 if abs(one) < 1 else 4.0)


@pytest.mark.parametrize("page", [*NOTEBOOKS, *PAGES], ids=lambda page: page.stem)
def test_the_page_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    said = [printed for _, printed in outputs.cells(page.read_text("utf-8"))]
    for found, expected in zip(outputs.run(page), said, strict=True):
        assert NUMBER.sub("#", found).split() == NUMBER.sub("#", expected).split()
        assert all(near(a, b) for a, b in zip(numbers(found), numbers(expected), strict=True)), f"{found}\n{expected}"


def test_the_classic_trace_is_exact() -> None:
    text = (DOCS / "tutorials" / "optimizers.md").read_text("utf-8")
    assert "batch=14 x=0.3298534883 y=2.1088033238" in text
    assert "batch=20 x=0.0864691128 y=2.0074769075" in text
