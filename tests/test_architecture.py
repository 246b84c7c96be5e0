"""The floors of docs/architecture.md hold: a file imports only from floors below its own, or from its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "sparring"
FLOORS = {
    "noise": 0, "projection": 0, "threat": 0, "objective": 0, "wrappers": 0, "borrow": 0, "combined": 0, "transforms": 0,
    "layout": 0, "checks": 0, "stem": 0,
    "rows": 1, "ascent": 1, "queries": 1,
    "attacks": 2, "text": 2,
    "evaluation": 3, "learned": 3, "inspection": 3, "report": 3,
    "training": 4, "transfer": 4, "lab": 4,
    "experiments": 5, "huggingface": 5, "keras": 5, "lightning": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip
SIDE = {"data", "zoo"}  # import nothing of sparring but each other; the rooms from floor 4 up use them
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path: Path) -> set[str]:
    """The rooms of sparring that a file imports from, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sparring":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sparring.")}
    return {name for name in found if name in FLOORS or name in SIDE}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    if here == "__init__":  # the public face names everything, lazily
        return
    for there in imports(path) - {here}:
        if here in SIDE:
            assert there in SIDE, f"{path.name}: a side room imports {there}"
        elif there in SIDE:
            rebuilds = (here, there) == ("text", "zoo")  # a saved classifier of texts is built again
            assert FLOORS[here] >= 4 or rebuilds, f"{path.name}: floor {FLOORS[here]} imports the side room {there}"
        else:
            lower = FLOORS[there] < FLOORS[here]
            level = FLOORS[there] == FLOORS[here]  # rooms of one floor may use each other; the order is theirs
            assert lower or level, f"{path.name} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"


def test_every_room_is_on_the_page() -> None:
    page = (ROOT.parent.parent / "docs" / "architecture.md").read_text("utf-8")
    rooms = {room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms == (set(FLOORS) | SIDE) - {"__main__"}
    for name in rooms:
        assert f"`{name}.py`" in page or f"`{name}/`" in page, name


def test_files_can_be_read_in_one_sitting() -> None:
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text("utf-8").splitlines())) > 320}
    assert not long
