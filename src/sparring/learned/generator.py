"""A network that makes adversarial examples in one pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparring.attacks.sign import need_finite, need_norm
from sparring.borrow import Borrowed
from sparring.learned.base import LearnedAttack
from sparring.learned.fitting import cosine, pull
from sparring.learned.networks import Discriminator, Generator
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import Threat, per_sample


@dataclass(frozen=True, eq=False)
class AdvGAN(LearnedAttack):
    """A generator that is trained against a model and then attacks in one pass of its own. Xiao et al. (2018).

    It turns an image into a change that is inside the ball by construction (linf: eps times a tanh; l2: scaled to length
    eps where it is longer); the sum is clipped to the box. It is trained by Adam to raise the margin, and with
    `gan_weight` also to keep its images from being told from real ones (least squares, Mao et al. 2017).
    Images only, of any size; fitted on one size it also takes others.

    threat: linf or l2. width: channels of the generator's first layer. lr: Adam's first rate; it falls as a cosine.
    gan_weight: of the discriminator's loss, against the share of the samples that are fooled; 0 does without a discriminator.
    generator: what was learned.
    """

    width: int = 16
    lr: float = 2e-3
    gan_weight: float = 0.0
    generator: Generator | None = field(default=None, kw_only=True, repr=False)

    learned: ClassVar[tuple[str, ...]] = ("generator",)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2")
        need_finite(self)
        if not isinstance(self.width, int) or self.width < 8 or self.width % 8:
            raise ValueError(f"{self.name}(width={self.width!r}): expected a multiple of 8")
        if not self.lr > 0:
            raise ValueError(f"{self.name}(lr={self.lr!r}): expected a number above 0")
        if not self.gan_weight >= 0:
            raise ValueError(f"{self.name}(gan_weight={self.gan_weight!r}): expected a number, 0 or more")

    def learner(self, rows: Rows, softness: float, seed: int) -> _Training:
        _check_images(rows.original)
        return _Training(self, rows, softness, seed)

    def apply(self, rows: Rows, noise: Noise, draw: int | Tensor = 0) -> Tensor:
        assert self.generator is not None
        _check_images(rows.original, self.generator.channels)
        with torch.no_grad():
            candidate = changed(self.generator.to(rows.original.device), rows.original, rows.threat)
        return rows.threat.project(rows.original, candidate)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.generator is None else dict(self.generator.state_dict())

    def holding(self, tensors: Mapping[str, Tensor]) -> AdvGAN:
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and overwritten
            generator = Generator(len(tensors["last.bias"]), self.width).to(tensors["last.bias"].dtype)
        try:
            generator.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(f"not the weights of a generator of width {self.width}: {error}") from error
        return replace(self, generator=generator.eval().requires_grad_(False))


def _check_images(x: Tensor, channels: int | None = None) -> None:
    if x.ndim != 4 or (channels is not None and x.shape[1] != channels):
        raise ValueError(f"inputs of shape {tuple(x.shape[1:])}: AdvGAN takes images ({channels or 'C'}, H, W)")


def changed(generator: nn.Module, x: Tensor, threat: Threat) -> Tensor:
    """x (B, C, H, W) moved inside the ball, the box not yet seen to; in the generator's dtype or the inputs', the wider."""
    weight = next(generator.parameters())
    low, high = threat.bounds or (0.0, 1.0)
    direction = generator((x.to(weight.dtype) - low) * (2 / (high - low)) - 1)
    if threat.mask is not None:
        direction = direction * threat.mask
    if threat.norm == "l2":
        length = direction.flatten(1).norm(dim=1).clamp_min(1.0)
        direction = direction / per_sample(length, direction)
    moved: Tensor = x + float(threat.eps) * direction
    return moved


class _Training:
    """Adam on the generator; where wanted a critic learns beside it."""

    def __init__(self, attack: AdvGAN, rows: Rows, softness: float, seed: int) -> None:
        self.attack, self.softness = attack, softness
        x = rows.original
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(x.shape[1], attack.width)
            critic = Discriminator(x.shape[1], attack.width)
        dtype = torch.promote_types(x.dtype, torch.float32)
        self.generator = generator.to(x.device, dtype)
        self.critic = _Critic(critic.to(x.device, dtype), attack.lr)
        self.adam = torch.optim.Adam(self.generator.parameters(), attack.lr)

    def step(self, model: Borrowed, rows: Rows, number: int, steps: int) -> None:
        if len(rows) < 2:
            raise ValueError("AdvGAN learned from 1 sample a batch: its normalisation needs at least 2")
        for group in self.adam.param_groups:
            group["lr"] = self.attack.lr * cosine(number, steps)
        with torch.enable_grad():
            candidate = changed(self.generator, rows.original, rows.threat)
            x = rows.threat.project(rows.original, candidate.detach())
            force = pull(model, rows, x, self.softness).to(candidate.dtype)
            force = force / len(rows)
            if self.attack.gan_weight:
                force = force + self.attack.gan_weight * self.critic(rows.original.to(force.dtype), x.to(force.dtype))
            self.adam.zero_grad()
            torch.autograd.backward(candidate, -force)
        self.adam.step()

    def snapshot(self) -> AdvGAN:
        return replace(self.attack, generator=copy.deepcopy(self.generator).eval().requires_grad_(False))


class _Critic:
    """A discriminator in training. Least squares, Mao et al. (2017)."""

    def __init__(self, network: Discriminator, lr: float) -> None:
        self.network, self.adam = network, torch.optim.Adam(network.parameters(), lr)

    def __call__(self, real: Tensor, made: Tensor) -> Tensor:
        """The direction in which the made images would look more real; then it learns from both. All (B, C, H, W)."""
        made = made.requires_grad_(True)
        (direction,) = torch.autograd.grad(-(self.network(made) - 1).square().mean(), made)
        self.adam.zero_grad()
        loss = (self.network(real) - 1).square().mean() + self.network(made.detach()).square().mean()
        torch.autograd.backward(loss)
        self.adam.step()
        return direction
