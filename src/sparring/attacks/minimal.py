"""What the attacks that search for the smallest perturbation share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.ascent import Pool, Probe
from sparring.attacks.base import Attack
from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.rows import Rows

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


@dataclass(frozen=True)
class MinimalAttack(Attack):
    """An attack that searches for the smallest perturbation that fools.

    eps does not hold the search back, it may be `math.inf`: every sample gets its nearest example and that one's norm, and
    succeeds where it is at most eps. Where nothing fooled, x is the input and the norm is inf. A sample that the model gets
    wrong anyway has the norm 0 and costs one pass.
    stop_when_fooled: let a sample go at its first example within eps, instead of searching on for a nearer one. `evaluate`
    leaves it as it is set: the search to its end gives the accuracy at every eps from a single run.
    The rest is as for `Attack`.
    """

    keep: ClassVar[str] = "nearest"

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        return rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        raise NotImplementedError

    def again(self, rows: Rows) -> Tensor:
        """(N,) bool on the CPU: the samples at the end of a restart that begin another."""
        return rows.restart < self.restarts

    def settled(self, rows: Rows) -> Tensor:
        """(N,) bool: the samples that need no further step, because no norm is smaller than 0."""
        return rows.norm == 0

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        return Pool(model, self, self.climbs(), **settings)


def slope(rows: Rows, gradient: Tensor) -> Tensor:
    """(N,) how fast the objective can grow along the norm of the threat: the gradient's dual norm, never 0."""
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), DUAL[rows.threat.norm], dim=1)
    return length.clamp_min(torch.finfo(length.dtype).tiny)


def unit(direction: Tensor, order: float) -> Tensor:
    """(N, *S) scaled to length 1 in the norm of this order, 0 where it is 0."""
    flat = direction.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)  # first, so that squares neither vanish nor overflow
    flat = flat / torch.where(largest > 0, largest, 1)
    length = torch.linalg.vector_norm(flat, order, dim=1, keepdim=True)
    return (flat / torch.where(length > 0, length, 1)).view_as(direction)


def annealed(rows: Rows, steps: int, first: float, last: float, step: Tensor | None = None) -> Tensor:
    """(N,) a number that falls from `first` to `last` over the steps, by a cosine. step: (N,), default `rows.step`."""
    share = (1 + torch.cos((rows.step if step is None else step).double() * (math.pi / steps))) / 2
    # rounded, so that it is the same in any batch
    return (last + (first - last) * share).float().to(rows.value.device, rows.value.dtype)
