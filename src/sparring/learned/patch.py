"""A patch that fools wherever it lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.borrow import Borrowed, borrow
from sparring.evaluation.statistics import Proportion
from sparring.learned import placement as placing
from sparring.learned.base import LearnedAttack
from sparring.learned.fitting import FitRecord, attackable, cosine, gather, parts, pull
from sparring.learned.placement import Footprint, Placement
from sparring.noise import Noise
from sparring.objective import fooled, predict
from sparring.rows import Rows
from sparring.threat import L0, Threat
from sparring.wrappers import Model


@dataclass(frozen=True)
class PlacementRates:
    """How a patch does over many placements of each sample.

    each: the share of the samples that it fools, one for every placement drawn. some, every: the samples that it fools
    at one placement or more, and at all of them.
    """

    each: tuple[float, ...]
    some: Proportion
    every: Proportion

    @property
    def mean(self) -> float:
        return sum(self.each) / len(self.each)


@dataclass(frozen=True, eq=False)
class AdversarialPatch(LearnedAttack):
    """A patch that fools a model wherever, and however turned and scaled, it lies on the image. Brown et al. (2017).

    It is learned over random placements: sign steps with momentum along the summed gradient of the margin, pulled back
    through the placement. It covers what it lies on; its values stay in the box.

    shape: (C, h, w) at scale 1. round: the ellipse in that rectangle. rotation: degrees, turned by at most that much
    either way. scale: (smallest, largest). Placements are uniform among those that lie inside the image.
    restarts: placements tried on each sample; one that fools is enough. step_size: of the first step, in input units
    (default a twentieth of the box); it falls to zero as a cosine. pattern: what was learned, (C, h, w).

    `threat` follows from the rest: l0, with as many entries as a patch can cover. `sp.evaluate(model, data,
    patch.threat, attacks=[patch])` is what runs it.
    """

    threat: Threat = field(init=False)
    shape: tuple[int, int, int] = (3, 8, 8)
    round: bool = field(default=True, kw_only=True)
    rotation: float = field(default=45.0, kw_only=True)
    scale: tuple[float, float] = field(default=(0.8, 1.2), kw_only=True)
    bounds: tuple[float, float] = field(default=(0.0, 1.0), kw_only=True)
    restarts: int = field(default=1, kw_only=True)
    step_size: float | None = field(default=None, kw_only=True)
    pattern: Tensor | None = field(default=None, kw_only=True, repr=False)

    learned: ClassVar[tuple[str, ...]] = ("pattern",)

    def __post_init__(self) -> None:
        three = isinstance(self.shape, (tuple, list)) and len(self.shape) == 3
        if not three or not all(isinstance(n, int) and n >= 1 for n in self.shape):
            raise ValueError(f"{self.name}(shape={self.shape!r}): expected (channels, height, width) in pixels")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"{self.name}(scale={self.scale!r}): expected (smallest, largest), above 0")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"{self.name}(rotation={self.rotation!r}): expected degrees, from 0 to 180")
        object.__setattr__(self, "threat", L0(self.shape[0] * self.footprint.most_pixels, self.bounds))
        super().__post_init__()

    @property
    def footprint(self) -> Footprint:
        return Footprint(self.shape[1], self.shape[2], self.round, self.rotation, self.scale)

    def learner(self, rows: Rows, softness: float, seed: int) -> _Ascent:
        self._check_images(rows.original)
        return _Ascent(self, rows, softness, seed)

    def apply(self, rows: Rows, noise: Noise, draw: int | Tensor = 0) -> Tensor:
        self._check_images(rows.original)
        where = placing.random(self.footprint, _size(rows.original), noise, draw)
        return self._paste(rows.original, where)

    def patched(
        self,
        x: Tensor,
        *,
        centre: tuple[float, float] | None = None,
        angle: float = 0.0,
        scale: float = 1.0,
        indices: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The images x (B, C, H, W) with the patch on them, in x's dtype.

        centre: (row, column) of its middle in pixels, where it may stick out; angle: degrees; scale. Without a centre
        the placements are random, keyed by `seed` and `indices` (B,) (default 0 … B − 1): those of `fooling_rate` and,
        with one restart, of a call.
        """
        self.check_fitted()
        self._check_images(x, inside=centre is None)
        if centre is None:
            noise = Noise(seed, torch.arange(len(x)) if indices is None else indices)
            return self._paste(x, placing.random(self.footprint, _size(x), noise, 0))
        middle = torch.tensor(centre, dtype=torch.float64).expand(len(x), 2)
        turn, size = (torch.full((len(x),), v, dtype=torch.float64) for v in (math.radians(angle), scale))
        return self._paste(x, Placement(middle, turn, size))

    def over_placements(
        self,
        model: Model,
        data: Any,
        *,
        placements: int = 20,
        batch_size: int = 256,
        max_samples: int | None = None,
        seed: int = 0,
    ) -> PlacementRates:
        """How often it fools over that many random placements of each sample that `fooling_rate` counts."""
        self.check_fitted()
        with borrow(model, self.autocast, seed) as borrowed:
            rows = gather(borrowed, self.threat, data, self.target, max_samples, seed)
            rows, _ = attackable(borrowed, rows, batch_size)
            found = [
                torch.stack([self._fools(borrowed, part, seed, draw) for draw in range(placements)])
                for part in parts(rows, batch_size)
            ]
        fools = torch.cat(found, 1) if found else torch.zeros(placements, 0)
        some, every = (Proportion(int(hit.sum()), len(rows)) for hit in (fools.any(0), fools.all(0)))
        return PlacementRates(tuple(fools.double().mean(1).tolist()), some, every)

    def _fools(self, model: Borrowed, rows: Rows, seed: int, draw: int) -> Tensor:
        x = self.apply(rows, Noise(seed, rows.index), draw)
        return fooled(predict(model.look(x, rows.context)), rows.y, rows.targets).cpu()

    def _paste(self, x: Tensor, where: Placement) -> Tensor:
        assert self.pattern is not None
        low, high = self.bounds
        return placing.pasted(x, self.pattern.to(x.device), self.footprint, where).clamp(low, high).to(x.dtype)

    def _check_images(self, x: Tensor, inside: bool = True) -> None:
        if x.ndim != 4 or x.shape[1] != self.shape[0]:
            raise ValueError(
                f"inputs of shape {tuple(x.shape[1:])}: a patch of shape {self.shape} goes on images "
                f"({self.shape[0]}, H, W)"
            )
        height, width = self.footprint.most_extent
        if inside and (height > x.shape[2] + 1e-9 or width > x.shape[3] + 1e-9):
            raise ValueError(
                f"images of {x.shape[2]} x {x.shape[3]} pixels: this patch needs up to {height:.1f} x {width:.1f} when it is "
                "scaled and turned; give a smaller shape, scale or rotation"
            )

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.pattern is None else {"pattern": self.pattern}

    def holding(self, tensors: Mapping[str, Tensor]) -> AdversarialPatch:
        return replace(self, pattern=tensors["pattern"])

    @classmethod
    def restored(cls, threat: Threat, settings: dict[str, Any], record: FitRecord | None) -> AdversarialPatch:
        pairs: dict[str, Any] = {name: tuple(settings.pop(name)) for name in ("shape", "scale", "bounds")}
        return cls(**pairs, **settings, record=record)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


class _Ascent:
    """Sign steps of a patch along the gradient that comes back through its placements."""

    def __init__(self, attack: AdversarialPatch, rows: Rows, softness: float, seed: int) -> None:
        self.attack, self.softness, self.seed = attack, softness, seed
        low, high = attack.bounds
        x = rows.original
        self.pattern = x.new_full(attack.shape, (low + high) / 2, dtype=torch.promote_types(x.dtype, torch.float32))
        self.velocity = torch.zeros_like(self.pattern)
        self.size = (high - low) / 20 if attack.step_size is None else attack.step_size

    def step(self, model: Borrowed, rows: Rows, number: int, steps: int) -> None:
        attack = self.attack
        where = placing.random(attack.footprint, _size(rows.original), Noise(self.seed, rows.index), number)
        with torch.enable_grad():
            pattern = self.pattern.requires_grad_(True)
            x = placing.pasted(rows.original, pattern, attack.footprint, where)
        force = pull(model, rows, x.detach().to(rows.original.dtype), self.softness)
        (gradient,) = torch.autograd.grad(x, pattern, force.to(x.dtype))
        self.velocity = 0.9 * self.velocity + gradient
        low, high = attack.bounds
        step = self.size * cosine(number, steps)
        self.pattern = (pattern.detach() + step * self.velocity.sign()).clamp(low, high)

    def snapshot(self) -> AdversarialPatch:
        return replace(self.attack, pattern=self.pattern.detach())
