"""Attacks in lower precision: what counts is what full precision says, and nothing is given up for a rounding error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import SHAPE, Counting, labelled, linear, mlp

LOW = torch.bfloat16
THREAT = sp.Linf(0.02)


class Lying(nn.Module):
    """Says under autocast that class 1 is likelier by so much: whoever is of class 0 seems fooled, or seems to stand."""

    def __init__(self, model: nn.Module, lie: float) -> None:
        super().__init__()
        self.model, self.lie = model, lie

    def forward(self, x: Tensor) -> Tensor:
        lying = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = self.model(x)
        return logits + logits.new_tensor([0.0, self.lie]) if lying else logits


class Coarse(nn.Module):
    """Logits with an offset that takes the precision of bfloat16 with it."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.net, self.last = mlp(SHAPE, dtype=torch.float32), nn.Linear(4, 4)
        self.last.weight.data.copy_(torch.eye(4))
        self.last.bias.data.fill_(offset)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.net(x))
        return logits


def of_class_zero(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    model = linear(SHAPE, 2, seed=3, dtype=torch.float32)
    x = torch.rand(40 * count, *SHAPE, generator=torch.Generator().manual_seed(0))
    x = x[model(x).argmax(1) == 0][:count]
    return model, x, torch.zeros(len(x), dtype=torch.int64)


def robust(result: sp.EvaluationResult) -> list[int]:
    return [sample["index"] for sample in result.samples() if sample["robust"]]


ATTACKS = [
    sp.PGD(THREAT, steps=10, objective="margin"),
    sp.FMN(THREAT, steps=10),
    sp.Square(THREAT, queries=60),
    sp.MarginAscent(THREAT),
]


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not isinstance(a, sp.FMN)], ids=lambda attack: attack.name)
def test_who_seems_fooled_goes_on_being_attacked(attack: Any) -> None:
    model, x, y = of_class_zero(40)
    settings: dict[str, Any] = {"attacks": attack, "checkup": False}
    expected = robust(sp.evaluate(model, (x, y), THREAT, **settings))
    assert 0 < len(expected) < len(x)
    found = sp.evaluate(Lying(model, 100.0), (x, y), THREAT, autocast=LOW, **settings)
    assert robust(found) == expected


def test_who_seems_to_stand_is_looked_at_again() -> None:
    model, x, y = of_class_zero(40)
    attack = sp.PGD(THREAT, steps=10, objective="margin")
    expected = robust(sp.evaluate(model, (x, y), THREAT, attacks=attack, checkup=False))
    found = sp.evaluate(Lying(model, -100.0), (x, y), THREAT, attacks=attack, autocast=LOW, checkup=False)
    assert robust(found) == expected


@pytest.mark.parametrize("name", ["PGD", "APGD", "MarginAscent"])
def test_the_verdict_in_bfloat16_is_nearly_that_of_full_precision(name: str) -> None:
    model = Coarse(30.0)  # an offset at which bfloat16 tells logits apart by an eighth
    x, y = labelled(model, 60, torch.float32)
    settings: dict[str, Any] = {"attacks": [getattr(sp, name)(THREAT)], "checkup": False}
    full, low = (sp.evaluate(model, (x, y), THREAT, autocast=cast, **settings) for cast in (None, LOW))
    assert low.robust_accuracy.value <= full.robust_accuracy.value + 0.06
    fallen = [sample["index"] for sample in low.samples() if sample["correct"] and not sample["robust"]]
    with torch.no_grad():
        for index in fallen:
            assert int(model(low.picture(index)[1][None]).argmax()) != y[index]


@pytest.mark.parametrize("attack", [sp.FMN(THREAT, steps=20), sp.FAB(THREAT, steps=10)], ids=lambda attack: attack.name)
def test_a_search_keeps_the_nearest_that_fools_in_full_precision(attack: Any) -> None:
    model = mlp(SHAPE, dtype=torch.float32)
    x, y = labelled(model, 60, torch.float32)
    full, low = (
        sp.evaluate(model, (x, y), THREAT, attacks=attack, autocast=cast, checkup=False) for cast in (None, LOW)
    )
    assert low.robust_accuracy.value <= full.robust_accuracy.value + 0.02


@pytest.mark.parametrize("attack", [*ATTACKS, sp.FAB(THREAT, steps=5)], ids=lambda attack: attack.name)
def test_every_pass_counts(attack: Any) -> None:
    model = Counting(Coarse(30.0))
    x, y = labelled(model.model, 40, torch.float32)
    model.forwards = model.backwards = 0
    result = sp.evaluate(model, (x, y), THREAT, attacks=attack, autocast=LOW, batch_size=16, checkup=False)
    passes = result.document["passes"]
    assert (passes["forwards"], passes["backwards"]) == (model.forwards, model.backwards)


def test_a_direct_call_takes_what_it_always_takes() -> None:
    model = Coarse(30.0)
    x, y = labelled(model, 8, torch.float32)
    found = sp.PGD(THREAT, steps=5, autocast=LOW)(model, x, y)
    assert (found.forwards, found.backwards) == (6 * 8, 5 * 8)
