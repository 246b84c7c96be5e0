"""The pages of the documentation: their code runs, their tables are true, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pages
import sparring as sp
from sparring.attacks import Attack
from sparring.evaluation import cascade
from sparring.evaluation.estimate import _whole

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "which-attack.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w ]+) \| (\d+) \|", PAGE, flags=re.MULTILINE)
ATTACKS = {
    name: kind
    for name in sp.__all__
    if isinstance(kind := getattr(sp, name), type) and issubclass(kind, Attack) and kind is not Attack
}


def short(threat: sp.Threat) -> list[Attack]:
    """AutoAttack's ensemble, at a hundredth of its passes."""
    few = [sp.APGD(threat, steps=5), sp.APGD(threat, steps=5, objective="dlr", rivals=9), sp.FAB(threat, steps=2)]
    return [*few, sp.Square(threat, queries=50)]


def test_the_code_of_which_attack_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cascade.ENSEMBLES, "autoattack", short)  # the whole takes a minute
    names, blocks = pages.run("which-attack.md")
    assert blocks == 8
    assert names["checked"].ok
    clean, bound = (getattr(names["result"], name).value for name in ("clean_accuracy", "robust_accuracy"))
    assert clean > 0.7
    assert 0 < bound < clean - 0.1


def test_every_attack_has_its_row() -> None:
    assert {name for name, *_ in ROWS} == set(ATTACKS)


@pytest.mark.parametrize(("name", "access", "norms", "passes"), ROWS)
def test_the_table_of_attacks(name: str, access: str, norms: str, passes: str) -> None:
    kind = ATTACKS[name]
    assert kind.access == access
    if name == "AdversarialPatch":  # its threat follows from its shape
        made = {"l0": sp.AdversarialPatch(shape=(1, 4, 4))}
    else:
        made = {}
        for norm in ("linf", "l2", "l1", "l0"):
            try:
                made[norm] = kind(sp.Threat(norm, 5 if norm == "l0" else 0.1))  # type: ignore[arg-type]
            except ValueError:
                continue
    assert list(made) == norms.split()
    cost = _whole(made[norms.split()[0]], 10)
    assert cost.forwards + cost.backwards == int(passes)


@pytest.mark.parametrize("page", [*sorted(p.name for p in (ROOT / "docs").glob("*.md")), "../README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), target
