"""The adversarial patch: where it lies, how it is pasted, that gradients come back through it, and that it fools."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.learned import placement as placing
from sparring.learned.placement import Footprint, Placement
from sparring.noise import Noise

PLAIN = Footprint(4, 6, round=False, rotation=0.0, scale=(1.0, 1.0))


def at(row: float, column: float, angle: float = 0.0, scale: float = 1.0, many: int = 1) -> Placement:
    centre = torch.tensor([[row, column]], dtype=torch.float64).repeat(many, 1)
    turn, size = (torch.full((many,), v, dtype=torch.float64) for v in (math.radians(angle), scale))
    return Placement(centre, turn, size)


def noise_of(count: int, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(count))


def texture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_upright_and_at_scale_one_it_is_pasted_as_it_is() -> None:
    x, patch = texture(1, 3, 11, 9), texture(3, 4, 6, seed=1)
    expected = x.clone()
    expected[0, :, 5:9, 2:8] = patch
    torch.testing.assert_close(placing.pasted(x, patch, PLAIN, at(7, 5)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns(turns: int) -> None:
    """A positive angle turns columns towards rows: clockwise on a picture whose rows go down."""
    x, patch = texture(1, 3, 11, 9), texture(3, 4, 4, seed=1)
    square = Footprint(4, 4, round=False, rotation=180.0, scale=(1.0, 1.0))
    expected = x.clone()
    expected[0, :, 5:9, 2:6] = patch.rot90(-turns, (1, 2))
    found = placing.pasted(x, patch, square, at(7, 4, 90.0 * turns))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_scale_two_is_bilinear_and_twice_as_large() -> None:
    x, patch = torch.zeros(1, 1, 12, 14, dtype=torch.float64), texture(1, 4, 6, seed=1) + 0.1
    found = placing.pasted(x, patch, PLAIN, at(6, 7, scale=2.0))
    expected = x.clone()
    expected[0, :, 2:10, 1:13] = F.interpolate(patch[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_ellipse_covers_what_lies_in_it() -> None:
    x, patch = torch.zeros(1, 1, 20, 20, dtype=torch.float64), torch.ones(1, 9, 15, dtype=torch.float64)
    found = placing.pasted(x, patch, replace(PLAIN, height=9, width=15, round=True), at(10, 10))[0, 0]
    rows, columns = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    expected = ((rows - 10) / 4.5) ** 2 + ((columns - 10) / 7.5) ** 2 <= 1
    assert torch.equal(found == 1, expected)


@pytest.mark.parametrize("round_", [True, False])
def test_gradients_come_back_through_every_placement(round_: bool) -> None:
    footprint = Footprint(3, 4, round_, rotation=60.0, scale=(0.7, 1.6))
    x, patch = texture(5, 2, 9, 12), texture(2, 3, 4, seed=1).requires_grad_(True)
    where = placing.random(footprint, (9, 12), noise_of(5), 0)
    assert torch.autograd.gradcheck(lambda p: placing.pasted(x, p, footprint, where), (patch,))


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    round_=st.booleans(),
    rotation=st.floats(0, 180),
    low=st.floats(0.5, 1.0),
    high=st.floats(1.0, 1.5),
    size=st.tuples(st.integers(15, 24), st.integers(15, 24)),
    seed=st.integers(0, 1000),
)
def test_placements_lie_inside_and_cover_no_more_than_said(
    h: int, w: int, round_: bool, rotation: float, low: float, high: float, size: tuple[int, int], seed: int
) -> None:
    footprint = Footprint(h, w, round_, rotation, (low, high))
    where = placing.random(footprint, size, noise_of(16, seed), 0)
    assert bool((where.angle.abs() <= math.radians(rotation)).all())
    assert bool(((where.scale >= low - 1e-9) & (where.scale <= high + 1e-9)).all())
    large = torch.zeros(16, 1, size[0] + 8, size[1] + 8, dtype=torch.float64)
    moved = Placement(where.centre + 4, where.angle, where.scale)
    covered = placing.pasted(large, torch.ones(1, h, w, dtype=torch.float64), footprint, moved)[:, 0] > 0
    inner = covered[:, 4:-4, 4:-4]
    assert int(covered.sum()) == int(inner.sum())  # nothing sticks out
    assert int(inner.flatten(1).sum(1).max()) <= footprint.most_pixels
    box = footprint.extent(where.angle.cos(), where.angle.sin(), where.scale)
    for found, most in zip(box, footprint.most_extent):
        assert float(found.max()) <= most + 1e-6


def test_every_pixel_is_reached_about_as_often_as_geometry_says() -> None:
    where = placing.random(PLAIN, (9, 14), noise_of(4000), 0)
    covered = placing.pasted(torch.zeros(4000, 1, 9, 14), torch.ones(1, 4, 6), PLAIN, where)[:, 0].mean(0)
    rows = torch.tensor([min(i + 1, 9 - i, 4, 6) for i in range(9)]) / 6
    columns = torch.tensor([min(j + 1, 14 - j, 6, 9) for j in range(14)]) / 9
    torch.testing.assert_close(covered, rows[:, None] * columns, rtol=0, atol=0.04)


def test_placements_go_with_the_sample() -> None:
    footprint = Footprint(3, 4, True, 45.0, (0.8, 1.2))
    whole = placing.random(footprint, (12, 10), noise_of(6), 0)
    part = placing.random(footprint, (12, 10), Noise(0, torch.tensor([4, 2])), 0)
    for a, b in zip((whole.centre, whole.angle, whole.scale), (part.centre, part.angle, part.scale)):
        assert torch.equal(a[[4, 2]], b)
    other = placing.random(footprint, (12, 10), noise_of(6), 1)
    assert not torch.equal(whole.angle, other.angle)


class Stripes(nn.Module):
    """Finds stripes: class 0 upright ones, class 1 level ones, class 2 a checkerboard, wherever they show most."""

    kernels: Tensor

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        line = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
        flat = torch.ones(5)
        patterns = torch.stack([flat[:, None] * line, line[:, None] * flat, line[:, None] * line])
        self.register_buffer("kernels", patterns[:, None].repeat(1, channels, 1, 1) / channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x - 0.5, self.kernels.to(x)).flatten(2).amax(2)


def stripes(count: int, size: tuple[int, int], channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Grey images with some noise, and faint upright or level stripes all over."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=generator)
    rows = torch.arange(size[0])[:, None] % 2 + torch.zeros(size)
    columns = torch.arange(size[1]) % 2 + torch.zeros(size)
    pattern = torch.where((y == 0)[:, None, None], columns, rows)[:, None]
    noise = 0.1 * torch.rand((count, channels, *size), generator=generator)
    return (0.3 + 0.3 * pattern + noise).double(), y


@pytest.mark.parametrize(("channels", "size", "target"), [(1, (20, 26), None), (3, (22, 18), 2)])
def test_fools_held_out_images_where_a_random_patch_does_not(
    channels: int, size: tuple[int, int], target: int | None
) -> None:
    model = Stripes(channels)
    x, y = stripes(120, size, channels)
    assert torch.equal(model(x).argmax(1), y)
    attack = sp.AdversarialPatch((channels, 9, 9), rotation=10.0, scale=(0.95, 1.05), target=target)
    found = attack.fit(model, (x[:60], y[:60]), steps=60, batch_size=20)
    held = (x[60:], y[60:])
    assert found.fooling_rate(model, held).value > 0.7
    random = replace(found, pattern=texture(channels, 9, 9, seed=5).round())
    assert random.fooling_rate(model, held).value < 0.3
    assert found.pattern is not None
    assert float(found.pattern.min()) >= 0
    assert float(found.pattern.max()) <= 1


def fitted(model: nn.Module, x: Tensor, y: Tensor, **fields: Any) -> sp.AdversarialPatch:
    return sp.AdversarialPatch((3, 5, 5), **fields).fit(model, (x, y), steps=8, batch_size=10)


def small() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = stripes(30, (12, 15), 3)
    return Stripes(3), x, y


def test_a_call_pastes_and_tells() -> None:
    model, x, y = small()
    found = fitted(model, x, y)
    adversarial = found(model, x, y, seed=4)
    expected = found.patched(x, seed=4)
    assert torch.equal(adversarial.x, expected)
    assert torch.equal(adversarial.success, model(expected).argmax(1) != y)
    changed = (expected != x).flatten(1).sum(1)
    assert torch.equal(adversarial.norm, changed.double())
    assert int(changed.max()) <= found.threat.eps
    assert (adversarial.forwards, adversarial.backwards) == (30, 0)
    for batch in (1, 7):
        pieces = [
            found(model, x[i : i + batch], y[i : i + batch], indices=torch.arange(30)[i : i + batch], seed=4).x
            for i in range(0, 30, batch)
        ]
        torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=1e-12)


def test_restarts_are_the_placements_of_over_placements() -> None:
    model, x, y = small()
    found = fitted(model, x, y, restarts=6)
    rates = found.over_placements(model, (x, y), placements=6)
    adversarial = found(model, x, y)
    assert adversarial.forwards == 6 * 30
    assert rates.some.count == int(adversarial.success.sum())
    once = replace(found, restarts=1)(model, x, y).success
    assert rates.each[0] == pytest.approx(float(once.double().mean()))
    assert rates.each[0] == pytest.approx(found.fooling_rate(model, (x, y)).value)
    assert rates.every.count / 30 <= min(rates.each) <= rates.mean <= max(rates.each) <= rates.some.value
    assert len(rates.each) == 6


def test_evaluate_runs_it_at_any_batch_size() -> None:
    model, x, y = small()
    found = fitted(model, x, y, restarts=3)
    expected = int((~found(model, x, y).success).sum())
    for batch_size in (4, 30):
        result = sp.evaluate(model, (x, y), found.threat, attacks=[found], batch_size=batch_size)
        (row,) = result.document["attacks"]
        assert row["robust_accuracy"]["count"] == expected
        assert row["settings"]["shape"] == [3, 5, 5]
        assert row["settings"]["sha256"] == found.settings()["sha256"]


def test_given_places() -> None:
    model, x, y = small()
    found = fitted(model, x, y)
    assert found.pattern is not None
    square = replace(found, round=False)
    placed = square.patched(x, centre=(2.5, 4.5))
    torch.testing.assert_close(placed[:, :, :5, 2:7], found.pattern.expand(30, 3, 5, 5), rtol=0, atol=1e-12)
    assert torch.equal(placed[:, :, 5:], x[:, :, 5:])
    over = square.patched(x, centre=(0.0, 0.0))  # three quarters of it are outside
    assert torch.equal(over[:, :, 3:], x[:, :, 3:])
    assert not torch.equal(over[:, :, :2, :2], x[:, :, :2, :2])
    half = square.patched(x.half(), centre=(2.5, 4.5))
    assert half.dtype == torch.float16
    assert float(half.max()) <= 1


def test_file_gives_back_the_same_bits(tmp_path: Path) -> None:
    model, x, y = small()
    found = fitted(model, x, y, target=1, round=False, rotation=10.0, scale=(0.5, 1.5), bounds=(-1.0, 2.0), restarts=2)
    again = sp.AdversarialPatch.load(found.save(tmp_path / "patch.safetensors"))
    assert again.settings() == found.settings()
    assert again.threat.eps == found.threat.eps
    assert again.threat.bounds == (-1.0, 2.0)
    assert torch.equal(again(model, x, y).x, found(model, x, y).x)


MODEL, X, Y = small()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.AdversarialPatch((3, 0, 4)), r"expected \(channels, height, width\)"),
        (lambda: sp.AdversarialPatch((3, 4)), r"expected \(channels, height, width\)"),
        (lambda: sp.AdversarialPatch((3, 4, 4), scale=(1.2, 0.8)), "smallest, largest"),
        (lambda: sp.AdversarialPatch((3, 4, 4), rotation=200.0), "from 0 to 180"),
        (lambda: sp.AdversarialPatch((3, 4, 4), restarts=0), "restarts=0"),
        (lambda: sp.AdversarialPatch((3, 4, 4), step_size=-1.0), "above 0"),
        (
            lambda: sp.AdversarialPatch((1, 4, 4)).fit(MODEL, (X, Y)),
            r"a patch of shape \(1, 4, 4\) goes on images \(1, H",
        ),
        (lambda: sp.AdversarialPatch((3, 11, 11)).fit(MODEL, (X, Y)), r"12 x 15 pixels: this patch needs up to 13\.2"),
        (
            lambda: sp.AdversarialPatch((3, 9, 9), round=False).fit(MODEL, (X, Y)),
            r"12 x 15 pixels: this patch needs up to 15\.3 x 15\.3",
        ),
        (lambda: sp.AdversarialPatch((3, 4, 4)).patched(X), "learned nothing yet"),
        (lambda: sp.AdversarialPatch((3, 4, 4))(MODEL, X, Y), "learned nothing yet"),
        (lambda: sp.AdversarialPatch((3, 4, 4)).fit(MODEL, (X[:0], Y[:0])), "data set is empty"),
        (
            lambda: sp.evaluate(MODEL, (X, Y), sp.Linf(0.1), attacks=[sp.AdversarialPatch((3, 4, 4))]),
            "attacks under L0",
        ),
    ],
)
def test_one_clear_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
