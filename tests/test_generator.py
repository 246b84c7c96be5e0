"""AdvGAN: what its generator learns, any image size, determinism, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import convolutional, inputs
from sparring.learned.generator import AdvGAN, _Critic
from sparring.learned.networks import Discriminator, Generator


class Bright(nn.Module):
    """Class 1 where the image is brighter than grey on average: what fools a bright one keeps a dark one right."""

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1).mean(1) - 0.5) * 10
        return torch.stack([-score, score], 1)


def shades(
    count: int, shape: tuple[int, ...] = (1, 7, 10), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images whose means lie within 0.1 of grey, half of them on each side."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(count) % 2
    noise = torch.rand((count, *shape), generator=generator, dtype=torch.float64) * 0.2 - 0.1
    noise = noise - noise.mean(tuple(range(1, noise.ndim)), keepdim=True)
    shift = 0.02 + 0.08 * torch.rand(count, generator=generator, dtype=torch.float64)
    return (0.5 + noise + ((2 * y - 1) * shift).view(-1, *[1] * len(shape))).to(dtype), y


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_learns_a_change_that_depends_on_the_image(norm: Any) -> None:
    """No single perturbation fools more than half of these; the generator has to darken some and brighten others."""
    x, y = shades(200)
    threat = sp.Threat(norm, 0.15 if norm == "linf" else 0.15 * 70**0.5)
    universal = sp.UniversalPerturbation(threat).fit(Bright(), (x[:100], y[:100]), steps=20)
    assert universal.fooling_rate(Bright(), (x[100:], y[100:])).value <= 0.6
    found = AdvGAN(threat, width=8).fit(Bright(), (x[:100], y[:100]), steps=60, batch_size=32)
    held, labels = x[100:], y[100:]
    assert found.fooling_rate(Bright(), (held, labels)).value > 0.95
    moved = found(Bright(), held, labels)
    assert bool((moved.norm <= float(threat.eps) * (1 + 1e-5)).all())
    shift = (moved.x - held).flatten(1).mean(1)
    assert bool((shift[labels == 1] < -0.02).all())
    assert bool((shift[labels == 0] > 0.02).all())
    assert (moved.forwards, moved.backwards) == (100, 0)
    assert torch.equal(moved.success, Bright()(moved.x).argmax(1) != labels)


def test_a_target_is_reached_by_the_other_class() -> None:
    x, y = shades(120)
    found = AdvGAN(sp.Linf(0.15), target=1, width=8).fit(Bright(), (x, y), steps=40, batch_size=32)
    rate = found.fooling_rate(Bright(), (x, y))
    assert (rate.total, rate.value) == (60, 1.0)
    assert float((found(Bright(), x, y).x - x)[y == 0].mean()) > 0.1


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 7, 9), (3, 13, 8), (4, 6, 6)])
def test_any_size_comes_back_as_it_was(shape: tuple[int, int, int]) -> None:
    generator = Generator(shape[0], 8).requires_grad_(False)
    out = generator(torch.rand(2, *shape))
    assert out.shape == (2, *shape)
    assert float(out.abs().max()) <= 1
    assert Discriminator(shape[0], 8)(torch.rand(3, *shape)).shape == (3,)


def test_no_sample_sees_its_batch() -> None:
    x, y = shades(20, (3, 9, 7), torch.float64)
    found = AdvGAN(sp.Linf(0.1), width=8).fit(Bright(), (x, y), steps=3, batch_size=8)
    whole = found(Bright(), x, y).x
    single = torch.cat([found(Bright(), x[i : i + 1], y[i : i + 1]).x for i in range(20)])
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-12)
    assert next(iter(found.tensors().values())).dtype == torch.float64


def test_other_sizes_than_it_was_fitted_on_and_half_precision() -> None:
    x, y = shades(40)
    found = AdvGAN(sp.Linf(0.15), width=8).fit(Bright(), (x, y), steps=40, batch_size=32)
    large, labels = shades(40, (1, 15, 12))
    assert found.fooling_rate(Bright(), (large, labels)).value > 0.9
    half = found(Bright(), x.half(), y)
    assert half.x.dtype == torch.float16
    assert bool((half.norm <= 0.15 * (1 + 1e-5)).all())


def test_mask_and_box_hold() -> None:
    x, y = shades(30)
    mask = torch.arange(10) < 6
    found = AdvGAN(sp.Linf(0.3, bounds=(0.2, 0.8), mask=mask), width=8).fit(Bright(), (x, y), steps=10)
    moved = found(Bright(), x, y).x
    assert torch.equal(moved[..., 6:], x[..., 6:])
    assert float((moved[..., :6] - x[..., :6]).abs().amin()) > 0
    assert float(moved.min()) >= 0.2
    assert float(moved.max()) <= 0.8


@pytest.mark.parametrize("gan_weight", [0.0, 0.5])
def test_a_seed_fixes_it_and_nothing_else_is_moved(gan_weight: float) -> None:
    model = convolutional(dtype=torch.float32).train()
    x = inputs(24, (3, 6, 5), dtype=torch.float32)[0]
    y = torch.zeros(24, dtype=torch.int64)
    y = model.eval()(x).argmax(1)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    attack = AdvGAN(sp.Linf(0.1), width=8, gan_weight=gan_weight)
    a, b, c = (attack.fit(model, (x, y), steps=3, batch_size=8, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, b.tensors()[k]) for k, v in a.tensors().items())
    assert a.settings() == b.settings()
    assert a.settings()["sha256"] != c.settings()["sha256"]


def test_passes_through_the_model() -> None:
    x, y = shades(50)
    record = AdvGAN(sp.Linf(0.1), width=8).fit(Bright(), (x, y), steps=20, batch_size=16).record
    assert record is not None
    assert record.backwards == 20 * 16
    assert record.forwards == 50 + 20 * 16 + 10 * record.held_out


def test_the_critic_tells_real_from_made_and_says_how_to_look_real() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = _Critic(Discriminator(1, 8).double(), 5e-3)
    real = torch.rand(32, 1, 8, 8, generator=generator, dtype=torch.float64)
    made = (real + 0.4 * torch.randn(real.shape, generator=generator, dtype=torch.float64).sign()).clamp(0, 1)
    for _ in range(150):
        critic(real, made.clone())
    with torch.no_grad():
        assert float(critic.network(real).mean()) > 0.8
        assert float(critic.network(made).mean()) < 0.2
    network = critic.network
    with torch.no_grad():
        before = (network(made) - 1).square().mean()
    direction = critic(real, made.clone())
    at = made.clone().requires_grad_(True)
    critic.adam.param_groups[0]["lr"] = 0.0
    torch.testing.assert_close(direction.shape, at.shape)
    with torch.no_grad():
        assert (network(made + 0.5 * direction / direction.abs().max()) - 1).square().mean() < before


def test_the_gan_loss_keeps_images_closer_to_real_ones() -> None:
    x, y = shades(64)
    plain, shy = (
        AdvGAN(sp.Linf(0.3), width=8, gan_weight=weight).fit(Bright(), (x, y), steps=40, batch_size=24)
        for weight in (0.0, 30.0)
    )
    moved = [float((found(Bright(), x, y).x - x).abs().mean()) for found in (plain, shy)]
    assert moved[1] < 0.75 * moved[0]


def test_evaluate_and_file(tmp_path: Path) -> None:
    x, y = shades(60, dtype=torch.float64)
    threat = sp.Linf(0.05)
    found = AdvGAN(threat, width=8, lr=3e-3, gan_weight=0.1).fit(Bright(), (x, y), steps=25, batch_size=16)
    again = AdvGAN.load(found.save(tmp_path / "generator.safetensors"))
    assert again.settings() == found.settings()
    assert torch.equal(again(Bright(), x, y).x, found(Bright(), x, y).x)
    robust = int((~found(Bright(), x, y).success).sum())
    assert 0 < robust < 60
    for batch_size in (11, 60):
        result = sp.evaluate(Bright(), (x, y), threat, attacks=[again], batch_size=batch_size)
        assert result.robust_accuracy.count == robust
        assert result.document["attacks"][0]["settings"]["sha256"] == found.settings()["sha256"]


X, Y = shades(10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdvGAN(sp.L0(3)), "expected linf, l2"),
        (lambda: AdvGAN(sp.Linf(0.1), width=12), "multiple of 8"),
        (lambda: AdvGAN(sp.Linf(0.1), lr=0.0), "above 0"),
        (lambda: AdvGAN(sp.Linf(0.1), gan_weight=-1.0), "0 or more"),
        (lambda: AdvGAN(sp.Linf(0.1)).fit(Bright(), (X.flatten(1), Y)), r"\(70,\): AdvGAN takes images \(C, H, W\)"),
        (lambda: AdvGAN(sp.Linf(0.1))(Bright(), X, Y), "learned nothing yet"),
        (
            lambda: AdvGAN(sp.Linf(0.1), width=8).fit(Bright(), (X, Y), steps=1)(Bright(), X.repeat(1, 3, 1, 1), Y),
            r"AdvGAN takes images \(1, H, W\)",
        ),
        (lambda: AdvGAN(sp.Linf(0.1), width=8).fit(Bright(), (X, Y), steps=1, batch_size=1), "needs at least 2"),
        (lambda: AdvGAN(sp.Linf(0.1), width=8).fit(Bright(), (X[:0], Y[:0])), "empty"),
        (
            lambda: AdvGAN(sp.Linf(0.1), width=16).holding(Generator(1, 8).state_dict()),
            "not the weights of a generator of width 16",
        ),
    ],
)
def test_clear_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
