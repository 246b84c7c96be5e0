"""Looks at a model beside the attacks: does it answer the same twice, and do its gradients lead anywhere?

Each probe takes a few samples and returns one value for each, so that counts over any part of them can be told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparring.ascent import Probe, Trace
from sparring.attacks.base import GradientAttack
from sparring.attacks.sign import climbed
from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.objective import Objective, fooled, predict
from sparring.rows import Rows
from sparring.threat import Threat

REPEAT = 1e-3  # of the spread of a sample's logits: more than kernels on any device differ from run to run
COMPANY = 1e-2  # more than kernels differ with the size of the batch


@dataclass(frozen=True)
class Climb(GradientAttack):
    """Steps of one length up the margin, from the input or from the start that is given. length: in units of eps."""

    steps: int = 10
    length: float = 0.25
    objective: str | Objective = field(default="margin", kw_only=True)

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        return rows.start if len(rows.start) else rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        return climbed(rows, gradient, rows.threat.eps * self.length)


def climb(
    model: Borrowed,
    rows: Rows,
    steps: int,
    length: float,
    *,
    seed: int,
    capacity: int,
    stop: bool = True,
    trace: Trace | None = None,
) -> Rows:
    """These samples after so many steps, in their order. stop: who is fooled takes no further ones."""
    pool = Climb(rows.threat, steps, length).pool(
        model, seed=seed, capacity=capacity, stop_when_fooled=stop, goal=False, trace=trace
    )
    order = torch.arange(len(rows))
    rows = replace(rows, ticket=order)
    done = []
    for first in range(0, len(rows), capacity):
        pool.add(rows[order[first : first + capacity]])
        while len(pool):
            if (left := pool.step()) is not None:
                done.append(left)
    joined = done[0]
    for part in done[1:]:
        joined = joined + part
    return joined[joined.ticket.argsort()]


def whole_box(rows: Rows) -> Threat | None:
    """The threat with so large an eps that only the box is left as a limit; None where there is no such limit."""
    threat = rows.threat
    if threat.bounds is None or threat.norm == "l0":
        return None
    width, entries = threat.bounds[1] - threat.bounds[0], math.prod(rows.original.shape[1:])
    return replace(threat, eps=width * {"linf": 1.0, "l2": entries**0.5, "l1": float(entries)}[threat.norm], typed="")


def logits_of(model: Borrowed, x: Tensor, rows: Rows, capacity: int) -> Tensor:
    """(N, C) in single precision or better, asked in batches of `capacity`."""
    parts = []
    for first in range(0, len(x), capacity):
        some = slice(first, first + capacity)
        parts.append(model.look(x[some], {name: part[some] for name, part in rows.context.items()}))
    logits = torch.cat(parts)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def differ(a: Tensor, b: Tensor, limit: float, dtype: torch.dtype) -> Tensor:
    """(N,) bool: logits (N, C) further apart than `limit` times their spread, or than rounding in `dtype` may bring."""
    spread = (a.amax(1) - a.amin(1)).clamp_min(torch.finfo(torch.float32).tiny)
    apart = (a - b).abs().amax(1) / spread
    return ~(apart <= max(limit, 16 * torch.finfo(dtype).eps))  # NaN is no agreement


def repeats(model: Borrowed, rows: Rows, *, seed: int, capacity: int) -> tuple[Tensor, Tensor]:
    """(N,) bool: logits differ when the same batch is asked again, and so does the class; four forwards a sample.

    Twice at the input, twice at a random point of the ball: some models are random only where an attack works.
    """
    points = [rows.original]
    if not math.isinf(float(torch.as_tensor(rows.threat.eps).max())):
        points.append(rows.threat.random(rows.original, Noise(seed, rows.index), "repeats"))
    moved = torch.zeros(len(rows), dtype=torch.bool)
    turned = moved.clone()
    for x in points:
        first, second = (logits_of(model, x, rows, capacity) for _ in range(2))
        moved |= differ(first, second, REPEAT, x.dtype).cpu()
        turned |= (predict(first) != predict(second)).cpu()
    return moved, turned


def company(model: Borrowed, rows: Rows, *, capacity: int) -> Tensor:
    """(N,) bool: logits depend on the rest of the batch. Three forwards a sample: among the others, and beside a blank one."""
    together = logits_of(model, rows.original, rows, capacity)
    blank = torch.full_like(rows.original[:1], 0.0 if rows.threat.bounds is None else rows.threat.bounds[0])
    beside = []
    for i in range(len(rows)):
        pair = {name: part[[i, i]] for name, part in rows.context.items()}
        beside.append(model.look(torch.cat([rows.original[i : i + 1], blank]), pair)[:1])
    return differ(together, torch.cat(beside).to(together.dtype), COMPANY, rows.original.dtype).cpu()


def rounded_away(model: Borrowed, x: Tensor, y: Tensor, capacity: int) -> Tensor:
    """(N,) bool: examples x in [0, 1] that fool no more when each entry is rounded to 8 bits, as an image file would."""
    saved = (x.float() * 255).round().div(255).to(x.dtype)
    parts = [slice(first, first + capacity) for first in range(0, len(x), capacity)]
    return torch.cat([~fooled(predict(model.look(saved[part])), y[part]) for part in parts]).cpu()
