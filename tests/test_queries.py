"""Attacks without gradients: Square against a literal one, both against closed forms, and what they promise about queries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from networks import SHAPES, Counting, RowWise, best_linear_change, direction, inputs, linear, mlp
from sparring.attacks.square import _sizes, bumps
from sparring.noise import Noise
from sparring.threat import Threat

EPS = {"linf": 0.1, "l2": 0.5}


def labelled(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def right(shape: tuple[int, ...], count: int, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    model, x = linear(shape, seed=seed), inputs(count, shape, seed=seed)[0]
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def literal_square(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The published linf attack, one sample (3, 4, 5) and one pixel at a time, from the same random draws."""
    found, values = x.clone(), torch.zeros(len(x), dtype=x.dtype)
    for n in range(len(x)):
        noise = Noise(seed, torch.tensor([n]))
        none = torch.zeros(1, dtype=torch.int64)
        stripes = noise.sign((3, 1, 5), "stripes", none, like=x)[0]

        def value(point: Tensor, n: int = n) -> Tensor:
            logits = model(point[None])[0]
            others = torch.cat([logits[: y[n]], logits[y[n] + 1 :]])
            return others.max() - logits[y[n]]

        best = (x[n] + eps * stripes).clamp(0, 1)
        most = value(best)
        for query in range(1, queries):
            share = (query - 1) * 10_000 // queries
            area = 0.8 / 2 ** sum(share > past for past in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)) * 20
            side = min(max(round(area**0.5), 1), 4)
            broad = min(max(round(area / side), 1), 5) if side == 4 else side
            draw = noise.bits((8,), "window", none, torch.tensor([query]))[0].tolist()
            place = [(d >> 1) & ((1 << 62) - 1) for d in draw]
            top, left = place[0] % (5 - side), place[1] % (6 - broad)
            for flip in (1, -1):
                point = best.clone()
                for channel in range(3):
                    sign = (1 if draw[5 + channel] >= 0 else -1) * flip
                    for i in range(top, top + side):
                        for j in range(left, left + broad):
                            point[channel, i, j] = min(max(float(x[n, channel, i, j]) + sign * eps, 0.0), 1.0)
                if not torch.equal(point, best):  # a window that changes nothing gets the opposite signs
                    break
            if value(point) > most:
                best, most = point, value(point)
        found[n], values[n] = best, most
    return found, values


def test_square_is_the_published_search() -> None:
    model, x, y = labelled(RowWise(SHAPES[4], seed=1), inputs(4, SHAPES[4], seed=1)[0])
    with torch.no_grad():
        expected, values = literal_square(model, x, y, 0.05, 60, seed=7)
    found = sp.Square(sp.Linf(0.05), queries=60)(model, x, y, seed=7)
    assert torch.allclose(found.objective, values, rtol=0, atol=1e-12)
    assert torch.allclose(found.x[~found.success], expected[~found.success], rtol=0, atol=1e-12)


# under l2 the windows are bumps of three entries or more, so that few entries are as coarse as it gets
@pytest.mark.parametrize(
    ("norm", "rank", "part"),
    [("linf", 2, 0.98), ("linf", 3, 0.98), ("linf", 4, 0.98), ("l2", 2, 0.8), ("l2", 3, 0.7)],
)
def test_square_nears_the_best_change_of_a_linear_model(norm: str, rank: int, part: float) -> None:
    model, x, y = right(SHAPES[rank], 4)
    eps, gradient, flat = EPS[norm], direction(model, y), x.flatten(1)
    best = best_linear_change(norm, gradient, flat, eps, (0.0, 1.0))
    with torch.no_grad():
        z = model(x)
    lead = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
    found = sp.Square(Threat(norm, eps), queries=500)(model, x, y)
    gained = found.objective + lead
    assert bool((gained <= (best * gradient).sum(1) + 1e-9).all())
    assert float((gained / (best * gradient).sum(1)).min()) >= part


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 1.0), st.sampled_from([1, 3]))
def test_windows_fit_and_shrink(height: int, width: int, p_init: float, least: int) -> None:
    sizes = _sizes(height, width, p_init, least)
    assert bool((sizes >= 1).all())
    assert bool((sizes <= torch.tensor([height, width])).all())
    area = sizes.prod(1)
    assert bool((area.diff() <= 0).all())
    assert int(area[0]) <= max(1.6 * p_init * height * width, min(height, least) * min(width, least), 1)


def test_bumps_have_length_one_and_opposite_halves() -> None:
    for height, width in ((3, 3), (4, 7), (8, 8)):
        bump = bumps(height, width, 0)
        assert float(bump.norm()) == pytest.approx(1)
        assert bool((bump[: height // 2] > 0).all())
        assert bool((bump[height // 2 :] < 0).all())
        assert torch.equal(bumps(height, width, 1), bumps(width, height, 0).T)


@pytest.mark.parametrize("norm", EPS)
def test_square_reaches_every_entry(norm: str) -> None:
    """Also the last row and column, to which a margin of one window would leave no way."""
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1).double()

    x = torch.full((2, 1, 6, 7), 0.5, dtype=torch.float64)
    sp.Square(Threat(norm, 0.1), queries=200)(model, x, torch.zeros(2, dtype=torch.int64))
    asked = torch.cat([point for point in seen if len(point) == 2]).view(-1, 2, 1, 6, 7)
    assert bool((asked[1:] != asked[:1]).any(0).all())


@pytest.mark.parametrize("attack", [sp.Square, sp.HopSkipJump])
@pytest.mark.parametrize("norm", EPS)
def test_float64_results_do_not_depend_on_the_batch(attack: Any, norm: str) -> None:
    model, (x, _) = RowWise(SHAPES[4], seed=3), inputs(11, SHAPES[4], seed=3)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3  # some are wrong to begin with
    made, index = attack(Threat(norm, 0.05), queries=90, stop_when_fooled=True), torch.arange(11)
    whole = made(model, x, y, seed=5)
    parts = [made(model, x[rows], y[rows], indices=rows, seed=5) for rows in index.flip(0).split(4)]
    assert torch.equal(torch.cat([part.x for part in parts]).flip(0), whole.x)
    assert torch.equal(torch.cat([part.success for part in parts]).flip(0), whole.success)
    assert sum(part.forwards for part in parts) == whole.forwards
    if norm == "l2":
        return
    run = [
        sp.evaluate(model, (x, y), Threat(norm, 0.05), attacks=[made], seed=5, batch_size=size, progress=False)
        for size in (2, 11)
    ]
    assert run[0].robust_accuracy == run[1].robust_accuracy


@pytest.mark.parametrize("norm", EPS)
def test_queries_are_counted_and_kept_to(norm: str) -> None:
    model, x, y = right(SHAPES[4], 5)
    counted = Counting(model)
    found = sp.Square(Threat(norm, 1e-4), queries=40, restarts=2)(counted, x, y)
    assert (counted.forwards, counted.backwards) == (found.forwards, found.backwards) == (5 * 80, 0)
    counted = Counting(model)
    walk = sp.HopSkipJump(Threat(norm, math.inf), queries=300)(counted, x, y)
    assert 5 * 250 < counted.forwards == walk.forwards <= 5 * 300
    assert counted.backwards == 0
    wrong = sp.HopSkipJump(Threat(norm, math.inf), queries=300)(model, x, 1 - y)
    assert wrong.forwards == 5
    assert bool((wrong.norm == 0).all())


@pytest.mark.parametrize("attack", [sp.Square, sp.HopSkipJump])
def test_samples_leave_at_their_first_success(attack: Any) -> None:
    model, x, y = labelled(RowWise(SHAPES[4], seed=3), inputs(6, SHAPES[4], seed=3)[0])
    threat = sp.L2(0.5)
    whole = attack(threat, queries=150)(model, x, y)
    left = attack(threat, queries=150, stop_when_fooled=True)(model, x, y)
    assert torch.equal(whole.success, left.success)
    assert bool(left.success.any())
    assert left.forwards < whole.forwards
    assert bool((threat.size(x, left.x)[left.success] <= 0.5 + 1e-9).all())


@pytest.mark.parametrize(("norm", "least"), [("l2", 1.05), ("linf", 1.25)])
@pytest.mark.parametrize("rank", SHAPES)
def test_hopskipjump_nears_the_boundary_of_a_linear_model(norm: str, least: float, rank: int) -> None:
    model, x, y = right(SHAPES[rank], 3)
    with torch.no_grad():
        z = model(x)
    lead = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
    exact = lead / direction(model, y).norm({"l2": 2, "linf": 1}[norm], dim=1)
    found = sp.HopSkipJump(Threat(norm, math.inf, None), queries=2500)(model, x, y)
    assert bool(found.success.all())
    assert bool((found.norm >= exact * (1 - 1e-9)).all())
    assert float((found.norm / exact).median()) <= least
    assert torch.allclose(found.norm, Threat(norm, math.inf).size(x, found.x))


def test_hopskipjump_asks_for_decisions_only() -> None:
    model, x, y = labelled(mlp(SHAPES[4]), inputs(5, SHAPES[4])[0])
    attack = sp.HopSkipJump(sp.L2(math.inf), queries=300)
    decisions = sp.from_labels(lambda z: model(z).argmax(1), classes=4)
    assert torch.equal(attack(decisions, x, y).x, attack(model, x, y).x)


def test_hopskipjump_begins_at_the_example_given_and_heads_for_targets() -> None:
    model, x, y = labelled(mlp(SHAPES[4]), inputs(40, SHAPES[4])[0])
    with torch.no_grad():
        target = (y[:1] + 1) % 4 if bool((y == (y[0] + 1) % 4).any()) else y[y != y[0]][:1]
        example = x[(model(x).argmax(1) == target)][:1]
    some = x[:1]
    found = sp.HopSkipJump(sp.L2(math.inf), queries=400)(model, some, y[:1], target, start=example)
    assert bool(found.success.all())
    assert torch.equal(found.prediction, target)
    assert float(found.norm) < float((example - some).norm())
    few = sp.HopSkipJump(sp.L2(math.inf), queries=2)(model, some, y[:1], target, start=example)
    assert torch.equal(few.x, example)


def test_nothing_found_is_the_input_at_a_norm_of_inf() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1).double()

    x, _ = inputs(3, SHAPES[3])
    found = sp.HopSkipJump(sp.L2(math.inf), queries=60)(model, x, torch.zeros(3, dtype=torch.int64))
    assert not bool(found.success.any())
    assert bool(found.norm.isinf().all())
    assert torch.equal(found.x, x)


@pytest.mark.parametrize("attack", [sp.Square, sp.HopSkipJump])
@pytest.mark.parametrize("norm", EPS)
def test_half_precision_masks_and_the_box(attack: Any, norm: str) -> None:
    model = mlp(SHAPES[4], dtype=torch.float32)
    x, _ = inputs(5, SHAPES[4], dtype=torch.float16)
    with torch.no_grad():
        y = model(x.float()).argmax(1)
    mask = torch.zeros(SHAPES[4], dtype=torch.bool)
    mask[:, :3] = True
    seen = []

    def half(z: Tensor) -> Tensor:
        seen.append(z)
        return model(z.float()).half()

    found = attack(Threat(norm, 0.3, mask=mask), queries=150)(half, x, y)
    asked = torch.cat(seen)
    assert asked.dtype == found.x.dtype == torch.float16
    assert bool(((asked >= 0) & (asked <= 1)).all())
    assert bool(((found.x == x) | mask).all())
    size = Threat(norm, 0.3).size(x.double(), found.x.double())
    assert bool((size[found.success] <= 0.3 + (1e-3 if attack is sp.HopSkipJump else 0)).all())
    each = mask.expand(5, *SHAPES[4]).contiguous()
    assert torch.equal(attack(Threat(norm, 0.3, mask=each), queries=150)(half, x, y).x, found.x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.Square(sp.L1(1.0)), "Square has no form for l1"),
        (lambda: sp.Square(sp.Linf(0.1), queries=0), r"Square\(queries=0\): expected a whole number, at least 1"),
        (lambda: sp.Square(sp.Linf(0.1), p_init=0.0), r"p_init=0.0\): expected a number above 0, at most 1"),
        (lambda: sp.Square(sp.Linf(math.inf)), "eps"),
        (lambda: sp.Square(sp.Linf(0.1), start="noise"), "expected 'stripes' or 'given'"),
        (lambda: sp.HopSkipJump(sp.L1(1.0)), "HopSkipJump has no form for l1"),
        (lambda: sp.HopSkipJump(sp.L2(1.0), queries=0), "expected a whole number, at least 1"),
        (lambda: sp.HopSkipJump(sp.L2(1.0), estimates=0), "expected a whole number, at least 1"),
    ],
)
def test_bad_settings_get_one_clear_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_square_given_needs_something_given() -> None:
    model, x, y = right(SHAPES[2], 2)
    with pytest.raises(ValueError, match="the call gave no start"):
        sp.Square(sp.Linf(0.1), queries=5, start="given")(model, x, y)
