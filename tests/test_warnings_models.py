"""Warnings on models built to call for them, and on those that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import Backwards, inputs, mlp

SHAPE = (3, 4, 5)


def net(seed: int = 0) -> nn.Sequential:
    """Smooth, with margins wide enough that some samples stand at eps = 0.05."""
    return mlp(SHAPE, seed=seed, dtype=torch.float32)


class Around(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = net(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.model, x)


def nan_gradient(model: nn.Module, x: Tensor) -> Tensor:
    return model(x + 0 * (x - x.detach()).sqrt())  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "probabilities": lambda model, x: model(x).softmax(1),
    "zero-gradient": lambda model, x: model((x * 3).round() / 3 + 0 * x),
    "nan-gradient": nan_gradient,
    "random-model": lambda model, x: model(x + 0.05 * torch.randn_like(x)),
    "batch-statistics": lambda model, x: model(nn.functional.batch_norm(x, None, None, training=True) / 4 + 0.5),
    "loss-not-increasing": lambda model, x: model(x + 0.001 * torch.sin(9000 * x)),
    "eps-no-effect": lambda model, x: model(Backwards.apply(x)),
}
EXPLAINED = {  # other codes that such a model calls for with reason
    "zero-gradient": {"loss-not-increasing", "eps-no-effect", "masking", "step-size", "one-step-beats-many"},
    "nan-gradient": {"zero-gradient", "loss-not-increasing", "masking", "eps-no-effect"},
    "random-model": {"not-reproducible"},
    "batch-statistics": {"not-reproducible"},
    "loss-not-increasing": {"masking", "weak-attacks", "one-step-beats-many", "step-size", "eps-no-effect"},
    "eps-no-effect": {"loss-not-increasing", "masking"},
}


def evaluated(
    model: nn.Module, count: int = 60, threat: sp.Threat | None = None, **settings: Any
) -> sp.EvaluationResult:
    threat = sp.Linf(0.05) if threat is None else threat
    x, _ = inputs(count, SHAPE, dtype=torch.float32)
    x = (x * 255).round() / 255
    with torch.no_grad():
        y = net()(x).argmax(1)
    settings = {"attacks": [sp.PGD(threat, steps=10, objective="margin")], "batch_size": 32} | settings
    return sp.evaluate(model, (x, y), threat, **settings)


@pytest.mark.parametrize("code", MODELS)
def test_each_code_on_a_model_built_for_it(code: str) -> None:
    torch.manual_seed(0)
    warnings = evaluated(Around(MODELS[code])).warnings
    assert all(warning.seen and warning.why and warning.todo for warning in warnings)
    found = {warning.code for warning in warnings}
    assert code in found
    assert found - {code} <= EXPLAINED.get(code, set())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_an_ordinary_model_calls_for_none(dtype: torch.dtype) -> None:
    x, _ = inputs(60, SHAPE, dtype=dtype)
    model = net().to(dtype)
    y = model(x).argmax(1)
    for threat in (sp.Linf(0.05), sp.L2(0.2)):
        result = sp.evaluate(model, (x, y), threat, attacks=sp.PGD(threat, steps=20, objective="margin"))
        assert {warning.code for warning in result.warnings} <= {"rounding"}  # these are no 8-bit images
        assert 0 < result.robust_accuracy.count < 60


def test_a_model_whose_gradients_lead_away_masks_failures() -> None:
    """The default cascade shows it too (test_adaptive.py), at thousands of queries."""
    threat = sp.Linf(0.05)
    attacks = [sp.PGD(threat, steps=10, objective="margin"), sp.Square(threat, queries=100)]
    found = {warning.code: warning for warning in evaluated(Around(MODELS["eps-no-effect"]), attacks=attacks).warnings}
    assert {"masking", "eps-no-effect", "loss-not-increasing"} <= found.keys()
    assert "without gradients fooled" in found["masking"].seen
    assert evaluated(net(), attacks=attacks).warnings == []
    assert evaluated(net(), attacks="adaptive").warnings == []


def test_steps_that_run_into_ripples_while_a_leap_gets_past_them() -> None:
    """Between the values of an image the slope turns round, and eps / 4 ends right there: such steps go to and fro."""
    threat = sp.Linf(14 / 255)
    settings: dict[str, Any] = {
        "threat": threat,
        "attacks": [sp.PGD(threat, steps=10, random_start=False, objective="margin")],
    }
    rippled = Around(lambda model, x: model(x + 0.002 * torch.sin(2 * torch.pi * 255 * x)))
    found = {warning.code: warning for warning in evaluated(rippled, **settings).warnings}
    assert {"one-step-beats-many", "step-size", "loss-not-increasing"} == found.keys()
    assert "of length eps" in found["step-size"].seen
    assert evaluated(net(), **settings).warnings == []


def test_an_attack_that_lives_on_luck_would_find_more() -> None:
    threat = sp.Linf(0.1)
    lucky = sp.PGD(threat, steps=1, step_size=1e-4, restarts=40)
    found = {warning.code for warning in evaluated(net(), 300, threat, attacks=[lucky]).warnings}
    assert "restarts-find-more" in found
    earnest = sp.PGD(threat, steps=20, restarts=5, objective="margin")
    assert evaluated(net(), 300, threat, attacks=[earnest]).warnings == []


def test_examples_a_hair_beyond_the_boundary_go_deeper_before_rounding_counts() -> None:
    threat = sp.Linf(8 / 255)
    fine = sp.PGD(threat, steps=80, step_size=0.1 / 255, random_start=False, objective="margin")
    result = evaluated(net(), 200, threat, attacks=[fine])
    found = result.document["checkup"]
    saved = [(index, (x * 255).round() / 255) for index, _, x in result.examples]
    x, _ = inputs(200, SHAPE, dtype=torch.float32)
    with torch.no_grad():
        y = net()((x * 255).round() / 255).argmax(1)
        lost = sum(int(net()(image[None]).argmax(1)) == int(y[index]) for index, image in saved)
    assert lost > 0.2 * len(saved), "rounding undoes many examples as they are"
    assert found["rounded_away"] < 0.1 * found["rounded"]
    assert "rounding" not in {warning.code for warning in result.warnings}


def test_small_data_call_for_none() -> None:
    for count in (1, 2, 5):
        assert evaluated(net(), count).warnings == []


def test_attacks_too_weak() -> None:
    threat = sp.Linf(0.05)
    tiny = sp.PGD(threat, steps=5, step_size=0.0002, random_start=False)
    found = {w.code: w for w in evaluated(net(), attacks=[tiny]).warnings}
    assert {"weak-attacks", "one-step-beats-many"} <= found.keys()
    assert "fooled" in found["weak-attacks"].seen


def test_examples_between_the_values_of_an_image() -> None:
    below = sp.Linf(0.45 / 255)  # rounding takes all of it back
    x, _ = inputs(3000, SHAPE, dtype=torch.float32)
    x, model = (x * 255).round() / 255, net()
    logits = model(x)
    y = logits.argmax(1)
    near = (logits.topk(2).values @ torch.tensor([1.0, -1.0])).argsort()[:40]
    result = sp.evaluate(model, (x[near], y[near]), below, attacks="pgd")
    assert not result.document["checkup"]["rounded"] < 10
    assert "rounding" in {warning.code for warning in result.warnings}
    whole = sp.evaluate(model, (x[near], y[near]), sp.Linf(8 / 255), attacks=sp.IFGSM(sp.Linf(8 / 255), steps=1))
    assert "rounding" not in {warning.code for warning in whole.warnings}
