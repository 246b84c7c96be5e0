"""The estimate: its passes are those of the runs it is about, and what is wrong shows as in the evaluation, in one line."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import inputs, linear, mlp
from sparring.cli.evaluate import cost_line
from sparring.evaluation import estimate
from sparring.evaluation.cascade import NAMED
from sparring.evaluation.estimate import Case, Estimate
from sparring.evaluation.estimate import Passes as P
from sparring.evaluation.nearest import STEPS

X, Y = torch.rand(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])


def test_labels_that_the_model_does_not_have() -> None:
    for ask in (estimate, sp.evaluate):
        with pytest.raises(ValueError, match=r"y holds classes from 0 to 2, the model has 2"):
            ask(nn.Linear(5, 2), (X, Y), sp.Linf(0.1))  # type: ignore[operator]


def test_no_labels() -> None:
    with pytest.raises(TypeError, match="y is NoneType: expected class numbers"):
        sp.PGD(sp.Linf(0.1))(nn.Linear(5, 3), X, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there() -> None:
    net = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="device='cuda' can't be used here"):
        sp.evaluate(net, (X, Y), sp.Linf(0.1), device="cuda")
    assert next(net.parameters()).device.type == "cpu"


def test_dir_is_the_public_face() -> None:
    assert dir(sp) == sorted(sp.__all__)


# --- the passes of every attack

SHAPE = (3, 4, 5)
QUERIES = {"square": 30, "hopskipjump": 60}
UNTIL_DONE = {"deepfool", "hopskipjump", "carliniwagner"}  # may end before the last step


def labelled(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    x, _ = inputs(count, SHAPE)
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.parametrize("name", NAMED)
def test_a_sample_that_stands_costs_what_the_estimate_says(name: str) -> None:
    threat = sp.L2(1e-6) if name in ("ddn", "carliniwagner") else sp.Linf(1e-6)
    attack: Any = NAMED[name](threat)
    if name in QUERIES:
        attack = replace(attack, queries=QUERIES[name])
    elif "steps" in attack.settings():
        attack = replace(attack, steps=12)
    for classes in (2, 4):
        model = mlp(SHAPE) if classes == 4 else nn.Sequential(mlp(SHAPE), nn.Linear(4, 2, dtype=torch.float64))
        settings: dict[str, Any] = {"attacks": [attack], "checkup": False}
        cost = estimate(model, labelled(model, 4), threat, **settings)
        result = sp.evaluate(model, labelled(model, 4), threat, **settings)
        assert result.robust_accuracy.count == 4
        stood = cost.passes(cost.standing)
        assert stood is not None
        assert cost.standing.once.forwards == 0
        assert result.forwards <= stood.forwards
        assert result.backwards <= stood.backwards
        if name not in UNTIL_DONE:
            assert result.backwards == stood.backwards


@pytest.mark.parametrize("eps", [0.9, 1e-6])
@pytest.mark.parametrize("make", [sp.Linf, sp.L1])
def test_the_two_ends_of_the_adaptive_range(make: Any, eps: float) -> None:
    """All fall at once, and none comes near: a linear model shows both, and in neither does a pilot open a gate."""
    model, threat = linear(SHAPE, 4), make(eps if make is sp.Linf or eps < 0.1 else 100.0)
    data = labelled(model, 60)
    cost = estimate(model, data, threat)
    result = sp.evaluate(model, data, threat)
    assert result.robust_accuracy.count == (0 if eps == 0.9 else 60)
    bound, most = cost.passes(cost.fallen if eps == 0.9 else cost.standing), cost.passes(cost.most)
    assert bound is not None
    assert most is not None
    assert result.forwards <= bound.forwards < most.forwards
    assert result.backwards <= bound.backwards < most.backwards
    if eps == 0.9:
        assert result.backwards > 60 * STEPS
    else:  # where everybody stands all of the pilot is spent, with its two climbs from random starts
        pilot = estimate(model, data, threat, checkup=False).standing.once
        assert pilot.backwards == result.document["passes"]["pilot_backwards"]


def test_between_the_ends_an_ordinary_model() -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.05)
    data = labelled(model, 120)
    cost, result = estimate(model, data, threat), sp.evaluate(model, data, threat)
    passes = result.forwards + result.backwards
    assert 0 < result.robust_accuracy.count < 120
    stood, most = cost.passes(cost.standing), cost.passes(cost.most)
    assert stood is not None
    assert most is not None
    assert passes < 1.5 * (stood.forwards + stood.backwards)
    assert 10 * passes < most.forwards + most.backwards


def test_what_the_checkup_costs_is_in_it() -> None:
    model, threat = mlp(SHAPE), sp.Linf(1e-6)
    data, attack = labelled(model, 40), sp.PGD(threat, steps=3)
    cost, result = estimate(model, data, threat, attacks=attack), sp.evaluate(model, data, threat, attacks=attack)
    spent = result.document["passes"]
    assert spent["checkup_backwards"] <= cost.standing.once.backwards < 2 * spent["checkup_backwards"]
    assert spent["checkup"] <= cost.standing.once.forwards < 2 * spent["checkup"] + 32
    blind = estimate(model, data, threat, attacks="square")
    assert (blind.standing.once.backwards, blind.seconds_per_backward) == (0, 0)


def test_attacks_of_others_and_data_without_an_end() -> None:
    class Endless(torch.utils.data.IterableDataset[tuple[Tensor, int]]):
        def __iter__(self) -> Any:
            while True:
                yield torch.rand(5), 0

    threat = sp.Linf(0.1)
    cost = estimate(nn.Linear(5, 2), Endless(), threat, attacks=[lambda model, x, y: x, sp.FGSM(threat)])
    assert (cost.unknown, cost.samples, cost.seconds(cost.most)) == (1, None, None)
    line = cost_line(cost, "cpu")
    assert "samples unknown" in line
    assert "1 attacks of others not counted" in line
    assert math.isfinite(cost.to_json()["most"]["each"]["forwards"])


def test_the_line_that_is_shown() -> None:
    fallen, standing, most = Case(P(17, 12), P(0)), Case(P(40, 35), P(2000)), Case(P(6000, 160), P(2000))
    gated = Estimate(1000, fallen, standing, most, 0.001, 0.002, gated=True, unknown=0)
    assert cost_line(gated, "cpu") == (
        "Cost on cpu, 1,000 samples: 29 passes each if all fall at once (41 s), about 77 on an ordinary robust model "
        "(2 min), at most 6,162 where gradients are masked (1 h 45 min)"
    )
    assert "ordinary" not in cost_line(replace(gated, gated=False), "cpu")
