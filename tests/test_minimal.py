"""Searches for the smallest perturbation: closed forms on linear models, and what every search promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sparring as sp
from networks import SHAPES, RowWise, direction, inputs, linear, mlp
from sparring.attacks.minimal import MinimalAttack
from sparring.threat import Threat

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
ORDER = {"linf": math.inf, "l2": 2}
# each attack, the norms it has, and how far above the exact distance it may end on a linear model
ATTACKS: dict[str, tuple[type[MinimalAttack], dict[str, Any], dict[str, float]]] = {
    "FMN": (sp.FMN, {"steps": 100}, {"linf": 1.001, "l2": 1.001, "l1": 1.02}),
    "DDN": (sp.DDN, {"steps": 100}, {"l2": 1.02}),
    "CarliniWagner": (sp.CarliniWagner, {"steps": 450}, {"l2": 1.06}),
    "DeepFool": (sp.DeepFool, {}, {"l2": 1.0201, "linf": 1.0201}),
}
# where the way matters and not its end
FEW = {"FMN": {"steps": 20}, "DDN": {"steps": 20}, "CarliniWagner": {"steps": 180, "lr": 0.2}, "DeepFool": {}}
CASES = [(name, norm) for name, (_, _, ratios) in ATTACKS.items() for norm in ratios]


def made(name: str, threat: Threat, **more: Any) -> MinimalAttack:
    attack, settings, _ = ATTACKS[name]
    return attack(threat, **{**settings, **more})


def distance(model: torch.nn.Sequential, x: Tensor, y: Tensor, norm: str, bounds: Any) -> Tensor:
    """(B,) exact: by how much a linear two-class model must be moved, inside a box too."""
    with torch.no_grad():
        z = model(x)
    lead = z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])
    gradient, flat = direction(model, y), x.flatten(1)
    if bounds is None:
        return lead.squeeze(1) / gradient.norm(DUAL[norm], dim=1)
    steep, room = gradient.abs(), torch.where(gradient > 0, bounds[1] - flat, flat - bounds[0])
    if (
        norm == "l1"
    ):  # the steepest entries first, each to the end of its room, but the last one no further than it takes
        order = steep.argsort(1, descending=True)
        steep, room = steep.gather(1, order), room.gather(1, order)
        before = (steep * room).cumsum(1) - steep * room
        return torch.minimum(room, ((lead - before) / steep).clamp_min(0)).sum(1)
    shape = steep if norm == "l2" else torch.ones_like(steep)  # the best change is a multiple of it, cut off at the box
    low, high = torch.zeros_like(lead), torch.full_like(lead, 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        enough = (steep * torch.minimum(middle * shape, room)).sum(1, keepdim=True) >= lead
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.minimum(high * shape, room).norm(ORDER[norm], dim=1)


def right(shape: tuple[int, ...], count: int, seed: int = 0, classes: int = 2) -> tuple[Any, Tensor, Tensor]:
    model, (x, _) = linear(shape, classes, seed=seed), inputs(count, shape, seed=seed)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)], ids=["free", "box"])
def test_distance_to_the_boundary_of_a_linear_model(name: str, norm: str, bounds: Any) -> None:
    least = ATTACKS[name][2][norm]
    for rank, count in ((2, 1), (3, 3), (4, 8)):
        model, x, y = right(SHAPES[rank], count)
        exact = distance(model, x, y, norm, bounds)
        found = made(name, Threat(norm, math.inf, bounds))(model, x, y)
        assert bool(found.success.all())
        ratio = found.norm / exact
        assert bool((ratio >= 1 - 1e-9).all())
        assert float(ratio.max()) <= least
        assert torch.allclose(found.norm, Threat(norm, math.inf).size(x, found.x))
        if bounds is not None:
            assert bool(((found.x >= 0) & (found.x <= 1)).all())


def test_l0_finds_the_fewest_entries_of_a_linear_model() -> None:
    model, x, y = right(SHAPES[4], 8)
    with torch.no_grad():
        z = model(x)
    lead = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
    gradient, flat = direction(model, y), x.flatten(1)
    gain = torch.where(gradient > 0, gradient * (1 - flat), -gradient * flat).sort(1, descending=True).values.cumsum(1)
    fewest = (gain <= lead[:, None]).sum(1) + 1
    found = sp.FMN(sp.L0(math.inf), steps=200)(model, x, y)
    assert bool(found.success.all())
    assert bool((found.norm >= fewest).all())
    assert bool((found.norm <= fewest + 1).all())


@pytest.mark.parametrize(("name", "norm"), [*CASES, ("FMN", "l0")])
def test_float64_results_do_not_depend_on_the_batch(name: str, norm: str) -> None:
    model, (x, _) = RowWise(SHAPES[4], seed=3), inputs(13, SHAPES[4], seed=3)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3  # some are wrong to begin with
    more = {"steps": 40} if name != "DeepFool" else {}
    attack, index = made(name, Threat(norm, math.inf), **more), torch.arange(13)
    whole = attack(model, x, y)
    parts = [attack(model, x[rows], y[rows], indices=rows) for rows in index.flip(0).split(5)]
    joined = torch.cat([part.x for part in parts]).flip(0)
    assert torch.allclose(joined, whole.x, rtol=1e-9, atol=1e-10)
    assert torch.equal(torch.cat([part.success for part in parts]).flip(0), whole.success)
    assert sum(part.forwards for part in parts) == whole.forwards
    assert sum(part.backwards for part in parts) == whole.backwards
    assert bool((whole.norm[::4] == 0).all())
    assert torch.equal(whole.x[::4], x[::4])


@pytest.mark.parametrize(
    ("name", "norm"), [("FMN", "l2"), ("FMN", "linf"), ("FMN", "l1"), ("FMN", "l0"), ("DDN", "l2")]
)
def test_k_steps_cost_k_backwards_and_one_forward_more(name: str, norm: str) -> None:
    model, x, y = right(SHAPES[3], 5)
    found = made(name, Threat(norm, math.inf), steps=7)(model, x, y)
    assert (found.forwards, found.backwards) == (8 * 5, 7 * 5)
    wrong = made(name, Threat(norm, math.inf), steps=7)(model, x, 1 - y)
    assert (wrong.forwards, wrong.backwards) == (5, 5)
    assert bool((wrong.norm == 0).all())


def test_deepfool_counts_a_backward_for_each_rival() -> None:
    model, x, y = right(SHAPES[2], 4, classes=6)
    for rivals, counted in ((3, 3), (9, 5)):
        found = sp.DeepFool(sp.L2(math.inf, bounds=None), rivals=rivals)(model, x, y)
        assert (found.forwards, found.backwards) == (2 * 4, 2 * 4 * counted)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_goes_for_the_nearest_of_several_boundaries(norm: str) -> None:
    model, x, y = right(SHAPES[4], 8, classes=7)
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    lead = (x.flatten(1) @ weight.T + bias).gather(1, y[:, None]) - (x.flatten(1) @ weight.T + bias)
    steep = (weight[y][:, None] - weight[None]).norm(DUAL[norm], dim=2)
    exact = (lead / steep).scatter(1, y[:, None], torch.inf)
    found = sp.DeepFool(Threat(norm, math.inf, None), overshoot=1e-6)(model, x, y)
    assert torch.equal(found.prediction, exact.argmin(1))
    assert torch.allclose(found.norm, exact.amin(1), rtol=1e-5)


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[0] != "DeepFool"])
def test_targets_are_hit_at_the_distance_of_their_region(name: str, norm: str) -> None:
    model, x, y = right(SHAPES[3], 6, classes=2)
    targets = 1 - y
    found = made(name, Threat(norm, math.inf))(model, x, y, targets)
    assert torch.equal(found.prediction, targets)
    exact = distance(model, x, y, norm, (0.0, 1.0))
    assert float((found.norm / exact).max()) <= ATTACKS[name][2][norm]
    many = mlp(SHAPES[3], 5)
    with torch.no_grad():
        clean = many(x).argmax(1)
    aimed = made(name, Threat(norm, math.inf))(many, x, clean, (clean + 2) % 5)
    assert bool((aimed.prediction[aimed.success] == (clean + 2)[aimed.success] % 5).all())
    assert bool(aimed.success.any())
    assert bool(aimed.norm[~aimed.success].isinf().all())
    assert torch.equal(aimed.x[~aimed.success], x[~aimed.success])


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_eps_says_what_a_success_is_and_holds_nothing_back(name: str, norm: str) -> None:
    model, x, y = right(SHAPES[4], 8)
    free = made(name, Threat(norm, math.inf), **FEW[name])(model, x, y)
    eps = float(free.norm.median())
    held = made(name, Threat(norm, eps), **FEW[name])(model, x, y)
    assert torch.equal(held.norm, free.norm)
    assert torch.equal(held.success, free.norm <= eps)
    stopped = made(name, Threat(norm, eps), **FEW[name], stop_when_fooled=True)(model, x, y)
    assert torch.equal(stopped.success, held.success)
    assert stopped.backwards < held.backwards or name == "DeepFool"


def test_nothing_found_is_the_input_at_a_norm_of_inf() -> None:
    model = linear(SHAPES[2])
    model[1].bias.data[0] = 1e4  # nothing in the box is of class 1
    x, _ = inputs(4, SHAPES[2])
    y = torch.zeros(4, dtype=torch.int64)
    for name, norm in CASES:
        found = made(name, Threat(norm, math.inf), **FEW[name])(model, x, y)
        assert not bool(found.success.any())
        assert bool(found.norm.isinf().all())
        assert torch.equal(found.x, x)
        assert torch.equal(found.prediction, y)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_half_precision_and_masks(name: str, norm: str) -> None:
    model, (x, _) = mlp(SHAPES[4], dtype=torch.float32), inputs(6, SHAPES[4], dtype=torch.float32)
    with torch.no_grad():
        y = model(x.half().float()).argmax(1)

    def half(z: Tensor) -> Tensor:
        return model(z.float()).half()

    found = made(name, Threat(norm, math.inf), **FEW[name])(half, x.half(), y)
    assert found.x.dtype == torch.float16
    assert bool(found.success.any())
    mask = torch.zeros(SHAPES[4], dtype=torch.bool)
    mask[:, :2] = True
    masked = made(name, Threat(norm, math.inf, mask=mask), **FEW[name])(model, x, y)
    assert bool(masked.success.any())
    assert bool(((masked.x == x) | mask).all())
    each = mask.expand(6, *SHAPES[4]).contiguous()
    assert torch.equal(made(name, Threat(norm, math.inf, mask=each), **FEW[name])(model, x, y).x, masked.x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.DDN(sp.Linf(0.1)), "DDN has no form for linf: expected l2"),
        (lambda: sp.CarliniWagner(sp.L1(1.0)), "CarliniWagner has no form for l1"),
        (lambda: sp.DeepFool(sp.L1(1.0)), "DeepFool has no form for l1: expected linf, l2"),
        (lambda: sp.DeepFool(sp.L2(1.0), targets="second"), "it has no targeted form"),
        (lambda: sp.FMN(sp.L2(1.0), gamma=1.5), r"FMN\(gamma=1.5\): expected a number between 0 and 1"),
        (lambda: sp.CarliniWagner(sp.L2(1.0), steps=3, search_steps=9), "a step for each"),
        (lambda: sp.CarliniWagner(sp.L2(1.0), lr=0.0), r"lr=0.0\): expected a number above 0"),
    ],
)
def test_bad_settings_get_one_clear_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_deepfool_refuses_targets_of_the_call() -> None:
    model, x, y = right(SHAPES[2], 2)
    with pytest.raises(ValueError, match="no targeted form"):
        sp.DeepFool(sp.L2(math.inf))(model, x, y, 1 - y)
