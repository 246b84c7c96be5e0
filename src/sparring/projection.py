"""Exact Euclidean projections of a change onto a norm ball, while no entry moves beyond its room in the box.

All take size (B, D) ≥ 0, the absolute changes; room (B, D) ≥ 0, how far each entry may go in its direction (inf without
a box); eps, a number or (B,). They return the absolute changes of the nearest point. By symmetry signs stay.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _column(eps: float | Tensor, like: Tensor) -> Tensor:
    return eps[:, None] if isinstance(eps, Tensor) else like.new_full((len(like), 1), eps)


def project_l2(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """min(s·size, room) with the largest s ≤ 1 whose length is at most eps.

    s solves a piecewise quadratic equation. Starting below the root and counting as held every entry that has reached
    its room, each solve moves s up, and it stops at the root when no further entry is held.
    """
    radius = _column(eps, size)
    free = torch.minimum(size, room)
    outside = free.norm(dim=1, keepdim=True) > radius
    if not bool(outside.any()):
        return free
    square = size.square()
    scale = radius / square.sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(size.dtype).tiny)
    held = (scale * size >= room) & (size > 0)
    while True:
        spent = torch.where(held, room, 0).square().sum(1, keepdim=True)
        rest = square.masked_fill(held, 0).sum(1, keepdim=True)
        solved = ((radius.square() - spent).clamp_min(0) / rest.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()
        scale = torch.maximum(scale, solved).clamp_max(1)
        reached = held | ((scale * size >= room) & (size > 0))
        if bool((reached == held)[outside.squeeze(1)].all()):
            break
        held = reached
    return torch.where(outside, torch.minimum(scale * size, room), free)


def project_l1(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """min(max(size − λ, 0), room) with the smallest λ ≥ 0 whose sum is at most eps (Croce and Hein, 2021).

    The sum falls piecewise linearly in λ: entry i is at its room until λ = size − room, and zero from λ = size on.
    Sorting these points finds the piece that crosses eps; λ is then solved for exactly in it.
    """
    radius = _column(eps, size)
    free = torch.minimum(size, room)
    outside = free.sum(1, keepdim=True) > radius
    if not bool(outside.any()):
        return free
    start = (size - room).clamp_min(0)
    points, order = torch.cat([start, size], 1).sort(1)
    falling = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(1)
    exact = torch.float64 if size.device.type != "mps" else size.dtype
    drops = (falling[:, :-1] * points.diff(dim=1)).to(exact).cumsum(1)
    # before the first point nothing falls; drops[k] is what the sum has lost at points[k + 1]
    over = free.sum(1, keepdim=True).to(exact) - radius.to(exact)
    piece = (drops < over).sum(1, keepdim=True).clamp_max(points.shape[1] - 2)
    middle = (points.gather(1, piece) + points.gather(1, piece + 1)) / 2
    held, falls = start > middle, (start <= middle) & (size > middle)
    total = torch.where(falls, size, 0).sum(1, keepdim=True) + torch.where(held, room, 0).sum(1, keepdim=True)
    shift = (total - radius) / falls.sum(1, keepdim=True).clamp_min(1)
    shift = torch.where(falls.any(1, keepdim=True), shift, middle).clamp_min(0)
    return torch.where(outside, torch.minimum((size - shift).clamp_min(0), room), free)


def project_l0(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """The floor(eps) entries whose change brings the point nearest; the others stay.

    Moving entry i by c = min(size, room) shortens the squared distance by size² − (size − c)².
    """
    free = torch.minimum(size, room)
    gain = free * (2 * size - free)
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(1)
    return torch.where(rank < _column(eps, size).floor(), free, 0)
