"""Runs a page's Python from top to bottom and writes what each block printed below it: `python docs/outputs.py PAGE …`.

A page is a notebook in Markdown: ```python is a cell, the ```text right behind it what it printed. `jupytext --to notebook
PAGE` makes an .ipynb of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CELL = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<printed>.*?)```\n)?", re.DOTALL)


def cells(text: str) -> list[tuple[str, str]]:
    """(code, what it is said to print) of each block."""
    return [(found["code"], found["printed"] or "") for found in CELL.finditer(text)]


def run(page: Path) -> Iterator[str]:
    """What each block of the page prints, all in one namespace, in the working directory."""
    names: dict[str, object] = {"__name__": "__main__"}
    for code, _ in cells(page.read_text("utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec", dont_inherit=True), names)
        yield printed.getvalue()


def fill(page: Path) -> str:
    """The page, with what its blocks print now."""
    text = page.read_text("utf-8")
    below = (f"\n```text\n{said.rstrip()}\n```\n" if said else "" for said in run(page))
    return CELL.sub(lambda found: f"```python\n{found['code']}```\n" + next(below), text)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"
    pages = [Path(name).resolve() for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(os.environ.get("OUT", folder))  # what a page writes goes there
        for page in pages:
            page.write_text(fill(page), "utf-8")
