"""The projections and the geometry of a threat, against slow literal solvers in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from networks import SHAPES
from sparring.noise import Noise
from sparring.projection import project_l1
from sparring.threat import L0, Linf, Threat

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HALF = (torch.float16, torch.bfloat16)


@dataclass
class Case:
    threat: Threat
    x: Tensor
    candidate: Tensor
    seed: int

    @property
    def wide(self) -> Tensor:
        return self.x.double()

    @property
    def eps(self) -> Tensor:
        eps = self.threat.eps
        return eps.double() if isinstance(eps, Tensor) else torch.full((len(self.x),), eps, dtype=torch.float64)

    @property
    def mask(self) -> Tensor:
        mask = self.threat.mask
        return torch.ones_like(self.x, dtype=torch.bool) if mask is None else mask.expand_as(self.x)


@st.composite
def cases(draw: st.DrawFn, norms: tuple[str, ...] = ("linf", "l2", "l1", "l0")) -> Case:
    norm = draw(st.sampled_from(norms))
    dtype = draw(st.sampled_from(DTYPES))
    low, high = draw(st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.5, -0.5), (-0.2, 0.9)]))
    bounds = None if norm != "l0" and draw(st.booleans()) else (low, high)
    batch, shape = draw(st.sampled_from([1, 3])), SHAPES[draw(st.sampled_from([2, 3, 4]))]
    if norm == "l0":
        shape = (6,)
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)

    def unit(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    x = (low + (high - low) * (unit(batch, *shape) * 1.4 - 0.2)).clamp(low, high).to(dtype)
    if bounds is not None:  # the ends of the box, as far as the dtype has them inside
        inside = (x.double() >= low) & (x.double() <= high)
        x = torch.where(inside, x, torch.tensor((low + high) / 2, dtype=dtype))
    scale = draw(st.sampled_from([0.01, 0.3, 2.0, 50.0]))
    candidate = (x.double() + scale * (unit(batch, *shape) * 2 - 1) * (unit(batch, *shape) > 0.2)).to(dtype)
    top = 5 if norm == "l0" else {"linf": high - low, "l2": 3.0, "l1": 9.0}[norm]
    share = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    eps: float | Tensor = float(math.floor(share * top)) if norm == "l0" else share * top
    if draw(st.booleans()):
        eps = (unit(batch) * top).to(torch.float32)
    mask = None
    if draw(st.booleans()):
        mask = unit(*draw(st.sampled_from([shape, (batch, *shape), shape[-1:]]))) > 0.4
    return Case(Threat(norm, eps, bounds, mask).for_inputs(x), x, candidate, seed)


def literal(case: Case) -> Tensor:
    """The nearest point, solved the slow way in float64: bisection on the multiplier; every subset for l0."""
    x, wanted, mask = case.wide.flatten(1), case.candidate.double().flatten(1), case.mask.flatten(1)
    low, high = case.threat.bounds or (-math.inf, math.inf)
    change = torch.where(mask, wanted - x, 0.0)
    size, room = change.abs(), torch.where(change > 0, high - x, x - low)
    eps, norm = case.eps[:, None], case.threat.norm
    if norm == "linf":
        best = size.minimum(room).minimum(eps)
    elif norm == "l0":
        best = torch.zeros_like(size)
        for b in range(len(x)):
            full = size[b].minimum(room[b])
            count = min(int(eps[b]), len(full))
            choices = (
                [
                    torch.zeros_like(full).index_copy(0, torch.tensor(s), full[list(s)])
                    for s in itertools.combinations(range(len(full)), count)
                ]
                if count
                else [full * 0]
            )
            best[b] = min(choices, key=lambda c, b=b: float((c - size[b]).norm()))
    else:
        point = {
            "l2": lambda t: (size / (1 + t)).minimum(room),
            "l1": lambda t: (size - t).clamp_min(0).minimum(room),
        }[norm]
        length = {"l2": lambda c: c.norm(dim=1, keepdim=True), "l1": lambda c: c.sum(1, keepdim=True)}[norm]
        least, most = torch.zeros_like(eps), torch.full_like(eps, 1e12)
        for _ in range(400):
            middle = (least + most) / 2
            inside = length(point(middle)) <= eps
            least, most = torch.where(inside, least, middle), torch.where(inside, middle, most)
        best = torch.where(length(point(torch.zeros_like(eps))) <= eps, point(torch.zeros_like(eps)), point(most))
    return (x + best * change.sign()).view_as(case.x)


def spacing(x: Tensor) -> Tensor:
    """One unit in the last place of x's dtype at its size, float64."""
    info = torch.finfo(x.dtype)
    return (x.double().abs() * info.eps).clamp_min(info.tiny * info.eps)


def check_inside(case: Case, moved: Tensor) -> None:
    assert moved.dtype == case.x.dtype
    assert bool(moved.isfinite().all())
    if case.threat.bounds is not None:
        low, high = case.threat.bounds
        assert bool(((moved.double() >= low) & (moved.double() <= high)).all()) or (
            case.x.dtype == torch.float32  # the box's own ends as float32 has them
            and bool(((moved >= torch.tensor(low)) & (moved <= torch.tensor(high))).all())
        )
    assert torch.equal(moved[~case.mask], case.x[~case.mask])
    change = (moved.double() - case.wide).flatten(1)
    if case.threat.norm == "l0":
        assert bool(((change != 0).sum(1) <= case.eps).all())
    elif case.threat.norm == "linf":
        # half precision never leaves the ball (but x ± eps is computed in float32, which rounds to nearest)
        kind = torch.float32 if case.x.dtype in HALF else case.x.dtype
        slack = spacing(moved.to(kind)) + spacing(case.x.to(kind))
        assert bool((change.abs() <= case.eps[:, None] + slack.flatten(1)).all())
    else:
        length = change.norm(1 if case.threat.norm == "l1" else 2, dim=1)
        kind = torch.float32 if case.x.dtype in HALF else case.x.dtype
        assert bool((length <= case.eps * (1 + 40 * torch.finfo(kind).eps) + 60 * torch.finfo(kind).eps).all())


@given(cases())
def test_projection_is_inside_ball_box_and_mask(case: Case) -> None:
    before = case.x.clone(), case.candidate.clone()
    check_inside(case, case.threat.project(case.x, case.candidate))
    assert torch.equal(case.x, before[0])
    assert torch.equal(case.candidate, before[1])


@given(cases())
def test_projection_is_the_nearest_point(case: Case) -> None:
    moved, best = case.threat.project(case.x, case.candidate).double(), literal(case)
    if case.threat.norm == "l0":  # several subsets can be as near
        masked = torch.where(case.mask, case.candidate.double(), case.wide)
        ours, theirs = (moved - masked).flatten(1).norm(dim=1), (best - masked).flatten(1).norm(dim=1)
        close = 1e-2 if case.x.dtype in HALF else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
        return
    info = torch.finfo(case.x.dtype)
    # l2 and l1 in half precision aim a few units inside, so that rounding cannot leave the ball
    size = 60 if case.candidate.abs().max() > 10 else 6
    slack = size * info.eps if case.threat.norm != "linf" else 0.0
    tolerance = spacing(case.x) + spacing(best.to(case.x.dtype)) + slack * (1 + case.eps.max())
    assert bool(((moved - best).abs() <= tolerance).all()), float(((moved - best).abs() - tolerance).max())


@given(cases(norms=("linf", "l2", "l1")))
def test_no_feasible_point_is_nearer(case: Case) -> None:
    case = Case(case.threat, case.wide, case.candidate.double(), case.seed)
    moved = case.threat.project(case.x, case.candidate)
    wanted = torch.where(case.mask, case.candidate, case.x)
    reached = (moved - wanted).flatten(1).norm(dim=1)
    for draw in range(4):
        other = case.threat.random(case.x, Noise(case.seed, torch.arange(len(case.x))), draw)
        for part in (1.0, 0.1, 0.001):  # far, and right beside the answer: a convex set has no better neighbour
            point = moved + part * (other - moved)
            assert bool(((point - wanted).flatten(1).norm(dim=1) >= reached - 1e-9).all())


@given(cases())
def test_projection_is_idempotent(case: Case) -> None:
    once = case.threat.project(case.x, case.candidate)
    twice = case.threat.project(case.x, once)
    if case.threat.norm in ("linf", "l0"):
        assert torch.equal(once, twice)
    else:
        kind = torch.float64 if case.x.dtype == torch.float64 else torch.float32
        bound = 50 * torch.finfo(kind).eps * (1 + once.double().abs().max()) + 2 * spacing(once) * (
            case.x.dtype in HALF
        )
        assert bool(((once.double() - twice.double()).abs() <= bound).all())


@given(cases())
def test_random_points_are_inside(case: Case) -> None:
    noise = Noise(case.seed, torch.arange(len(case.x)))
    moved = case.threat.random(case.x, noise, "start", 0)
    check_inside(case, moved)
    assert torch.equal(moved, case.threat.random(case.x, noise, "start", 0))


@given(
    x=st.floats(-1, 1),
    eps=st.floats(0, 0.6),
    move=st.floats(-2, 2),
    dtype=st.sampled_from(HALF),
    low=st.sampled_from([-1.0, -0.3, 0.0]),
)
@example(
    x=0.03125, eps=0.03125 - 1e-8, move=-1.0, dtype=torch.float16, low=-1.0
)  # x − eps rounds to zero, which is outside
@example(x=0.0, eps=1e-8, move=1.0, dtype=torch.float16, low=-1.0)
@example(x=-0.25, eps=0.25, move=1.0, dtype=torch.bfloat16, low=-1.0)
def test_rounding_never_leaves_the_linf_ball(x: float, eps: float, move: float, dtype: torch.dtype, low: float) -> None:
    value = torch.tensor([[x]]).clamp_min(low).to(dtype)
    value = value.clamp_min(low) if value.double() >= low else value * 0
    moved = Linf(eps, bounds=(low, 1.0)).project(value, (value.float() + move).to(dtype))
    exact = min(max(value.item() + move, value.item() - eps, low), value.item() + eps, 1.0)
    change = abs(moved.item() - value.item())
    assert change <= eps + 2.0**-24  # the rounding of x ± eps in float32
    assert low <= moved.item() <= 1.0
    if abs(move) > eps:  # no more than two neighbours short of the exact point
        assert abs(moved.item() - exact) <= 2 * float(spacing(torch.tensor(exact).to(dtype)).maximum(spacing(value)))


@given(cases(norms=("linf", "l2", "l1")), st.integers(0, 100))
def test_steepest_step_has_unit_norm_and_grows_most(case: Case, seed: int) -> None:
    threat = Threat(case.threat.norm, case.threat.eps, None, case.threat.mask).for_inputs(case.x)
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(case.x.shape, generator=generator, dtype=torch.float64) * 10.0 ** (seed % 40 - 20)
    gradient = gradient * case.mask
    gradient[0] = gradient[0] * (seed % 3 > 0)  # sometimes nothing to follow
    x = case.wide
    step = threat.steepest(gradient, x, sparsity=0.999)  # l1: one entry, the exact maximum
    length = threat.size(torch.zeros_like(step), step)
    present = gradient.flatten(1).abs().amax(1) > 0
    torch.testing.assert_close(length, present.double(), rtol=1e-12, atol=0)
    inner = (step * gradient).flatten(1).sum(1)
    dual = gradient.flatten(1).norm({"linf": 1, "l2": 2, "l1": math.inf}[threat.norm], dim=1)
    torch.testing.assert_close(inner, dual, rtol=1e-9, atol=0)  # Hölder's inequality, met with equality


def test_l1_step_spends_its_length_where_the_box_lets_it() -> None:
    threat = Threat("l1", 1.0)
    x, gradient = torch.tensor([[1.0, 0.1, 0.5, 0.5, 0.5]]), torch.tensor([[9.0, -8.0, 2.0, -1.0, 0.0]])
    # nothing left for the first, 0.1 for the second, up to 0.5 for the third, the rest for the fourth
    step = threat.steepest(gradient, x, sparsity=0.8, length=0.8) * 0.8
    torch.testing.assert_close(step, torch.tensor([[0.0, -0.1, 0.5, -0.2, 0.0]]))
    # shared by two entries: no entry gets more than half
    step = threat.steepest(gradient, x, sparsity=0.6, length=torch.tensor([0.4])) * 0.4
    torch.testing.assert_close(step, torch.tensor([[0.0, -0.1, 0.2, -0.1, 0.0]]))


class Solves(TorchFunctionMode):
    """Counts the points that a projection tries."""

    tried = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.tried += func is torch.minimum
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_l1_solution_is_found_soon_however_small_the_ball(dtype: torch.dtype) -> None:
    """Above the largest change the sum is flat, and there Newton's method would walk back by eps a step."""
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        size = 3 * torch.randn(32, 60, generator=generator, dtype=dtype).abs()
        room = torch.rand(32, 60, generator=generator, dtype=dtype)
        with Solves() as mode:
            moved = project_l1(size, room, 1e-6)
        assert mode.tried < 80
        assert bool((moved.sum(1) <= 1e-6 + 4 * torch.finfo(dtype).eps * size.amax(1)).all())


def test_l1_and_l2_random_points_fill_the_ball() -> None:
    """Uniform in D dimensions: the part within r·eps is r^D."""
    x = torch.zeros(4000, 3, dtype=torch.float64)
    noise = Noise(0, torch.arange(4000))
    for norm in ("l2", "l1"):
        threat = Threat(norm, 2.0, None)
        length = threat.size(x, threat.random(x, noise, "start")) / 2.0
        for radius in (0.3, 0.5, 0.8, 0.95):
            assert float((length <= radius).double().mean()) == pytest.approx(radius**3, abs=0.03)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_random_start_under_a_mask_fills_the_ball_that_is_left(norm: str) -> None:
    """Two free entries of 1,000: were the other 998 drawn too, the start would hardly move."""
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[[3, 500]] = True
    x = torch.zeros(2000, 1000, dtype=torch.float64)
    threat = Threat(norm, 1.0, None, mask).for_inputs(x)
    length = threat.size(x, threat.random(x, Noise(1, torch.arange(2000)), "start"))
    for radius in (0.3, 0.6, 0.9):
        assert float((length <= radius).double().mean()) == pytest.approx(radius**2, abs=0.04)


def test_l0_keeps_the_entries_that_bring_most() -> None:
    x = torch.tensor([[0.9, 0.5, 0.5, 0.1]])
    moved = L0(2).project(x, torch.tensor([[5.0, 0.9, 0.4, 0.35]]))  # the first has 0.1 of room, but gains most
    assert torch.equal(moved, torch.tensor([[1.0, 0.9, 0.5, 0.1]]))
