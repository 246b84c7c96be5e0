"""The attack of Carlini and Wagner: the squared l2 norm and the margin, weighed against each other and descended by Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.minimal import MinimalAttack, annealed
from sparring.attacks.sign import need_norm
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import per_sample

_CHECKS = 10  # a search looks that often whether it still gets on


@dataclass(frozen=True)
class CarliniWagner(MinimalAttack):
    """Carlini and Wagner's l2 attack. Carlini and Wagner (2017).

    Minimises ‖x′ − x‖² + c · max(margin of the label, 0) by Adam, with x′ = x + half the box · (tanh w − tanh w₀), so that it
    stays inside the box (it is clipped where it begins near an end). Unlike in the paper's form, entries at the ends of the
    box begin where tanh is not flat, and the search begins exactly at x. The smallest c that fools is searched for each sample
    by itself: tenfold until one does, then by bisection. A sample whose loss stops falling goes on to its next c.

    steps: in all, shared by the searches: at most K backwards and K + 1 forwards. search_steps: how many values of c are tried.
    c: the first. lr: Adam's step in w; once something fools, it falls to 0 by a cosine within each search.
    """

    steps: int = 900
    search_steps: int = 9
    c: float = 1.0
    lr: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "l2")
        if not isinstance(self.search_steps, int) or not 1 <= self.search_steps <= self.steps:
            raise ValueError(
                f"CarliniWagner(steps={self.steps}, search_steps={self.search_steps!r}): expected a whole number, at least 1, "
                "and a step for each"
            )
        for what in ("c", "lr"):
            if not getattr(self, what) > 0:
                raise ValueError(f"CarliniWagner({what}={getattr(self, what)!r}): expected a number above 0")

    @property
    def _each(self) -> int:
        return self.steps // self.search_steps

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        none, zeros = rows.value.new_zeros(len(rows)), torch.zeros_like(rows.original, dtype=rows.value.dtype)
        rows.memory = {
            "c": none + self.c, "low": none, "high": none + math.inf, "loss": none + math.inf,
            "search": none, "count": none, "hit": none.bool(),
            "w": zeros, "mean": zeros, "square": zeros, "first": zeros, "lead": none,
        }  # fmt: skip
        return rows.original

    def _loss(self, rows: Rows) -> Tensor:
        change = (rows.x - rows.original).flatten(1)
        short = torch.where(rows.fools, 0, -rows.current.to(change.dtype))
        loss: Tensor = (change * change).sum(1) + rows.memory["c"] * short
        return loss

    def _over(self, rows: Rows) -> Tensor:
        """(N,) bool: the search with this c has used up its steps, or no longer gets on."""
        memory, every = rows.memory, max(1, self._each // _CHECKS)
        checked = (memory["count"] > 0) & (memory["count"] % every == 0)
        still = self._loss(rows) >= 0.9999 * memory["loss"]
        over: Tensor = (memory["count"] >= self._each) | (checked & still)
        return over

    def settled(self, rows: Rows) -> Tensor:
        last: Tensor = rows.memory["search"] + 1 >= self.search_steps
        return super().settled(rows) | (self._over(rows) & last)

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        memory, wide = dict(rows.memory), rows.value.dtype
        over, loss, lead = self._over(rows), self._loss(rows), rows.current.to(wide)
        fools, x = rows.fools, rows.x
        if not bool(rows.step.any()):
            memory["first"], memory["lead"] = gradient.to(wide), lead
        elif bool((rows.step == 0).any()):
            new = (rows.step == 0).to(x.device)
            memory["first"] = torch.where(per_sample(new, x), gradient, memory["first"])
            memory["lead"] = torch.where(new, lead, memory["lead"])
        memory["hit"] = memory["hit"] | fools
        every = max(1, self._each // _CHECKS)
        memory["loss"] = torch.where(memory["count"] % every == 0, loss, memory["loss"])
        if bool(over.any()):
            self._next_search(memory, over)
            # the look at the input itself is the same in every search
            again = per_sample(over, x)
            x, gradient = torch.where(again, rows.original, x), torch.where(again, memory["first"], gradient)
            lead, fools = torch.where(over, memory["lead"], lead), fools & ~over
        change = x - rows.original
        slope = 2 * change - per_sample(torch.where(fools, 0, memory["c"]), x) * gradient
        moved = self._adam(rows, memory, slope)
        rows.memory = memory
        return moved

    def _next_search(self, memory: dict[str, Tensor], over: Tensor) -> None:
        hit = memory["hit"]
        memory["high"] = torch.where(over & hit, torch.minimum(memory["high"], memory["c"]), memory["high"])
        memory["low"] = torch.where(over & ~hit, torch.maximum(memory["low"], memory["c"]), memory["low"])
        c = torch.where(memory["high"].isinf(), memory["c"] * 10, (memory["low"] + memory["high"]) / 2)
        memory["c"], memory["hit"] = torch.where(over, c, memory["c"]), hit & ~over
        memory["search"], memory["count"] = memory["search"] + over, memory["count"].masked_fill(over, 0)
        memory["loss"] = memory["loss"].masked_fill(over, math.inf)
        for name in ("w", "mean", "square"):
            memory[name] = torch.where(per_sample(over, memory[name]), 0, memory[name])

    def _adam(self, rows: Rows, memory: dict[str, Tensor], slope: Tensor) -> Tensor:
        """Adam's step in w, and the x′ there. `w` is kept as the way from w₀, so that zeros begin a search."""
        bounds, origin = rows.threat.bounds, rows.original.to(rows.value.dtype)
        if bounds is not None:
            half = (bounds[1] - bounds[0]) / 2
            start = (0.9 * ((origin - bounds[0]) / half - 1)).atanh()
            slope = slope * half * (1 - (start + memory["w"]).tanh() ** 2)
        memory["count"] = memory["count"] + 1
        memory["mean"] = 0.9 * memory["mean"] + 0.1 * slope
        memory["square"] = 0.999 * memory["square"] + 0.001 * slope * slope
        mean = memory["mean"] / per_sample(1 - 0.9 ** memory["count"], slope)
        square = memory["square"] / per_sample(1 - 0.999 ** memory["count"], slope)
        lr = annealed(rows, self._each, self.lr, 0.0, memory["count"] - 1)
        lr = torch.where(rows.norm.isfinite(), lr, self.lr)  # the first example may be far
        memory["w"] = memory["w"] - per_sample(lr, slope) * mean / (square.sqrt() + 1e-8)
        if bounds is None:
            return origin + memory["w"]
        return (origin + half * ((start + memory["w"]).tanh() - start.tanh())).clamp(*bounds)
