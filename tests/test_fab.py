"""FAB: exact crossings of hyperplane and box, the closed form on linear models, its literal form from the paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from networks import RowWise, best_linear_change, direction, inputs, linear, mlp
from sparring.evaluation.cascade import recorded
from sparring.objective import margin

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


# --- crossings ------------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(NORMS), st.integers(0, 10_000), st.integers(1, 90), st.floats(0.01, 0.99), st.sampled_from([-1, 1])
)
def test_a_crossing_is_the_smallest_change_that_grows_so_much(
    norm: str, seed: int, entries: int, part: float, sign: int
) -> None:
    """What a ball lets a linear function grow most takes no smaller ball."""
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(3, entries, generator=generator, dtype=torch.float64)
    x, _ = inputs(3, (entries,), seed=seed)
    threat = sp.Threat(norm, math.inf)
    whole = threat.size(torch.zeros_like(x), best_linear_change(norm, sign * gradient, x, 1e9, (0.0, 1.0)))
    for b in range(3):
        rows = slice(b, b + 1)
        eps = part * float(whole[b])
        best = best_linear_change(norm, sign * gradient[rows], x[rows], eps, (0.0, 1.0))
        gain = (best * gradient[rows]).sum(1)
        change = threat.crossing(x[rows], gradient[rows], gain)
        torch.testing.assert_close((change * gradient[rows]).sum(1), gain, atol=1e-9, rtol=1e-9)
        size = float(threat.size(torch.zeros_like(change), change))
        assert size <= eps * (1 + 1e-7) + 1e-12
        assert bool((x[rows] + change >= -1e-12).all() & (x[rows] + change <= 1 + 1e-12).all())


@pytest.mark.parametrize("norm", NORMS)
def test_crossings_at_the_limits(norm: str) -> None:
    x, gradient = torch.tensor([[0.25, 0.5, 1.0]]).double(), torch.tensor([[4.0, -2.0, 3.0]]).double()
    threat = sp.Threat(norm, math.inf)
    far = threat.crossing(x, gradient, torch.tensor([100.0]).double())
    torch.testing.assert_close(far, torch.tensor([[0.75, -0.5, 0.0]]).double())  # all there is
    assert not bool(threat.crossing(x, gradient, torch.zeros(1).double()).any())
    assert not bool(threat.crossing(x, 0 * gradient, torch.ones(1).double()).any())
    tiny = threat.crossing(x, gradient * 1e-30, torch.tensor([1e-30]).double())
    torch.testing.assert_close(tiny, threat.crossing(x, gradient, torch.ones(1).double()))
    free = sp.Threat(norm, math.inf, None).crossing(x, gradient, torch.tensor([58.0]).double())
    expected = {"linf": [58 / 9, -58 / 9, 58 / 9], "l2": [8.0, -4.0, 6.0], "l1": [14.5, 0.0, 0.0]}[norm]
    torch.testing.assert_close(free, torch.tensor([expected]).double())
    held = sp.Threat(norm, math.inf, mask=torch.tensor([False, True, True])).crossing(
        x, gradient, torch.ones(1).double()
    )
    assert held.tolist()[0] == [0.0, -0.5, 0.0]


@pytest.mark.parametrize("norm", NORMS)
def test_crossings_do_not_depend_on_the_batch(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(40, 200, generator=generator, dtype=torch.float64)
    x, _ = inputs(40, (200,))
    gain = torch.linspace(-30, 60, 40, dtype=torch.float64)
    threat = sp.Threat(norm, math.inf)
    together = threat.crossing(x, gradient, gain)
    for i in range(0, 40, 3):
        alone = threat.crossing(x[i : i + 1], gradient[i : i + 1], gain[i : i + 1])
        assert torch.equal(alone[0], together[i])


# --- the closed form ------------------------------------------------------------------------------------------------------


def onto(norm: str, slope: Tensor, x: Tensor, gain: float, box: tuple[float, float] | None) -> Tensor:
    """(D,) the smallest change by which slope · change grows by `gain` > 0: bisection, or the steepest entries first."""
    low, high = box if box is not None else (-math.inf, math.inf)
    room = torch.where(slope > 0, high - x, x - low)
    if norm == "l1":
        change = torch.zeros_like(x)
        for i in slope.abs().argsort(descending=True).tolist():
            change[i] = min(gain / float(slope[i].abs()), float(room[i]))
            gain = max(gain - float(change[i] * slope[i].abs()), 0.0)
        return change * slope.sign()
    rate = slope.abs() if norm == "l2" else torch.ones_like(slope)
    least, most = 0.0, 1e6
    for _ in range(100):
        middle = (least + most) / 2
        reached = (torch.minimum(middle * rate, room) * slope.abs()).sum() >= gain
        least, most = (least, middle) if reached else (middle, most)
    return torch.minimum(most * rate, room) * slope.sign()


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_smallest_norm_on_a_linear_model(norm: str, box: tuple[float, float] | None) -> None:
    model, (x, y) = linear((3, 4)), inputs(8, (3, 4))
    with torch.no_grad():
        y, clean = model(x).argmax(1), margin(model(x), model(x).argmax(1))
    found = sp.FAB(sp.Threat(norm, math.inf, box), steps=30, search_steps=30)(model, x, y)
    slope, flat = direction(model, y), x.flatten(1)
    changes = [onto(norm, slope[i], flat[i], -float(clean[i]), box) for i in range(8)]
    exact = torch.stack([change.norm(p=ORDER[norm]) for change in changes])
    # in a box a part of the smallest change is not the smallest change to that part of the gain
    torch.testing.assert_close(found.norm, exact, rtol=2e-3 if box else 1e-8, atol=0)
    assert bool((found.norm >= exact * (1 - 1e-9)).all())
    assert bool(found.success.all())


# --- the paper, literally: one sample at a time ---------------------------------------------------------------------------


def literal(model: nn.Module, x: Tensor, y: int, target: int, norm: str, steps: int, search: int) -> list[Tensor]:
    """Croce and Hein (2020), algorithm 1: the points at which the model is asked."""

    def ask(point: Tensor) -> tuple[float, Tensor]:
        point = point.clone().requires_grad_(True)
        z = model(point[None])[0]
        (gradient,) = torch.autograd.grad(z[target] - z[y], point)
        return float(z[target] - z[y]), gradient

    def towards(point: Tensor, gradient: Tensor, value: float) -> Tensor:
        """The change to where value + ⟨gradient, change⟩ = 0, or the farthest that the box lets it go."""
        return onto(norm, -math.copysign(1, value) * gradient, point, abs(value), (0.0, 1.0))

    asked, here, nearest = [], x, None
    for _ in range(steps):
        asked.append(here)
        value, gradient = ask(here)
        mine = towards(here, gradient, value)
        its = towards(x, gradient, value + float(((x - here) * gradient).sum()))
        near, far = (max(float(change.norm(ORDER[norm])), 1e-8) for change in (mine, its))
        share = min(near / (near + far), 0.1)
        there = ((1 - share) * (here + 1.05 * mine) + share * (x + 1.05 * its)).clamp(0, 1)
        asked.append(there)
        if int(model(there[None]).argmax()) != y:
            if nearest is None or (there - x).norm(ORDER[norm]) < (nearest - x).norm(ORDER[norm]):
                nearest = there
            there = x + 0.9 * (there - x)
        here = there
    low, high = 0.9, 1.0
    for _ in range(search if nearest is not None else 0):
        asked.append(x + (low + high) / 2 * (nearest - x))
        fools = int(model(asked[-1][None]).argmax()) != y
        low, high = (low, (low + high) / 2) if fools else ((low + high) / 2, high)
    return asked


class Recorder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.inner(x)


@pytest.mark.parametrize("norm", NORMS)
def test_iterates_are_those_of_the_paper(norm: str) -> None:
    model, (x, _) = RowWise((12,), 4, seed=1), inputs(2, (12,))
    with torch.no_grad():
        logits = model(x)
    y, steps = logits.argmax(1), 8
    for i in range(len(x)):
        seen = Recorder(model)
        found = sp.FAB(sp.Threat(norm, math.inf), steps=steps, rivals=2)(seen, x[i : i + 1], y[i : i + 1])
        targets = logits[i].argsort(descending=True)[1:3].tolist()
        rounds = [literal(model, x[i], int(y[i]), target, norm, steps, 0) for target in targets]
        asked = [point[0] for point in seen.asked]
        torch.testing.assert_close(asked[0], x[i])
        ends = 2 * steps + 1
        torch.testing.assert_close(torch.stack(asked[1:ends]), torch.stack(rounds[0]), atol=1e-7, rtol=1e-6)
        assert found.success.all()
        assert (found.forwards, found.backwards) == (len(asked), 2 * steps)
        first = literal(model, x[i], int(y[i]), targets[0], norm, steps, 3)
        torch.testing.assert_close(torch.stack(asked[1 : ends + 3]), torch.stack(first), atol=1e-7, rtol=1e-6)
        again = asked[ends + 3 : ends + 3 + 2 * steps]
        torch.testing.assert_close(torch.stack(again), torch.stack(rounds[1]), atol=1e-7, rtol=1e-6)


# --- what it promises -----------------------------------------------------------------------------------------------------


def trained(norm: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, (x, _) = mlp((3, 4)), inputs(10, (3, 4))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
def test_what_it_returns_fools_at_the_norm_that_it_names(norm: str) -> None:
    model, x, y = trained(norm)
    free = sp.FAB(sp.Threat(norm, math.inf), steps=10)(model, x, y)
    assert bool(free.success.all())
    assert bool((model(free.x).argmax(1) != y).all())
    torch.testing.assert_close(sp.Threat(norm, 1.0).size(x, free.x), free.norm)
    middle = float(free.norm.median())
    held = sp.FAB(sp.Threat(norm, middle), steps=10)(model, x, y)
    assert torch.equal(held.success, free.norm <= middle)
    assert torch.equal(held.norm, free.norm)  # eps does not hold the search back


@pytest.mark.parametrize("norm", NORMS)
def test_passes(norm: str) -> None:
    model, x, y = trained(norm)
    found = sp.FAB(sp.Threat(norm, 1.0), steps=6, rivals=2, restarts=2, search_steps=0)(model, x, y)
    assert (found.forwards, found.backwards) == (10 * (1 + 4 * (2 * 6 + 1)), 10 * 4 * 6)


def test_restarts_are_random_points_and_only_help() -> None:
    model, x, y = trained("linf")
    seen, threat = Recorder(model), sp.Linf(0.5)
    once = sp.FAB(threat, steps=5, rivals=1)(model, x, y)
    more = sp.FAB(threat, steps=5, rivals=1, restarts=3)(seen, x, y)
    assert bool((more.norm <= once.norm).all())
    second = seen.asked[1 + 2 * 5 + 3]
    size = threat.size(x, second)
    assert bool((size > 0).all())
    assert bool((size <= once.norm.clamp_max(0.5) / 2 + 1e-9).all())


def test_a_wrong_prediction_needs_no_search() -> None:
    model, x, y = trained("l2")
    wrong = (y + 1) % 4
    found = sp.FAB(sp.L2(0.5), steps=5)(model, x, wrong)
    assert torch.equal(found.x, x)
    assert not bool(found.norm.any())
    assert (found.forwards, found.backwards) == (20, 10)  # the clean logits, and a first look


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    model, (x, _) = RowWise((5,), classes, seed=2), inputs(4, (5,))
    with torch.no_grad():
        y = model(x).argmax(1)
    found = sp.FAB(sp.Linf(0.9), steps=4)(model, x, y)
    assert found.backwards == 4 * 4 * (classes - 1)


def test_targets_of_the_call() -> None:
    model, x, y = trained("l2")
    targets = (y + 2) % 4
    found = sp.FAB(sp.L2(math.inf), steps=20, rivals=None)(model, x, y, targets)
    hit = model(found.x).argmax(1) == targets
    assert torch.equal(hit, found.success)
    assert int(hit.sum()) >= 8
    with pytest.raises(ValueError, match="targets of the call"):
        sp.FAB(sp.L2(1.0), rivals=None)(model, x, y)
    with pytest.raises(ValueError, match="chooses its targets itself"):
        sp.FAB(sp.L2(1.0))(model, x, y, targets)


def test_masked_entries_stay() -> None:
    model, x, y = trained("linf")
    mask = torch.arange(12).view(3, 4) % 2 == 0
    for norm in NORMS:
        found = sp.FAB(sp.Threat(norm, 1.0, mask=mask), steps=8, rivals=2, restarts=2)(model, x, y)
        assert torch.equal(found.x[:, ~mask], x[:, ~mask])
        assert bool(found.success.any())


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision(norm: str) -> None:
    model, x, y = trained(norm)
    found = sp.FAB(sp.Threat(norm, math.inf), steps=10, rivals=2)(lambda v: model(v.double()), x.half(), y)
    exact = sp.FAB(sp.Threat(norm, math.inf), steps=10, rivals=2)(model, x.half().double(), y)
    assert found.x.dtype == torch.float16
    assert bool((model(found.x.double()).argmax(1) != y).all())
    torch.testing.assert_close(found.norm, exact.norm.float(), rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_evaluate_at_any_batch_size(norm: str) -> None:
    model, (x, _) = RowWise((12,), 4, seed=1), inputs(9, (12,))
    with torch.no_grad():
        y = model(x).argmax(1)
    free = sp.FAB(sp.Threat(norm, math.inf), steps=6, rivals=2)(model, x, y)
    threat = sp.Threat(norm, min(float(free.norm.median()), 1.0))
    attack = sp.FAB(threat, steps=6, rivals=2, stop_when_fooled=True)
    rows = []
    for size in (2, 9):
        result = sp.evaluate(model, (x, y), threat, attacks=attack, batch_size=size)
        assert torch.equal(torch.as_tensor(result.robust), free.norm > threat.eps)
        rows.append({k: v for k, v in result.document["attacks"][0].items() if k != "seconds"})
    assert rows[0] == rows[1]
    assert recorded(rows[:1], threat) == [attack]


def test_what_cannot_be_is_said_in_one_line() -> None:
    for settings, words in (
        ({"beta": 2}, "beta=2"), ({"eta": 0.5}, "eta=0.5"), ({"alpha_max": -1}, "alpha_max=-1"), ({"rivals": 0}, "rivals=0"),
        ({"search_steps": -1}, "search_steps=-1"), ({"targets": "second"}, "one of the two"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            sp.FAB(sp.Linf(0.1), **settings)
    with pytest.raises(ValueError, match="finite eps"):
        sp.FAB(sp.L2(math.inf), restarts=2)
    with pytest.raises(ValueError, match="no form for l0"):
        sp.FAB(sp.L0(3))
