"""How near does failure lie? From a fooling example inwards, to the smallest change found that still fools."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.objective import fooled, margin, predict
from sparring.rows import Rows
from sparring.threat import per_sample

STEPS = 10  # of `smallest_norm`: close to what forty find (a few per cent), at a quarter of the passes
LOOKS = 8  # of `draw_back`: to 1/256 of the way
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


@dataclass(frozen=True)
class Found:
    """norm: (N,) float64 on the CPU. forwards, backwards: what it cost, a sample."""

    norm: Tensor
    forwards: int
    backwards: int


def smallest_norm(model: Borrowed, rows: Rows, steps: int = STEPS) -> Found:
    """The smallest norm found at which each sample of `rows` is fooled, at most that of its example `rows.best`.

    As in FMN (Pintor et al., 2021) each step moves along the margin's gradient inside a ball of the sample's own, whose
    radius follows the boundary: it is where a linear model would put it, norm − margin / ‖gradient‖ in the dual norm,
    but at least 0.4 and, where the sample is fooled, at most 0.98 of the smallest norm so far.
    An l0 threat has no steepest step: there the norm is that of the example, at no cost.
    """
    threat, origin, y = rows.threat, rows.original, rows.y
    x, smallest = (
        rows.best,
        threat.size(rows.original, rows.best),
    )  # x: what the model sees of `at`, in float32 or better
    at = x.to(smallest.dtype)
    if threat.norm not in _DUAL:
        return Found(smallest.cpu().double(), 0, 0)
    for step in range(steps):
        logits, value, gradient = model.probe(x, lambda z: margin(z, y), rows.context)
        fools = fooled(predict(logits), y)
        size = threat.size(origin, x)
        smallest = torch.where(fools & (size < smallest), size, smallest)
        gradient = gradient.to(at.dtype).nan_to_num(0.0, 0.0, 0.0)
        slope = gradient.flatten(1).norm(_DUAL[threat.norm], dim=1)
        boundary = size - value.to(size.dtype) / slope.clamp_min(torch.finfo(size.dtype).tiny)
        most = torch.where(fools, 0.98 * smallest, smallest)
        radius = torch.minimum(torch.maximum(boundary, 0.4 * smallest), most)
        length = radius * (1 + math.cos(math.pi * step / steps)) / 2
        move = per_sample(length, at) * threat.steepest(gradient, at, length=length)
        at = replace(threat, eps=radius).project(origin, at + move, wide=True)
        x = threat.rounded(origin, at)
    fools, size = fooled(predict(model.look(x, rows.context)), y), threat.size(origin, x)
    smallest = torch.where(fools & (size < smallest), size, smallest)
    return Found(smallest.cpu().double(), steps + 1, steps)


def draw_back(model: Borrowed, rows: Rows, looks: int = LOOKS) -> Found:
    """The smallest norm on the way back to the original at which each sample is still fooled, without gradients.

    Bisection along the segment from original to example, `looks` forwards a sample: to 2^−looks of the way.
    """
    dtype = torch.promote_types(rows.best.dtype, torch.float32)
    origin, change = rows.original.to(dtype), rows.best.to(dtype) - rows.original.to(dtype)
    inside = torch.zeros(len(rows), dtype=dtype, device=origin.device)
    outside = torch.ones_like(inside)
    nearest = rows.best
    for _ in range(looks):
        middle = (inside + outside) / 2
        x = (origin + per_sample(middle, origin) * change).to(rows.best.dtype)
        still = fooled(predict(model.look(x, rows.context)), rows.y)
        inside, outside = torch.where(still, inside, middle), torch.where(still, middle, outside)
        nearest = torch.where(per_sample(still, x), x, nearest)
    return Found(rows.threat.size(rows.original, nearest).cpu().double(), looks, 0)
