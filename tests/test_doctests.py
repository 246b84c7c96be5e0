"""The examples in docstrings run, `import sparring` stays lazy, and its lists of names agree."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sparring

ROOT = Path(sparring.__path__[0])
MODULES = sorted(
    ".".join(["sparring", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def names_for_type_checkers() -> dict[str, str]:
    """name → module, from the TYPE_CHECKING block."""
    tree = ast.parse(Path(sparring.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {a.asname or a.name: n.module or "" for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}


def test_every_public_name_is_importable_and_known_to_type_checkers() -> None:
    typed = names_for_type_checkers()
    assert set(typed) == set(sparring.__all__) - {"__version__"}
    for name, home in typed.items():
        assert getattr(sparring, name) is getattr(import_module(home), name)
        assert name in dir(sparring)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        sparring.Nonsense  # noqa: B018


def test_import_sparring_loads_no_torch() -> None:
    code = "import sys, sparring; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_strategies_and_attacks_load_no_compiler() -> None:
    """torch's compiler takes as long to import as torch does: only who compiles pays for it. Lightning loads it too."""
    code = (
        "import sys, sparring as sp; sp.fit, sp.YOPO, sp.evaluate, sp.PGD, sp.VAT;"
        "heavy = {'torch._dynamo', 'lightning_fabric', 'matplotlib', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
