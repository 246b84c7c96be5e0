"""Projected gradient descent (on the attacker's loss: ascent)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.base import GradientAttack
from sparring.attacks.sign import climbed, default_step, need_finite, need_norm
from sparring.noise import Noise
from sparring.rows import Rows


@dataclass(frozen=True)
class PGD(GradientAttack):
    """Projected gradient descent from random starts. Madry et al. (2018).

    Each step is the norm's steepest one (linf: the sign; l2: the normalised gradient; l1: a sparse sign step, Tramèr and
    Boneh 2019), then the exact projection onto ball ∩ box.

    steps: gradient steps a restart: K cost K backwards and K + 1 forwards. step_size: in input units, default
    eps / 4, or 2.5 · eps / steps below 10 steps. schedule: "constant", or "cosine" which shrinks the step from twice that
    to nothing.
    random_start: start inside the ball instead of at the input. restarts: independent starts; the best iterate counts.
    sparsity: the part of the entries that an l1 step leaves alone.
    """

    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    schedule: str = "constant"
    sparsity: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        if self.step_size is None or self.random_start:
            need_finite(self)
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"PGD(schedule={self.schedule!r}): expected 'constant' or 'cosine'")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"PGD(sparsity={self.sparsity!r}): expected a number from 0 to below 1")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"PGD(restarts={self.restarts}, random_start=False): restarts need random starts")

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        return rows.threat.random(rows.original, noise, "start", rows.restart) if self.random_start else rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        size: float | Tensor = rows.threat.eps * default_step(self.steps) if self.step_size is None else self.step_size
        if self.schedule == "cosine":
            shrink = 1 + torch.cos(rows.step.double() * (math.pi / self.steps))
            size = size * shrink.float().to(gradient.device)  # rounded, so that it is the same in any batch
        return climbed(rows, gradient, size, self.sparsity)
