"""`expectation` and the random transforms: what is averaged, what is counted, what the random numbers are keyed by."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from networks import RowWise, inputs, linear
from sparring.borrow import borrow
from sparring.experiments import rotation
from sparring.transforms import RandomTransform, ResizedAndPadded, rotate

SHAPE = (3, 4, 5)
THREAT = sp.Linf(0.05)


class Shifted(RandomTransform):
    """Adds a number of its own to each sample, and remembers which."""

    numbers = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def at(self, x: Tensor, u: Tensor) -> Tensor:
        self.seen.append(u)
        return x + 0.2 * (u[:, :1, None, None] - 0.5)


class Noisy(nn.Module):
    """Random by itself: torch's generator."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.scale * torch.randn(len(x), 3, dtype=x.dtype)


def test_the_average_and_its_objective_by_hand() -> None:
    """Logits, log of the mean probability, and mean of the losses, with their gradients, over draws that are known."""
    net, (x, y) = RowWise(SHAPE), inputs(4, SHAPE, 3)
    for combine in ("logits", "probabilities", "loss"):
        shifted = Shifted()
        model = sp.expectation(net, 3, shifted, combine)
        with borrow(model, seed=7) as borrowed:
            logits, value, gradient = borrowed.probe(
                x, lambda z: F.cross_entropy(z, y, reduction="none"), borrowed.keyed({}, torch.arange(4))
            )
            assert (borrowed.forwards, borrowed.backwards, borrowed.cost) == (12, 12, 3)
        leaf = x.clone().requires_grad_()
        parts = torch.stack([net(leaf + 0.2 * (u[:, :1, None, None] - 0.5)) for u in shifted.seen])
        mean = parts.softmax(2).mean(0).log() if combine == "probabilities" else parts.mean(0)
        expected = F.cross_entropy(mean, y, reduction="none")
        if combine == "loss":
            expected = torch.stack([F.cross_entropy(part, y, reduction="none") for part in parts]).mean(0)
        assert torch.allclose(logits, mean, rtol=1e-12)
        assert torch.allclose(value, expected, rtol=1e-12)
        assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-10)
        assert model.output is None, "no graph is kept"


def test_draws_are_keyed_by_seed_sample_and_call() -> None:
    x, _ = inputs(5, SHAPE)
    net, order = RowWise(SHAPE), torch.tensor([3, 0, 4, 1, 2])

    def draws(seed: int, index: Tensor, calls: int) -> list[Tensor]:
        shifted = Shifted()
        with borrow(sp.expectation(net, 2, shifted), seed=seed) as borrowed:
            for _ in range(calls):
                borrowed.look(x[: len(index)], borrowed.keyed({}, index))
        return shifted.seen

    one = draws(0, torch.arange(5), 2)
    assert all(torch.equal(a[order], b) for a, b in zip(one, draws(0, order, 2), strict=True))
    assert len({float(u[0, 0]) for u in one}) == 4, "two draws in each of two calls, all different"
    assert not torch.equal(one[0], draws(1, torch.arange(5), 1)[0])
    alone = [draws(0, torch.tensor([i]), 2) for i in range(5)]
    for k, u in enumerate(one):
        assert torch.equal(u, torch.cat([mine[k] for mine in alone]))


def test_without_an_attack_numbers_come_from_torch() -> None:
    x, _ = inputs(2, SHAPE)
    model = sp.expectation(RowWise(SHAPE), 2, Shifted())
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(first, model(x))
    assert not torch.equal(first, model(x))


def test_the_batch_changes_nothing_and_the_global_generator_is_left_alone() -> None:
    net, (x, _) = RowWise(SHAPE), inputs(7, SHAPE, 3)
    y, model = net(x).argmax(1), sp.expectation(net, 3, sp.rotated(20))
    before = torch.get_rng_state()
    whole = sp.PGD(THREAT, steps=4)(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert (whole.forwards, whole.backwards) == (7 * 5 * 3, 7 * 4 * 3)
    parts = [
        sp.PGD(THREAT, steps=4)(model, x[i : i + 2], y[i : i + 2], indices=torch.arange(7)[i : i + 2]).x
        for i in (0, 2, 4, 6)
    ]
    assert torch.equal(whole.x, torch.cat(parts))


def test_evaluate_counts_every_pass_and_forgets_the_batch_size() -> None:
    net, (x, _) = RowWise(SHAPE), inputs(12, SHAPE, 3)
    data = x, net(x).argmax(1)
    results = []
    for batch_size in (1, 5):
        calls: list[int] = []
        net.register_forward_hook(lambda module, given, out, calls=calls: calls.append(len(out)))
        model = sp.expectation(net, 3, sp.rotated(20))
        result = sp.evaluate(model, data, THREAT, attacks=sp.PGD(THREAT, steps=5), batch_size=batch_size)
        net._forward_hooks.clear()
        assert result.document["model"]["passes"] == 3
        assert result.document["passes"]["forwards"] == sum(calls)
        assert result.document["passes"]["clean"] == 3 * 12
        attack = result.attacks[0]
        assert attack["backwards"] % 3 == 0
        results.append(
            (result.clean_accuracy, result.robust_accuracy, attack["fooled"], attack["forwards"], attack["backwards"])
        )
    assert results[0] == results[1]
    assert results[0][2] > 0


def test_a_model_that_is_random_by_itself() -> None:
    """The seed fixes its draws, the mean steadies its verdict, and the global generator stays where it was."""
    x, _ = inputs(40, (6,), 3)
    net = linear((6,), 3)
    data = x, net(x).argmax(1)
    noisy = Noisy(net, 1.5)
    threat = sp.Linf(1e-6)  # nothing but the noise can fool
    attack = sp.PGD(threat, steps=5)
    before = torch.get_rng_state()
    once = sp.evaluate(noisy, data, threat, attacks=attack)
    again = sp.evaluate(noisy, data, threat, attacks=attack)
    assert torch.equal(torch.get_rng_state(), before)
    assert once.robust_accuracy == again.robust_accuracy
    steady = sp.evaluate(sp.expectation(noisy, 300), data, threat, attacks=attack, checkup=False)
    assert steady.robust_accuracy.value > once.robust_accuracy.value + 0.1
    assert steady.robust_accuracy.value > 0.8


def test_rotation_against_a_quarter_turn_and_torch() -> None:
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    assert torch.allclose(rotate(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-12)
    assert torch.allclose(
        rotate(x, torch.tensor([0.0, 180.0, -90.0], dtype=torch.float64))[1], torch.rot90(x[1], 2, (1, 2)), atol=1e-12
    )
    angle = math.radians(17)
    theta = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]).double()
    grid = F.affine_grid(theta.expand(3, 2, 3), list(x.shape), align_corners=False)
    assert torch.allclose(rotate(x, 17.0), F.grid_sample(x, grid, align_corners=False), atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rotate(x, 17.0), x[:1].requires_grad_())


def test_rotation_of_what_is_not_square_keeps_its_shape() -> None:
    """A straight line through the centre stays as long as it was: no squeezing along the longer side."""
    x = torch.zeros(1, 1, 9, 21)
    x[0, 0, 4, 7:14] = 1
    turned = rotate(x, 90.0)[0, 0]
    assert torch.allclose(turned[1:8, 10], torch.ones(7), atol=1e-5)
    assert float(turned.sum()) == pytest.approx(7, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_resizing_and_padding_against_interpolate(dtype: torch.dtype) -> None:
    x = torch.rand(6, 3, 10, 14).to(dtype)
    u = torch.rand(6, 4, dtype=torch.promote_types(dtype, torch.float32))
    u[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.49, 0.51])
    transform = ResizedAndPadded(0.5, 0.6)
    out = transform.at(x, u)
    for i, row in enumerate(u.tolist()):
        if row[0] >= 0.5:
            assert torch.equal(out[i], x[i]), "untouched to the bit"
            continue
        height, width = 6 + math.floor(row[1] * 4), 8 + math.floor(row[1] * 6)
        small = F.interpolate(x[i : i + 1].to(u.dtype), size=(height, width), mode="bilinear", align_corners=False)
        top, left = math.floor(row[2] * (10 - height)), math.floor(row[3] * (14 - width))
        expected = F.pad(small, (left, 14 - width - left, top, 10 - height - top))
        assert torch.allclose(out[i].to(u.dtype), expected[0], atol=2e-3 if dtype == torch.float16 else 1e-5)


def test_the_ends_of_the_random_numbers_stay_on_the_canvas() -> None:
    x = torch.ones(2, 1, 8, 8)
    out = ResizedAndPadded(1.0, 0.5).at(x, torch.tensor([[0.0, 0, 0, 0], [0.0, 1, 1, 1]]))
    assert torch.equal(out.sum((1, 2, 3)), torch.tensor([16.0, 49.0]))
    assert float(out[0, 0, 0, 0]) == 1
    torch.testing.assert_close(
        out[1], F.pad(torch.ones(1, 7, 7), (0, 1, 0, 1)), msg="the last row and column stay black"
    )
    one = ResizedAndPadded(1.0, 0.5).at(x[:, :, :1, :1], torch.ones(2, 4))
    assert torch.equal(one, x[:, :, :1, :1]), "a single pixel has nowhere to go"


def test_what_cannot_be_averaged() -> None:
    net, (x, y) = RowWise(SHAPE), inputs(2, SHAPE, 3)
    for settings, message in [
        ({"samples": 0}, "samples=0.*at least 1"),
        ({"combine": "median"}, "combine='median': expected one of logits, probabilities, loss"),
        ({"transform": 3}, "transform=3.*rotated"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            sp.expectation(net, **settings)
    with pytest.raises(ValueError, match="rotated\\(0\\): expected a largest angle"):
        sp.rotated(0)
    with pytest.raises(ValueError, match="a rotation works on images"):
        sp.PGD(THREAT, steps=1)(
            sp.expectation(nn.Linear(4, 3).double(), 2, sp.rotated(9)), torch.rand(2, 4).double(), y
        )
    buried = nn.Sequential(sp.expectation(net, 2, sp.rotated(9), "loss"), nn.Tanh())
    with pytest.raises(ValueError, match="is changed by what lies round it"):
        sp.PGD(THREAT, steps=1)(buried, x, y)
    held = sp.normalized(sp.expectation(net, 2, sp.rotated(9), "loss"), 0.5, 0.5)
    assert sp.PGD(THREAT, steps=2)(held, x, y).forwards == 12


def test_the_rotation_experiment(tmp_path: Path) -> None:
    """On a small network of random weights: the example made for all angles holds better when it is turned."""
    stripes = (128 + 40 * torch.sin(torch.arange(24.0) / 2)).to(torch.uint8).repeat(24, 1).T
    Image.fromarray(stripes.numpy()).convert("RGB").save(tmp_path / "stripes.png")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 400, 5))
    net[3].weight.data.mul_(5)
    x = rotation.read_image(tmp_path / "stripes.png", 24, resize=27)[None]
    goal = int(net(x).argmin(1))
    settings = {"eps": "20/255", "angle": 20, "samples": 8, "steps": 15, "size": 24, "model": net}
    result = rotation.run(tmp_path / "stripes.png", goal, **settings, out=tmp_path / "out")
    photograph, plain, turning = result.rows
    assert photograph["Linf"] == 0
    assert plain["Linf"] <= 20 / 255 + 1e-6
    assert turning["Linf"] <= 20 / 255 + 1e-6
    assert (plain["forwards"], turning["forwards"], turning["backwards"]) == (16, 8 * 16, 8 * 15)
    assert turning["mean"] > plain["mean"] + 0.05
    assert turning["least"] > plain["least"]
    assert plain["upright"] > photograph["upright"]
    curve = result.turned[1]
    views = torch.cat([rotate(curve.image[None], a) for a in result.angles])
    assert net(views).softmax(1)[:, goal].tolist() == pytest.approx(list(curve.target), abs=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rotation.png", "rotation.svg", "numbers.json"}
    kept = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert len(kept["angles"]) == len(kept["curves"][2]["target"]) == 61
    assert rotation.run(tmp_path / "stripes.png", goal, **settings).rows == result.rows
    with pytest.raises(ValueError, match="classified as that already"):
        rotation.run(tmp_path / "stripes.png", int(net(x).argmax(1)), **settings)
    with pytest.raises(ValueError, match="has 5 classes, 0 to 4"):
        rotation.run(tmp_path / "stripes.png", 5, **settings)
