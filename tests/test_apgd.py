"""APGD: the closed form on linear models, its literal form from the papers, what it costs, its rivals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import RowWise, best_linear_change, direction, inputs, linear, mlp
from sparring.attacks.rivals import rival
from sparring.objective import margin

THREATS = {"linf": sp.Linf(0.2), "l2": sp.L2(0.5), "l1": sp.L1(0.8)}


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", THREATS)
def test_reaches_the_optimum_of_a_linear_model(norm: str, box: tuple[float, float] | None) -> None:
    """Where a box cuts its equal l1 steps, a hundred of them end a little short of it."""
    sparse = norm == "l1"
    shape = (20, 30) if sparse else (3, 4)
    model, (x, y) = linear(shape), inputs(6, shape)
    threat = sp.L1(12.0, box) if sparse else replace(THREATS[norm], bounds=box)
    found = sp.APGD(threat, objective="margin", shrinking=sparse)(model, x, y)
    slope = direction(model, y)
    best = (best_linear_change(norm, slope, x.flatten(1), float(threat.eps), box) * slope).sum(1)
    clean = margin(model(x), y)
    gained = (found.objective - clean) / best
    assert bool((gained <= 1 + 1e-9).all())
    least = {"linf": 1 - 1e-9, "l2": 0.9999, "l1": 0.985 if box else 1 - 1e-9}[norm]
    assert bool((gained > least).all()), gained
    assert bool((threat.size(x, found.x) <= threat.eps * (1 + 1e-9)).all())


# --- the papers, literally: one sample at a time ----------------------------------------------------------------------


def asking(model: nn.Module, y: int, target: int | None, objective: str) -> Callable[[Tensor], tuple[float, Tensor]]:
    """x → (value, gradient)."""

    def ask(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_(True)
        z = model(x[None])[0]
        top = z.sort(descending=True).values
        if objective == "cross-entropy":
            value = torch.logsumexp(z, 0) - z[y]
        elif objective == "margin":
            value = torch.stack([z[c] for c in range(len(z)) if c != y]).amax() - z[y]
        else:
            value = (z[target] - z[y]) / (top[0] - (top[2] + top[3]) / 2)
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient

    return ask


def nearest(norm: str, origin: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """The projection onto ball ∩ [0, 1], by bisection."""

    def project(x: Tensor) -> Tensor:
        def inside(part: float) -> tuple[Tensor, Tensor]:
            size = (x - origin).abs()
            size = (size - part).clamp_min(0) if norm == "l1" else size * (1 - part)
            there = (origin + size * (x - origin).sign()).clamp(0, 1)
            return there, (there - origin).norm(1 if norm == "l1" else 2)

        if norm == "linf":
            return torch.minimum(torch.maximum(x, origin - eps), origin + eps).clamp(0, 1)
        low, high = 0.0, float((x - origin).abs().max()) if norm == "l1" else 1.0
        if inside(0.0)[1] <= eps:
            return inside(0.0)[0]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if inside(middle)[1] > eps else (low, middle)
        return inside(high)[0]

    return project


def literal_dense(ask, project, norm: str, start: Tensor, eps: float, steps: int, rho: float = 0.75) -> list[Tensor]:
    """Croce and Hein (2020), algorithm 1: the points at which the model is asked."""
    parts = [0.0, 0.22]
    while parts[-1] < 1:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    checkpoints = [math.ceil(round(part * steps, 6)) for part in parts]
    value, gradient = ask(start)
    asked, x, previous, now = [start], start, start, value
    best_x, best, best_gradient = start, value, gradient
    size, rises, j, before = 2 * eps, 0, 1, (2 * eps, value)
    for k in range(steps):
        if k == checkpoints[j]:
            few = rises < rho * (checkpoints[j] - checkpoints[j - 1])
            stalled = before == (size, best)
            before = (size, best)
            if few or stalled:
                size, x, now, gradient = size / 2, best_x, best, best_gradient
            rises, j = 0, j + 1
        unit = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        z, part = project(x + size * unit), 1.0 if k == 0 else 0.75
        x, previous = project(x + part * (z - x) + (1 - part) * (x - previous)), x
        asked.append(x)
        value, gradient = ask(x)
        rises, now = rises + (value > now), value
        if value > best:
            best_x, best, best_gradient = x, value, gradient
    return asked


def literal_sparse(ask, origin: Tensor, start: Tensor, eps: float, steps: int, entries: float, changed: float):
    """Croce and Hein (2021), the single-eps scheme: the points asked at, and the best of them."""
    project, every = nearest("l1", origin, eps), max(4 * steps // 100, 1)
    value, gradient = ask(start)
    asked, x, size = [start], start, eps
    best_x, best, best_gradient = start, value, gradient
    for k in range(steps):
        if k > 0 and k % every == 0:
            now = int((best_x != origin).sum())
            if now < 0.95 * changed:
                size, x, gradient = eps, best_x, best_gradient
            else:
                size = max(size / 1.5, eps / 10)
            entries, changed = now / 1.5, now
        largest = gradient.abs().flatten().argsort(descending=True)[: max(int(entries), 1)]
        step = torch.zeros_like(gradient).flatten()
        step[largest] = gradient.flatten()[largest].sign() / len(largest)
        x = project(x + size * step.view_as(x))
        asked.append(x)
        value, gradient = ask(x)
        if value > best:
            best_x, best, best_gradient = x, value, gradient
    return asked, best_x


class Recorder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.inner(x)


@pytest.mark.parametrize("objective", ["cross-entropy", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_iterates_are_those_of_the_paper(norm: str, objective: str) -> None:
    model, (x, y) = RowWise((3, 4), 5), inputs(3, (3, 4), 5)
    eps, steps = float(THREATS[norm].eps), 31
    seen = Recorder(model)
    sp.APGD(THREATS[norm], steps=steps, objective=objective)(seen, x, y)
    assert len(seen.asked) == steps + 1
    for i in range(len(x)):
        project = nearest(norm, x[i], eps)
        expected = literal_dense(asking(model, int(y[i]), None, objective), project, norm, seen.asked[0][i], eps, steps)
        torch.testing.assert_close(torch.stack([points[i] for points in seen.asked]), torch.stack(expected))


def test_l1_iterates_are_those_of_the_paper() -> None:
    model, (x, y) = RowWise((6, 7), 5), inputs(3, (6, 7), 5)
    seen = Recorder(model)
    sp.APGD(sp.L1(1.5), steps=50)(seen, x, y)
    for i in range(len(x)):
        ask = asking(model, int(y[i]), None, "cross-entropy")
        expected, _ = literal_sparse(ask, x[i], seen.asked[0][i], 1.5, 50, 0.2 * 42, 42)
        torch.testing.assert_close(torch.stack([points[i] for points in seen.asked]), torch.stack(expected))


def test_the_balls_of_shrinking_l1_are_runs_of_their_own() -> None:
    model, (x, y) = RowWise((6, 7), 5), inputs(4, (6, 7), 5)
    seen = Recorder(model)
    found = sp.APGD(sp.L1(0.5), steps=20, shrinking=True)(seen, x, y)
    for i in range(len(x)):
        ask, start, expected = asking(model, int(y[i]), None, "cross-entropy"), seen.asked[0][i], []
        for factor, steps in ((3, 5), (2, 5), (1, 8)):  # the last step of a ball leads to the best point, in the next
            changed = int((start != x[i]).sum())
            points, best = literal_sparse(ask, x[i], start, 0.5 * factor, steps, changed / 1.5, changed)
            expected += points
            start = nearest("l1", x[i], 0.5 * max(factor - 1, 1))(best)
        torch.testing.assert_close(torch.stack([points[i] for points in seen.asked]), torch.stack(expected))
    inside = torch.stack([((points - x).flatten(1).norm(1, 1) <= 0.5 + 1e-9) for points in seen.asked])
    fooled = torch.stack([model(points).argmax(1) != y for points in seen.asked])
    assert torch.equal(found.success, (inside & fooled).any(0))
    assert bool((fooled & ~inside).any()), "nothing outside fools: the test shows nothing"
    assert bool((found.norm <= 0.5 + 1e-9).all())


# --- targets --------------------------------------------------------------------------------------------------------------


def test_rivals_come_in_the_order_of_the_logits_whatever_the_top_class() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0], [5.0, 1.0, 3.0, 2.0]])
    order = torch.stack([rival(logits, torch.tensor([0, 3]), torch.full((2,), rank)) for rank in range(3)])
    assert order.T.tolist() == [[2, 3, 1], [0, 2, 1]]


def test_each_rival_is_gone_for_in_turn_literally() -> None:
    model, (x, y), steps = RowWise((3, 4), 5), inputs(3, (3, 4), 5), 9
    seen, threat = Recorder(model), THREATS["linf"]
    found = sp.APGD(threat, steps=steps, objective="dlr", rivals=3, restarts=2)(seen, x, y)
    clean, asked = seen.asked[0], seen.asked[1:]
    assert torch.equal(clean, x)
    assert len(asked) == 3 * 2 * (steps + 1)
    assert (found.forwards, found.backwards) == (3 * (1 + 3 * 2 * (steps + 1)), 3 * 3 * 2 * steps)
    assert found.targets is None
    for i in range(len(x)):
        others = [c for c in model(x)[i].argsort(descending=True).tolist() if c != y[i]]
        project = nearest("linf", x[i], float(threat.eps))
        for number in range(6):
            mine = [points[i] for points in asked[number * (steps + 1) : (number + 1) * (steps + 1)]]
            ask = asking(model, int(y[i]), others[number // 2], "dlr")
            expected = literal_dense(ask, project, "linf", mine[0], float(threat.eps), steps)
            torch.testing.assert_close(torch.stack(mine), torch.stack(expected))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_have_few_rivals(classes: int) -> None:
    model, (x, y) = RowWise((5,), classes), inputs(6, (5,), classes)
    found = sp.APGD(sp.Linf(0.3), steps=10, objective="dlr", rivals=9)(model, x, y)
    assert found.backwards == 6 * 10 * (classes - 1)
    with torch.no_grad():
        assert torch.equal(model(found.x).argmax(1) != y, found.success)
    assert bool(found.success.any())


def test_with_targets_success_is_to_hit_them() -> None:
    model, (x, y) = RowWise((5,), 4), inputs(8, (5,), 4)
    targets = (y + 1) % 4
    found = sp.APGD(sp.Linf(0.4), steps=20, objective="dlr")(model, x, y, targets)
    assert torch.equal(found.success, model(found.x).argmax(1) == targets)
    assert bool(found.success.any())
    with pytest.raises(ValueError, match="chooses its targets itself"):
        sp.APGD(sp.Linf(0.4), rivals=2)(model, x, y, targets)


# --- what every attack must keep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", THREATS)
def test_verdicts_and_passes_at_any_batch_size(norm: str) -> None:
    model, (x, y) = RowWise((3, 4), 4), inputs(13, (3, 4), 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = sp.APGD(
        THREATS[norm], steps=8, rivals=2, restarts=2, objective="dlr", shrinking=norm == "l1", stop_when_fooled=True
    )
    whole = attack(model, x, y)
    assert 0 < int(whole.success.sum()) < len(x)
    results = [sp.evaluate(model, (x, y), THREATS[norm], attacks=attack, batch_size=size) for size in (1, 5)]
    for result in results:
        assert torch.equal(torch.as_tensor(result.robust), ~whole.success)
        row, first = result.document["attacks"][0], results[0].document["attacks"][0]
        assert (row["forwards"], row["backwards"]) == (first["forwards"], first["backwards"])
        assert (row["forwards"], row["backwards"]) == (whole.forwards - len(x), whole.backwards)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("norm", THREATS)
def test_other_precisions_stay_inside_and_fool_as_told(norm: str, dtype: torch.dtype) -> None:
    model, (x, y) = mlp((3, 4), dtype=torch.float32), inputs(6, (3, 4), 4, dtype=dtype)
    asked = sp.APGD(THREATS[norm], steps=15)(lambda v: model(v.float()), x, y)
    assert asked.x.dtype == dtype
    assert bool((THREATS[norm].size(x, asked.x) <= float(THREATS[norm].eps) * (1 + 1e-5)).all())
    assert bool(((asked.x >= 0) & (asked.x <= 1)).all())
    assert torch.equal(model(asked.x.float()).argmax(1) != y, asked.success)


@pytest.mark.parametrize("norm", THREATS)
def test_masks_and_an_eps_of_each_sample(norm: str) -> None:
    model, (x, y) = mlp((12,)), inputs(4, (12,), 4)
    mask = torch.arange(12) % 3 > 0
    eps = torch.tensor([0.0, 0.1, 0.2, 0.4], dtype=torch.float64)
    found = sp.APGD(sp.Threat(norm, eps, mask=mask), steps=12, shrinking=norm == "l1")(model, x, y)
    assert torch.equal(found.x[:, ~mask], x[:, ~mask])
    assert bool((found.norm <= eps * (1 + 1e-9)).all())
    assert bool((found.norm[1:] > 0.5 * eps[1:]).all())


def test_what_cannot_be_is_said_in_one_line() -> None:
    for settings, words in (
        ({"rho": 2}, "rho=2"), ({"rivals": 0}, "rivals=0"), ({"rivals": 2, "targets": "second"}, "one of the two"),
        ({"shrinking": True}, "only l1"), ({"steps": 0}, "steps=0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            sp.APGD(sp.Linf(0.1), **settings)
    with pytest.raises(ValueError, match="finite eps"):
        sp.APGD(sp.L2(math.inf))
    with pytest.raises(ValueError, match="no form for l0"):
        sp.APGD(sp.L0(3))
