"""Auto-PGD: projected gradient ascent that chooses its own step sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sparring.ascent import Pool, Probe
from sparring.attacks.base import GradientAttack
from sparring.attacks.rivals import RivalAttack
from sparring.attacks.sign import need_finite, need_norm
from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import Threat, per_sample

GRADIENT_PART = 0.75  # of a step; for the rest it goes on along the last change
SPARSER = 1.5  # l1: the next step changes as many entries as the best point did, divided by this
SMALLEST = 0.1  # l1: the shortest step, in eps


@dataclass(frozen=True)
class APGD(RivalAttack, GradientAttack):
    """Auto-PGD: where steps cease to pay they get shorter, and the ascent goes on from its best point.

    Linf and l2: Croce and Hein (2020). The first steps are 2·eps long, with momentum. At checkpoints, which grow denser, the
    step is halved where fewer than `rho` of the steps since the last checkpoint raised the objective, or where neither the
    best value nor the step has changed since. l1: Croce and Hein (2021). A step changes fewer entries than the best point
    does; it is eps long again whenever that number falls, and gets shorter while it does not.

    steps: gradient steps a restart: K cost K backwards and K + 1 forwards. restarts: random starts.
    rivals: with `objective="dlr"` and `rivals=9` this is AutoAttack's APGD-T (see `RivalAttack`).
    rho: see above. shrinking: l1 only: 30% of the steps in a ball of 3·eps, 30% in one of 2·eps, the rest in the ball itself,
    each from the best point of the one before; points outside the ball are no results.
    """

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    shrinking: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        need_finite(self)
        if not 0 <= self.rho <= 1:
            raise ValueError(f"APGD(rho={self.rho!r}): expected a part of the steps, from 0 to 1")
        if self.shrinking and self.threat.norm != "l1":
            raise ValueError(f"APGD(shrinking=True) under {self.threat}: only l1 has balls that shrink")

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        if not self.shrinking:
            return super().pool(model, **settings)
        return self.aiming(_Inside, model, **settings)

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        self.aim(rows)
        dtype = rows.value.dtype
        if self.threat.norm != "l1":
            start = rows.threat.random(rows.original, noise, "start", rows.restart).to(dtype)
            rows.memory = _dense_memory(rows, start)
            return start
        phase = _phases(self.steps, self.shrinking)
        away = noise.normal(rows.original.shape[1:], "start", rows.restart, like=rows.value)
        start = phase.ball(rows, 0 * rows.step).project(rows.original, rows.original + away, wide=True)
        rows.memory = _sparse_memory(rows, start)
        if not self.shrinking:  # no point was better than others: as if all entries had been changed
            entries = torch.full_like(rows.value, start[0].numel())
            rows.memory |= {"changed": entries, "entries": 0.2 * entries}
        elif not len(rows.best):
            rows.best = rows.original
        return start

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        known, value = rows.memory, rows.current.to(rows.value.dtype)
        value = torch.where(value.isnan(), -torch.inf, value)
        better = (value > known["value"]) | known["fresh"]
        wide = per_sample(better, rows.x)
        known["value"], known["fresh"] = torch.where(better, value, known["value"]), torch.zeros_like(better)
        known["x"] = torch.where(wide, rows.x, known["x"])
        known["gradient"] = torch.where(wide, gradient, known["gradient"])
        return self._sparse(rows, gradient) if self.threat.norm == "l1" else self._dense(rows, value, gradient)

    def _dense(self, rows: Rows, value: Tensor, gradient: Tensor) -> Tensor:
        """The step of linf and l2."""
        known, x, first = rows.memory, rows.x, (rows.step == 0).to(rows.x)
        known["rises"] = known["rises"] + (value > known["last"])
        known["checked"] = torch.where(first > 0, value, known["checked"])
        window = _windows(self.steps)[rows.step].to(value)
        due = window > 0
        if bool(due.any()):
            stalled = ~known["halved"] & (known["checked"] >= known["value"])
            halve = due & (stalled | (known["rises"] < self.rho * window))
            known["size"] = torch.where(halve, known["size"] / 2, known["size"])
            known["halved"] = torch.where(due, halve, known["halved"])
            known["checked"] = torch.where(due, known["value"], known["checked"])
            known["rises"] = known["rises"].masked_fill(due, 0)
            value = torch.where(halve, known["value"], value)
            x = torch.where(per_sample(halve, x), known["x"], x)
            gradient = torch.where(per_sample(halve, x), known["gradient"], gradient)
        length = per_sample(known["size"] * rows.threat.eps, x)
        there = rows.threat.project(rows.original, x + length * rows.threat.steepest(gradient, x), wide=True)
        part = per_sample(torch.where(first > 0, 1, GRADIENT_PART).to(x.dtype), x)
        there = x + part * (there - x) + (1 - part) * (x - known["before"])
        known["before"], known["last"] = x, value
        return rows.threat.project(rows.original, there, wide=True)

    def _sparse(self, rows: Rows, gradient: Tensor) -> Tensor:
        """The step of l1."""
        known, x, phases = rows.memory, rows.x, _phases(self.steps, self.shrinking)
        due = phases.checks[rows.step].to(x.device)
        if bool(due.any()):
            now = _changed(known["x"], rows.original)
            fewer = due & (now < 0.95 * known["changed"])
            size = torch.where(fewer, 1, (known["size"] / SPARSER).clamp_min(SMALLEST))
            known["size"] = torch.where(due, size, known["size"])
            known["entries"] = torch.where(due, now / SPARSER, known["entries"])
            known["changed"] = torch.where(due, now, known["changed"])
            x = torch.where(per_sample(fewer, x), known["x"], x)
            gradient = torch.where(per_sample(fewer, x), known["gradient"], gradient)
        ball = phases.ball(rows, rows.step)
        step = _largest(gradient, known["entries"]) * per_sample(known["size"] * ball.eps, x)
        there = ball.project(rows.original, x + step, wide=True)
        last = phases.ends[rows.step]
        if bool(last.any()):  # the next ball is smaller, and what was best there begins in it
            where = per_sample(last.to(x.device), x)
            smaller = phases.ball(rows, rows.step + 1).project(rows.original, known["x"], wide=True)
            there = torch.where(where, smaller, there)
            fresh = _sparse_memory(rows, there)
            rows.memory = {
                name: torch.where(where if fresh[name].ndim > 1 else last.to(x.device), fresh[name], known[name])
                for name in known
            }
        return there


def _dense_memory(rows: Rows, start: Tensor) -> dict[str, Tensor]:
    """What linf and l2 remember. x, gradient, value: of the best point; checked: the best value at the last checkpoint."""
    nothing = torch.zeros_like(rows.value)
    return {
        "x": start, "gradient": torch.zeros_like(start), "value": nothing - torch.inf, "fresh": nothing == 0,
        "before": start, "last": nothing + torch.inf, "rises": nothing,
        "size": nothing + 2, "halved": nothing > 0, "checked": nothing - torch.inf,
    }  # fmt: skip


def _sparse_memory(rows: Rows, start: Tensor) -> dict[str, Tensor]:
    """What l1 remembers. changed: how many entries the best point changed at the last check; entries: how many a step does."""
    nothing, changed = torch.zeros_like(rows.value), _changed(start, rows.original)
    return {
        "x": start, "gradient": torch.zeros_like(start), "value": nothing - torch.inf, "fresh": nothing == 0,
        "size": nothing + 1, "changed": changed, "entries": changed / SPARSER,
    }  # fmt: skip


@dataclass(frozen=True)
class _Phases:
    """By step, (steps + 1,): the ball's radius in eps; whether to check how sparse the best point is; whether a ball ends."""

    radius: Tensor
    checks: Tensor
    ends: Tensor

    def ball(self, rows: Rows, step: Tensor) -> Threat:
        """The ball of the phase that each sample is in."""
        if bool((self.radius == 1).all()):
            return rows.threat
        return replace(rows.threat, eps=self.radius[step].to(rows.value) * rows.threat.eps)


@lru_cache(maxsize=32)
def _phases(steps: int, shrinking: bool) -> _Phases:
    radius, checks, ends = (torch.zeros(steps + 1) for _ in range(3))
    third = min(-(-30 * steps // 100), steps)
    begins = [0, third, min(2 * third, steps), steps] if shrinking else [0, steps]
    for factor, first, last in zip((3.0, 2.0, 1.0) if shrinking else (1.0,), begins, begins[1:]):
        radius[first:], every = factor, max((last - first) * 4 // 100, 1)
        checks[first + every : last : every] = 1
        ends[last - 1] = last < steps and last > first
    return _Phases(radius, checks > 0, ends > 0)


@lru_cache(maxsize=32)
def _windows(steps: int) -> Tensor:
    """(steps + 1,) how many steps lie between a checkpoint and the one before; 0 elsewhere. Croce and Hein (2020), eq. 3."""
    windows, before, percent, gap = torch.zeros(steps + 1), 0, 22, 22
    while percent < 100:
        here = -(-percent * steps // 100)
        if here > before:
            windows[here] = here - before
        before, gap = here, max(gap - 3, 6)
        percent += gap
    return windows


def _changed(x: Tensor, original: Tensor) -> Tensor:
    """(B,) how many entries differ."""
    return (x != original).flatten(1).sum(1).to(x.dtype)


def _largest(gradient: Tensor, count: Tensor) -> Tensor:
    """The signs of each sample's largest entries, `count` (B,) of them, divided by their number."""
    size = gradient.abs().flatten(1)
    rank = count.long().clamp(1, size.shape[1])
    least = size.topk(int(rank.max()), dim=1).values.gather(1, rank[:, None] - 1)
    sign = gradient.sign().flatten(1) * (size >= least)
    return (sign / sign.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


class _Inside(Pool):
    """A loop whose iterates may leave the ball: points outside are no results."""

    def _keep(self, rows: Rows, point: Tensor, logits: Tensor, value: Tensor) -> Tensor:
        kept = {name: getattr(rows, name) for name in ("best", "value", "prediction", "fooled")}
        success = super()._keep(rows, point, logits, value)
        inside = rows.threat.size(rows.original, point) <= rows.threat.eps * (1 + 1e-5)
        for name, before in kept.items():
            now = getattr(rows, name)
            setattr(rows, name, torch.where(per_sample(inside, now), now, before))
        return success & inside
