"""The documentation's own code, run as a reader would: from top to bottom, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def run(page: str) -> tuple[dict[str, Any], int]:
    """The names that the Python blocks of docs/`page` leave behind, and how many blocks there are."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, f"docs/{page}", "exec"), names)
    return names, len(blocks)
