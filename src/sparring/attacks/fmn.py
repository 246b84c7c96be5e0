"""Fast minimum-norm attacks: a ball whose radius follows the boundary, and gradient steps inside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.minimal import MinimalAttack, annealed, slope, unit
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import per_sample

_WIDTHS = 10  # of the box, an l0 step in the steepest entry: so many others reach the end of the box too


@dataclass(frozen=True)
class FMN(MinimalAttack):
    """Fast minimum-norm attack, for every norm. Pintor, Roli, Brendel and Biggio (2021).

    Each step climbs the margin and projects onto the box and a ball of the sample's own. It shrinks by the part gamma
    where the iterate fools and grows by it where it does not; until something fools, it reaches at least to where a linear
    model would put the boundary. Step and gamma are annealed by a cosine. Unlike the paper's, a step is measured in radii of
    the ball and not in input units, so that one setting serves all inputs, and it goes along the norm's steepest direction
    mixed with the gradient itself.

    steps: K cost K backwards and K + 1 forwards. step_size: of the first step, in radii (l0: of the largest change, in ten
    widths of the box); the last is a hundredth of it. gamma: the first part by which the radius changes; the last is 0.001.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise ValueError(f"FMN(gamma={self.gamma!r}): expected a number between 0 and 1")

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        rows.memory["radius"] = torch.full_like(rows.value, math.inf)
        return rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        gamma = annealed(rows, self.steps, self.gamma, 0.001)
        part = annealed(rows, self.steps, self.step_size, self.step_size / 100)
        radius = (_count if rows.threat.norm == "l0" else _radius)(rows, gradient, gamma)
        rows.memory = {"radius": radius}
        return within(rows, gradient, radius, part)


def within(rows: Rows, gradient: Tensor, radius: Tensor, part: Tensor) -> Tensor:
    """One step of `part` (N,) of the radius (N,) from `rows.x`, projected onto box and ball of that radius. (N, *S)"""
    threat = replace(rows.threat, eps=radius)
    length = part * radius.clamp_max(_far(rows))
    if threat.norm == "l0":
        low, high = threat.bounds or (0.0, 1.0)
        length = _WIDTHS * part * (high - low)
        return threat.project(
            rows.original, rows.x + per_sample(length, gradient) * unit(gradient, math.inf), wide=True
        )
    direction = threat.steepest(gradient, rows.x, length=length)
    if threat.norm != "l2":
        # the gradient itself, as long as the largest l2 change in the ball, finds what signs and single entries miss
        longest = math.sqrt(gradient[0].numel()) if threat.norm == "linf" else 1.0
        direction = (direction + longest * unit(gradient, 2)) / 2
    return threat.project(rows.original, rows.x + per_sample(length, gradient) * direction, wide=True)


def _far(rows: Rows) -> float:
    """A length that no change needs to be longer than, where a flat spot puts the boundary at infinity."""
    low, high = rows.threat.bounds or (-1e4, 1e4)
    count = rows.original[0].numel() if len(rows) else 1
    return (high - low) * {"linf": 1.0, "l2": math.sqrt(count)}.get(rows.threat.norm, float(count))


def _radius(rows: Rows, gradient: Tensor, gamma: Tensor) -> Tensor:
    radius = rows.memory["radius"]
    size = rows.threat.size(rows.original, rows.x)
    boundary = size - rows.current.to(size.dtype) / slope(rows, gradient)
    wider = torch.where(radius.isinf(), 0, radius) * (1 + gamma)
    waiting = torch.where(rows.norm.isfinite(), wider, torch.maximum(boundary, wider).clamp_max(_far(rows)))
    return torch.where(rows.fools, torch.minimum(radius, rows.norm) * (1 - gamma), waiting)


def _count(rows: Rows, gradient: Tensor, gamma: Tensor) -> Tensor:
    """The same for whole numbers of entries: by one at least."""
    radius = rows.memory["radius"]
    radius = torch.where(radius.isinf(), 0, radius)
    fewer = torch.minimum(radius, rows.norm) * (1 - gamma)
    more = torch.maximum((radius * (1 + gamma)).floor(), radius + 1)
    return torch.where(
        rows.fools,
        torch.minimum(fewer.floor(), torch.minimum(radius, rows.norm) - 1),
        torch.where(rows.norm.isfinite(), more, torch.maximum(more, _fewest(rows, gradient))),
    ).clamp_min(1)


def _fewest(rows: Rows, gradient: Tensor) -> Tensor:
    """(N,) how many entries of the input, each moved as far as the box lets it, would take a linear model to the boundary."""
    low, high = rows.threat.bounds or (-math.inf, math.inf)
    room = torch.where(gradient > 0, high - rows.original, rows.original - low)
    gain = torch.where(gradient == 0, 0, gradient.abs() * room).flatten(1).sort(1, descending=True).values.cumsum(1)
    moved = ((rows.x - rows.original) * gradient).flatten(1).sum(1)
    return ((gain < (moved - rows.current.to(gain.dtype))[:, None]).sum(1) + 1).clamp_max(gain.shape[1]).to(gain.dtype)
