"""Decoupling direction and norm: gradient steps on a sphere whose radius follows the boundary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.minimal import MinimalAttack, annealed, unit
from sparring.attacks.sign import need_norm
from sparring.noise import Noise
from sparring.objective import Objective, cross_entropy
from sparring.rows import Rows
from sparring.threat import per_sample


@dataclass(frozen=True)
class DDN(MinimalAttack):
    """Decoupled direction and norm, l2. Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger (2019).

    Each step follows the normalised gradient of the cross-entropy, then the change is scaled to the sample's own radius, and
    clipped to the box. The radius shrinks by the part gamma where the iterate fools, and grows by it where it does not.

    steps: K cost K backwards and K + 1 forwards. step_size: of the first step, in input units; annealed by a cosine to a
    hundredth of it. radius: the first one, in input units.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    radius: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "l2")
        if not 0 < self.gamma < 1:
            raise ValueError(f"DDN(gamma={self.gamma!r}): expected a number between 0 and 1")
        if not self.radius > 0:
            raise ValueError(f"DDN(radius={self.radius!r}): expected a number above 0")

    def climbs(self) -> Objective:
        return cross_entropy

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        rows.memory["radius"] = torch.full_like(rows.value, self.radius)
        return rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        length = annealed(rows, self.steps, self.step_size, self.step_size / 100)
        radius = rows.memory["radius"]
        radius = torch.where(rows.fools, radius * (1 - self.gamma), radius * (1 + self.gamma))
        # the sample's first look is at the input itself, which says nothing about the radius
        radius = torch.where(rows.step.to(radius.device) == 0, rows.memory["radius"], radius)
        rows.memory = {"radius": radius}
        change = rows.x + per_sample(length, gradient) * unit(gradient, 2) - rows.original
        moved = rows.original + per_sample(radius, change) * unit(change, 2)
        return moved if rows.threat.bounds is None else moved.clamp(*rows.threat.bounds)
