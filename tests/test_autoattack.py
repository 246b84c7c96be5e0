"""The AutoAttack ensemble: the published settings, its order, its records, and its verdict on published networks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparring as sp
from networks import RowWise, inputs
from sparring import data
from sparring.evaluation.cascade import recorded, resolve


def told(threat: sp.Threat, name: str = "autoattack") -> list[tuple[str, dict[str, Any]]]:
    wanted = (
        "steps",
        "restarts",
        "rivals",
        "objective",
        "rho",
        "shrinking",
        "queries",
        "p_init",
        "alpha_max",
        "eta",
        "beta",
    )
    attacks = resolve(name, threat, None)
    assert all(attack.stop_when_fooled == (name == "autoattack") for attack in attacks)  # one success may be luck
    return [(a.name, {k: v for k, v in a.settings().items() if k in wanted}) for a in attacks]


@pytest.mark.parametrize("threat", [sp.Linf("8/255"), sp.L2(0.5)], ids=str)
def test_the_standard_version_is_the_published_one(threat: sp.Threat) -> None:
    ascent = {"steps": 100, "restarts": 1, "rho": 0.75, "shrinking": False}
    assert told(threat) == [
        ("APGD", {**ascent, "objective": "cross-entropy", "rivals": None}),
        ("APGD", {**ascent, "objective": "dlr", "rivals": 9}),
        ("FAB", {"steps": 100, "restarts": 1, "rivals": 9, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9}),
        ("Square", {"queries": 5000, "restarts": 1, "p_init": 0.8, "objective": "margin"}),
    ]


def test_under_l1_it_has_more_restarts_fewer_rivals_and_balls_that_shrink() -> None:
    entropy, targeted, boundary = told(sp.L1(12.0))
    assert (entropy[1]["restarts"], entropy[1]["rivals"], entropy[1]["shrinking"]) == (5, None, True)
    assert (targeted[1]["restarts"], targeted[1]["rivals"], targeted[1]["shrinking"]) == (1, 5, True)
    assert (boundary[0], boundary[1]["rivals"]) == ("FAB", 9)


def test_for_random_models_it_is_two_untargeted_ascents() -> None:
    assert [settings["objective"] for _, settings in told(sp.Linf(0.1), "autoattack-rand")] == ["cross-entropy", "dlr"]


def test_a_whole_list_stands_alone() -> None:
    with pytest.raises(ValueError, match="a whole list of attacks"):
        resolve(["autoattack", "pgd"], sp.Linf(0.1), None)
    with pytest.raises(ValueError, match="'autoattack' has no form for l0"):
        resolve("autoattack", sp.L0(3), None)
    assert [a.name for a in resolve(["apgd", "fab", "square"], sp.Linf(0.1), None)] == ["APGD", "FAB", "Square"]


@pytest.mark.parametrize("threat", [sp.Linf(0.1), sp.L2(0.5), sp.L1(2.0)], ids=str)
def test_recorded_settings_rebuild_it(threat: sp.Threat) -> None:
    attacks = resolve("autoattack", threat, torch.bfloat16)
    rows = [{"name": attack.name, "settings": attack.settings()} for attack in attacks]
    assert recorded(rows, threat) == attacks


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_end_to_end_and_verified(classes: int, tmp_path: Path) -> None:
    model, (x, _) = RowWise((1, 4, 4), classes), inputs(8, (1, 4, 4))
    with torch.no_grad():
        y = model(x).argmax(1)
    threat = sp.Linf(0.05)
    ensemble = resolve("autoattack", threat, None)
    attacks = [replace(a, queries=20) if isinstance(a, sp.Square) else replace(a, steps=10) for a in ensemble]
    result = sp.evaluate(model, (x, y), threat, attacks=attacks, out=tmp_path / "run")
    rows = result.document["attacks"]
    robust = int(torch.as_tensor(result.robust).sum())
    assert 0 < robust < len(x)
    # who stands to the end has had every rival there is
    assert rows[1]["backwards"] >= 10 * (classes - 1) * robust
    assert rows[2]["backwards"] >= 10 * (classes - 1) * robust
    assert sp.verify(tmp_path / "run", model, (x, y), samples=3).ok


@pytest.mark.skipif("SPARRING_DATA" not in os.environ, reason="needs the published networks in $SPARRING_DATA")
def test_the_verdict_of_a_published_network() -> None:
    """Of the first 40 images AutoAttack leaves all but these two to convex_mnist.pth at 0.1."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    file = Path(os.environ["SPARRING_DATA"]) / "robust-weights" / "convex_mnist.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state.get("state_dict", state))
    threat, tensors = sp.Linf(0.1), data.open("mnist", split="test").tensors(40)
    result = sp.evaluate(model, tensors, threat, attacks=resolve("autoattack", threat, None)[:1])
    assert (~torch.as_tensor(result.robust)).nonzero().flatten().tolist() == [8, 18]
