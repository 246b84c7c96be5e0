"""How near does failure lie? From a fooling example inwards, to the smallest change that still fools."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.objective import fooled, margin, predict
from sparring.rows import Rows
from sparring.threat import Threat, per_sample

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def smallest_norm(model: Borrowed, rows: Rows, steps: int) -> Tensor:
    """The smallest norm found at which each fooled sample of `rows` is fooled, (N,) float64, at most that of its example.

    As in FMN (Pintor et al., 2021) each step moves along the margin's gradient inside a ball of the sample's own, whose
    radius follows the boundary: it is where a linear model would put it, norm − margin / ‖gradient‖ in the dual norm,
    but at least 0.4 and, where the sample is fooled, at most 0.98 of the smallest norm so far. `steps` forwards and backwards
    a sample, and one forward. An l0 threat, which has no steepest step, keeps the norm of its examples.
    """
    threat, origin, y = rows.threat, rows.original, rows.y
    x, smallest = rows.best, threat.size(rows.original, rows.best)
    if threat.norm not in DUAL:
        return smallest.double().cpu()
    for step in range(steps):
        logits, value, gradient = model.probe(x, lambda z: margin(z, y), rows.context)
        smallest = _shrink(threat, rows, x, logits, smallest)
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        slope = gradient.flatten(1).to(smallest.dtype).norm(DUAL[threat.norm], dim=1)
        boundary = threat.size(origin, x) - value.to(smallest.dtype) / slope.clamp_min(torch.finfo(smallest.dtype).tiny)
        most = torch.where(fooled(predict(logits), y), 0.98 * smallest, smallest)
        radius = torch.minimum(torch.maximum(boundary, 0.4 * smallest), most)
        length = radius * (1 + math.cos(math.pi * step / steps)) / 2
        direction = threat.steepest(gradient, x)
        moved = x + per_sample(length, x).to(direction.dtype) * direction
        x = threat.with_eps(radius).project(origin, moved)
    return _shrink(threat, rows, x, model.look(x, rows.context), smallest).double().cpu()


def _shrink(threat: Threat, rows: Rows, x: Tensor, logits: Tensor, smallest: Tensor) -> Tensor:
    size = threat.size(rows.original, x)
    return torch.where(fooled(predict(logits), rows.y) & (size < smallest), size, smallest)
