"""One perturbation for all inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparring.attacks.sign import need_finite, need_norm
from sparring.borrow import Borrowed
from sparring.learned.base import LearnedAttack
from sparring.learned.fitting import cosine, pull
from sparring.noise import Noise
from sparring.rows import Rows


@dataclass(frozen=True, eq=False)
class UniversalPerturbation(LearnedAttack):
    """One perturbation that fools a model on most inputs, also on those that it was not fitted to.

    The idea is Moosavi-Dezfooli et al.'s (2017); it is learned as in Shafahi et al. (2020): steps of a batch each along
    the summed gradient of a loss that is clipped, sample by sample, where the sample is fooled well enough; here it
    levels off instead (see `softness`). An example is the input plus `delta`, clipped to the box.

    threat: linf or l2. step_size: of the first step, in input units (default eps); it falls to zero as a cosine.
    delta: what was learned, (*S), in the ball.

    >>> import sparring as sp
    >>> x, y = torch.linspace(0.6, 0.9, 40).repeat(2, 1).T, torch.zeros(40, dtype=torch.int64)
    >>> model = lambda x: torch.stack([x.sum(1) - 1, 1 - x.sum(1)], 1)  # class 0: the sum is above 1
    >>> attack = sp.UniversalPerturbation(sp.Linf(0.25)).fit(model, (x, y), steps=20)
    >>> attack.delta
    tensor([-0.2500, -0.2500])
    >>> attack.fooling_rate(model, (x, y))
    50.0% [35.2%, 64.8%] (20 of 40)
    """

    step_size: float | None = None
    delta: Tensor | None = field(default=None, kw_only=True, repr=False)

    learned: ClassVar[tuple[str, ...]] = ("delta",)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2")
        need_finite(self)

    def learner(self, rows: Rows, softness: float, seed: int) -> _Ascent:
        return _Ascent(self, rows, softness)

    def apply(self, rows: Rows, noise: Noise, draw: int | Tensor = 0) -> Tensor:
        assert self.delta is not None
        if self.delta.shape != rows.original.shape[1:]:
            raise ValueError(
                f"inputs of shape {tuple(rows.original.shape[1:])}: this perturbation was learned for "
                f"{tuple(self.delta.shape)}"
            )
        delta = self.delta.to(rows.original.device)
        wide = rows.original.to(torch.promote_types(rows.original.dtype, delta.dtype))
        return rows.threat.project(rows.original, wide + delta)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.delta is None else {"delta": self.delta}

    def holding(self, tensors: Mapping[str, Tensor]) -> UniversalPerturbation:
        return replace(self, delta=tensors["delta"])


class _Ascent:
    """Projected steps of a perturbation that all samples share."""

    def __init__(self, attack: UniversalPerturbation, rows: Rows, softness: float) -> None:
        self.attack, self.softness = attack, softness
        self.threat = replace(attack.threat, bounds=None).for_inputs(rows.original[:1])
        first = rows.original[:1]
        self.origin = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        self.delta, self.velocity = self.origin, self.origin
        self.size = float(attack.threat.eps) if attack.step_size is None else attack.step_size

    def step(self, model: Borrowed, rows: Rows, number: int, steps: int) -> None:
        x = self.snapshot().apply(rows, Noise(0, rows.index))
        force = pull(model, rows, x, self.softness).to(self.origin.dtype)
        self.velocity = 0.9 * self.velocity + force.sum(0, keepdim=True)
        size = self.size * cosine(number, steps)
        moved = self.delta + size * self.threat.steepest(self.velocity, self.origin)
        self.delta = self.threat.project(self.origin, moved)

    def snapshot(self) -> UniversalPerturbation:
        return replace(self.attack, delta=self.delta[0])
