"""Margin ascent: towards the likeliest wrong class, one after the other, in few large steps that shrink."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.base import GradientAttack
from sparring.attacks.rivals import RivalAttack, rival
from sparring.attacks.sign import climbed, need_finite, need_norm
from sparring.checks import check_whole
from sparring.noise import Noise
from sparring.objective import Objective
from sparring.rows import Rows
from sparring.threat import per_sample


@dataclass(frozen=True)
class MarginAscent(RivalAttack, GradientAttack):
    """Ascent of z_rival − z_y over the rivals in the order of their clean logits, with momentum and cosine steps.

    The first step is as long as the ball is wide, 2 · eps, and they shrink to nothing, so ten of them decide a sample that
    takes PGD a hundred. What is known to help and is used here: aiming at one rival at a time (Gowal et al. 2019,
    MultiTargeted), momentum over gradients of length one (Dong et al. 2018), a cosine from 2 · eps (as in adaptive auto
    attack, Liu et al. 2022).

    steps: for each rival. rivals: how many, from the `first` on (0 is the likeliest wrong class); None: away from the label,
    towards whichever class is ahead. decay: of the momentum. reach: the first step, in units of eps.
    start: "input", or "given", the best iterate of the attack before it in an evaluation. Every later rival starts from
    the best iterate so far.
    """

    steps: int = 10
    decay: float = 0.75
    reach: float = 2.0
    first: int = field(default=0, kw_only=True)
    start: str = field(default="input", kw_only=True)
    rivals: int | None = field(default=3, kw_only=True)
    objective: str | Objective = field(default="logit-difference", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        need_finite(self)
        if not 0 <= self.decay < 1:
            raise ValueError(f"MarginAscent(decay={self.decay!r}): expected a number from 0 to below 1")
        if not self.reach > 0:
            raise ValueError(f"MarginAscent(reach={self.reach!r}): expected a number above 0, in units of eps")
        check_whole("MarginAscent", 0, first=self.first)
        if self.start not in ("input", "given"):
            raise ValueError(f"MarginAscent(start={self.start!r}): expected 'input' or 'given'")

    def pointless(self, classes: int) -> bool:
        return self.rivals is not None and self.first > classes - 2

    def aim(self, rows: Rows) -> None:
        if self.rivals is not None:
            assert rows.reference is not None
            rows.targets = rival(rows.reference, rows.y, rows.restart + self.first)

    def again(self, rows: Rows) -> Tensor:
        if self.rivals is None or rows.reference is None:
            return rows.restart < self.rounds
        return rows.restart < min(self.rivals, rows.reference.shape[1] - 1 - self.first)

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        self.aim(rows)
        rows.memory = {"velocity": torch.zeros_like(rows.original, dtype=rows.value.dtype)}
        given = rows.original
        if self.start == "given" and len(rows.start):
            given = rows.threat.project(rows.original, rows.start, wide=True)
        if not len(rows.best):
            return given
        later = per_sample((rows.restart > 0).to(given.device), given)
        return torch.where(later, rows.best.to(rows.value.dtype), given.to(rows.value.dtype))

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        gradient = gradient / per_sample(
            gradient.flatten(1).abs().amax(1), gradient
        )  # never all zero: the loop mends it
        gradient = gradient / per_sample(gradient.flatten(1).abs().mean(1), gradient)
        velocity = self.decay * rows.memory["velocity"] + gradient
        rows.memory["velocity"] = velocity
        shrink = (1 + torch.cos(rows.step.double() * (math.pi / self.steps))) / 2
        size = self.reach * rows.threat.eps * shrink.float().to(gradient.device)
        return climbed(rows, velocity, size)
