"""What the attacks that search for the smallest perturbation share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sparring.ascent import Pool, Probe
from sparring.attacks.base import Attack
from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.rows import Rows


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
