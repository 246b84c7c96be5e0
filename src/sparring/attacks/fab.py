"""Fast adaptive boundary attack: from hyperplane to hyperplane towards the nearest point that fools."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.minimal import MinimalAttack
from sparring.attacks.rivals import RivalAttack
from sparring.attacks.sign import need_finite, need_norm
from sparring.noise import Noise
from sparring.objective import Objective
from sparring.rows import Rows
from sparring.threat import per_sample


@dataclass(frozen=True)
class FAB(RivalAttack, MinimalAttack):
    """Fast adaptive boundary attack, in its targeted form (FAB-T). Croce and Hein (2020).

    If the network were linear, target and label would have equal logits on a hyperplane. The iterate and the input are both
    moved to the part of it in the box, exactly and by the smallest change in the threat's norm, `eta` times as far. The next
    iterate lies between the two, nearer to the iterate's: the input's has the share that the iterate's distance has
    in the sum of both distances, at most `alpha_max`. Where it fools, its change is cut to the part `beta`.

    steps: K cost K backwards and 2·K + 1 forwards a round; each rival has as many rounds as there are restarts.
    rivals: see `RivalAttack`; None where the call gives targets. restarts: the first round begins at the input, the others
    at random points, within half of eps, or of the norm found where that is smaller.
    search_steps: at the end of a round, halve the gap between the nearest change and its part `beta` so often, one
    forward each but the last (the paper does it 3 times, AutoAttack never).
    """

    steps: int = 100
    rivals: int | None = field(default=9, kw_only=True)
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    search_steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        if self.restarts > 1:
            need_finite(self)
        for name, least, most in (("alpha_max", 0, 1), ("eta", 1, 2), ("beta", 0, 1)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"FAB({name}={getattr(self, name)!r}): expected a number from {least} to {most}")
        if not isinstance(self.search_steps, int) or self.search_steps < 0:
            raise ValueError(f"FAB(search_steps={self.search_steps!r}): expected a whole number, 0 for none")

    def climbs(self) -> Objective:
        return _lead

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        self.aim(rows)
        if rows.targets is None:
            raise ValueError("FAB(rivals=None) goes for the targets of the call: give it some, or a number of rivals")
        start = rows.original.to(rows.value.dtype)
        again = per_sample((rows.restart % self.restarts > 0).to(start.device), start)
        if not bool(again.any()):
            return start
        shape = rows.original.shape[1:]
        if rows.threat.norm == "linf":
            away = noise.uniform(shape, "start", rows.restart, like=start, low=-1.0)
        else:
            away = noise.normal(shape, "start", rows.restart, like=start)
        if rows.threat.mask is not None:
            away = away * rows.threat.mask
        nothing = torch.zeros_like(start)
        length = rows.norm.clamp_max(rows.threat.eps) / 2 / rows.threat.size(nothing, away).clamp_min(1e-12)
        return torch.where(again, self._boxed(rows, start + per_sample(length, away) * away), start)

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        threat, x, start, nothing = rows.threat, rows.x, rows.original.to(rows.x.dtype), torch.zeros_like(rows.x)
        here = rows.current.to(x.dtype)
        there = here + ((start - x) * gradient).flatten(1).sum(1)  # what the objective would be at the input
        mine, its = threat.crossing(x, gradient, -here), threat.crossing(start, gradient, -there)
        near, far = (threat.size(nothing, change).clamp_min(1e-8) for change in (mine, its))
        share = per_sample((near / (near + far)).clamp_max(self.alpha_max), x)
        moved = self._boxed(rows, x + (1 - share) * self.eta * mine + share * (start - x + self.eta * its))
        fools = probe.look(torch.arange(len(rows)), moved)
        moved = torch.where(per_sample(fools, x), start + self.beta * (moved - start), moved)
        last = rows.step == self.steps - 1
        if self.search_steps and bool((last & rows.norm.isfinite().cpu()).any()):
            moved = self._search(rows, (last & rows.norm.isfinite().cpu()).nonzero().flatten(), moved, probe)
        return moved

    def _search(self, rows: Rows, which: Tensor, moved: Tensor, probe: Probe) -> Tensor:
        """Where, between the part `beta` and all of its nearest change, each of these rows begins to fool."""
        here = which.to(moved.device)
        start = rows.original[here].to(moved.dtype)
        change = rows.best[here].to(moved.dtype) - start
        low, high = (torch.full_like(rows.value[here], part) for part in (self.beta, 1.0))
        for number in range(self.search_steps):
            middle = (low + high) / 2
            point = start + per_sample(middle, change) * change
            if number == self.search_steps - 1:
                break  # the last iterate of a round is looked at anyway
            fools = probe.look(which, point)
            low, high = torch.where(fools, low, middle), torch.where(fools, middle, high)
        return moved.index_copy(0, here, point)

    def _boxed(self, rows: Rows, x: Tensor) -> Tensor:
        return x if rows.threat.bounds is None else x.clamp(*rows.threat.bounds)


def _lead(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """Target logit − label logit. (B,)"""
    assert targets is not None
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    difference = logits.gather(1, targets[:, None]) - logits.gather(1, y[:, None])
    return difference.squeeze(1)
