"""Any torch optimiser on the image: the same as one's own loop, sample by sample, whoever else is in the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import inputs, mlp
from sparring.objective import margin

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "betas": (0.5, 0.9)}),
    ("AdamW", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adagrad", {}),
    ("Adadelta", {}),
    ("Adamax", {}),
    ("ASGD", {}),
    ("Rprop", {}),
    ("Adafactor", {}),
    ("LBFGS", {"max_iter": 4, "history_size": 3, "tolerance_grad": 0.0, "tolerance_change": 0.0}),
]
IDS = [name + "".join(f" {k}" for k in options) for name, options in OPTIMIZERS]
LR = 0.03


def literal(
    model: nn.Module, x: Tensor, y: Tensor, threat: sp.Threat, name: str, options: dict[str, Any], steps: int
) -> tuple[Tensor, int]:
    """One sample (1, *S): a plain loop that keeps the best iterate by (fooled, margin). Its result and its backwards."""
    parameter = nn.Parameter(x[0].clone())  # as one image, so that Adafactor and its like see the same shape
    optimizer = getattr(torch.optim, name)([parameter], lr=LR, **options)
    best, score, calls = x, (False, -math.inf), 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = -margin(model(parameter[None]), y).sum()
        value.backward()
        return value

    for step in range(steps + 1):
        with torch.no_grad():
            logits = model(parameter[None])
            now = (bool(logits.argmax(1) != y), float(margin(logits, y)))
        if now > score:
            best, score = parameter.detach()[None].clone(), now
        if step < steps:
            if name == "LBFGS":
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
            parameter.data.copy_(threat.project(x, parameter.detach()[None])[0])
    for p in model.parameters():
        p.grad = None
    return best, calls


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=IDS)
def test_it_is_ones_own_loop_and_state_is_per_sample(name: str, options: dict[str, Any]) -> None:
    model, (x, y) = mlp((3, 4)), inputs(4, (3, 4), classes=4)
    threat = sp.L2(0.6)
    attack = sp.OptimizerAttack(threat, optimizer=name, lr=LR, steps=6, options=options, objective="margin")
    found = attack(model, x, y)
    backwards = 0
    for b in range(4):
        expected, calls = literal(model, x[b : b + 1], y[b : b + 1], threat, name, options, 6)
        backwards += calls
        torch.testing.assert_close(found.x[b : b + 1], expected, rtol=0, atol=1e-12)
    assert found.forwards == found.backwards + 4
    if name != "LBFGS":  # which stops a step early or not by the last bit of a curvature
        assert found.backwards == backwards


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=IDS)
def test_state_follows_a_sample_when_others_leave_and_join(name: str, options: dict[str, Any]) -> None:
    model, (x, y) = mlp((3, 4)), inputs(9, (3, 4), classes=4)
    attack = sp.OptimizerAttack(sp.Linf(0.25), optimizer=name, lr=LR, steps=5, options=options, stop_when_fooled=True)
    whole = attack(model, x, y)
    assert 0 < int(whole.success.sum()) < 9  # some leave early, some stay to the end
    from test_ascent import through_a_small_pool

    refilled = through_a_small_pool(attack, model, x, y, capacity=2)
    for b in range(9):
        alone = attack(model, x[b : b + 1], y[b : b + 1], indices=torch.tensor([b]))
        torch.testing.assert_close(whole.x[b], alone.x[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(refilled[b].best[0], alone.x[0], rtol=0, atol=1e-12)
        assert int(refilled[b].forwards) == alone.forwards
        assert int(refilled[b].backwards) == alone.backwards


def test_a_class_of_ones_own_couples_nothing() -> None:
    class Whole(torch.optim.Optimizer):
        """Divides by the length of the whole parameter: given the batch at once, samples would mix."""

        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                p -= self.param_groups[0]["lr"] * p.grad / p.grad.norm()

    model, (x, y) = mlp((5,)), inputs(4, (5,), classes=4)
    attack = sp.OptimizerAttack(sp.L2(0.5), optimizer=Whole, lr=0.1, steps=4)
    whole = attack(model, x, y)
    for b in range(4):
        torch.testing.assert_close(attack(model, x[b : b + 1], y[b : b + 1]).x[0], whole.x[b], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_without_a_ball_only_the_box_limits(bounds: tuple[float, float] | None) -> None:
    model, (x, y) = mlp((5,), seed=3), inputs(4, (5,), classes=4)
    found = sp.OptimizerAttack(None, lr=0.3, steps=30, bounds=bounds, objective="logit")(model, x, y)
    torch.testing.assert_close(found.norm, (found.x - x).norm(dim=1))
    assert float(found.norm.min()) > 0.5
    if bounds is None:
        assert float(found.x.max()) > 1.5
    else:
        assert float(found.x.min()) == 0.0
        assert float(found.x.max()) == 1.0


def test_trace_records_what_happened() -> None:
    model, (x, y) = mlp((5,)), inputs(3, (5,), classes=4)
    targets = (y + 1) % 4
    found = sp.OptimizerAttack(None, steps=12, lr=0.05, trace=True)(model, x, y, targets)
    trace = found.trace
    assert trace is not None
    assert trace.objective.shape == (13, 3)
    logits = model(x).detach()
    torch.testing.assert_close(trace.confidence[0], logits.softmax(1).amax(1).float())
    torch.testing.assert_close(trace.objective[0], logits.log_softmax(1).gather(1, targets[:, None])[:, 0].float())
    assert torch.equal(trace.prediction[0], logits.argmax(1))
    assert not bool(trace.objective.isnan().any())
    torch.testing.assert_close(found.objective.float(), trace.objective.amax(0))


def test_trace_is_empty_after_a_sample_has_left() -> None:
    model, (x, _) = mlp((5,)), inputs(3, (5,), classes=4)
    y = (model(x).argmax(1) + torch.tensor([0, 1, 0])) % 4  # the second is wrong to begin with
    trace = sp.PGD(sp.Linf(1e-4), steps=3, random_start=False, trace=True, stop_when_fooled=True)(model, x, y).trace
    assert trace is not None
    assert trace.prediction[:, 1].tolist() == [int(model(x).argmax(1)[1]), -1, -1, -1]
    assert bool(trace.objective[1:, 1].isnan().all())
    assert not bool(trace.objective[:, [0, 2]].isnan().any())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"optimizer": "adm"}, ValueError, "optimizer='adm': expected one of .*adam.*sgd"),
        ({"optimizer": nn.Linear}, TypeError, "expected a torch.optim class"),
        ({"optimizer": 3}, TypeError, "optimizer=3: expected a torch.optim class"),
        ({"lr": 0}, ValueError, "lr=0.: expected a number above 0"),
        ({"lr": -1.0}, ValueError, "lr=-1.0"),
        ({"lr": math.nan}, ValueError, "lr=nan"),
        ({"options": {"moment": 0.9}}, ValueError, r"Adam\(lr=0.01, .*moment.*unexpected keyword"),
        ({"optimizer": "sgd", "options": {"momentum": -1}}, ValueError, r"SGD\(.*Invalid momentum"),
        ({"restarts": 2}, ValueError, "restarts need random_start=True"),
        ({"random_start": True}, ValueError, "finite eps|random start"),
        ({"steps": 0}, ValueError, "steps=0.: expected a whole number, at least 1"),
    ],
)
def test_bad_settings_get_one_line(settings: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        sp.OptimizerAttack(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["SGD", "sgd", "rmsprop", "RMSprop"])
def test_names_are_read_whatever_their_capitals(name: str) -> None:
    assert sp.OptimizerAttack(optimizer=name).optimizer is getattr(
        torch.optim, {"s": "SGD", "r": "RMSprop"}[name[0].lower()]
    )
