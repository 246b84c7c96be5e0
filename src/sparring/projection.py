"""Exact Euclidean projections of a change onto a norm ball, while no entry moves beyond its room in the box.

The projections take size (B, D) ≥ 0, the absolute changes; room (B, D) ≥ 0, how far each entry may go in its direction
(inf without a box); eps, a number or (B,). They return the absolute changes of the nearest point. By symmetry signs stay.
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
    outside = _length(free) > radius
    if not bool(outside.any()):
        return free
    tiny = torch.finfo(size.dtype).tiny
    scale = radius / _length(size).clamp_min(tiny)
    moved, count = scale * size, None
    while True:
        held = moved >= room
        now = held.sum(1, keepdim=True)
        if count is not None and bool(((now == count) | ~outside).all()):
            break
        count = now
        spent, rest = _length(torch.where(held, room, 0)), _length(size.masked_fill(held, 0))
        solved = ((radius - spent) * (radius + spent)).clamp_min(0).sqrt() / rest.clamp_min(tiny)
        scale = torch.maximum(scale, solved).clamp_max(1)
        moved = scale * size
    return torch.where(outside, torch.minimum(moved, room), free)


def _length(size: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(size, dim=1, keepdim=True)
    return length


def project_l1(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """min(max(size − λ, 0), room) with the smallest λ ≥ 0 whose sum is at most eps (Croce and Hein, 2021).

    The sum falls piecewise linearly in λ. Newton's method lands on the root once it is on the right piece; a bracket
    catches it where entries held by their room bend the sum the other way.
    """
    radius = _column(eps, size)
    moved = torch.minimum(size, room)
    over = moved.sum(1, keepdim=True) - radius
    open_ = over > 0  # a row that is solved stays as it is: its result may not depend on the batch
    if not bool(open_.any()):
        return moved
    slack = 4 * torch.finfo(size.dtype).eps * radius
    below, above = torch.zeros_like(radius), size.amax(1, keepdim=True)
    shift = below
    while True:
        falls = ((moved > 0) & (moved < room)).sum(1, keepdim=True)
        newton = shift + over / falls.clamp_min(1)
        inside = (newton > below) & (newton < above) & (falls > 0)  # where the sum is flat it leads nowhere
        shift = torch.where(open_, torch.where(inside, newton, (below + above) / 2), shift)
        moved = torch.minimum((size - shift).clamp_min_(0), room)
        over = moved.sum(1, keepdim=True) - radius
        below, above = torch.where(over > 0, shift, below), torch.where(over > 0, above, shift)
        narrow = above - below <= torch.finfo(size.dtype).eps * above
        open_ = open_ & (over.abs() > slack) & ~narrow
        if not bool(open_.any()):
            return moved


def project_l0(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """The floor(eps) entries whose change brings the point nearest; the others stay.

    Moving entry i by c = min(size, room) shortens the squared distance by size² − (size − c)².
    """
    free = torch.minimum(size, room)
    gain = free * (2 * size - free)
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(1)
    return torch.where(rank < _column(eps, size).floor(), free, 0)


def sparse_step(size: Tensor, room: Tensor, length: float | Tensor, served: int) -> Tensor:
    """How an l1 step of `length` is shared among the entries, (B, D), as parts of it that add up to at most 1.

    size: (B, D), the gradient's absolute values. The largest are served first, each with at most 1 / served of the
    length and no further than its room, until the length is spent.
    """
    size = size.masked_fill(room <= 0, 0)
    whole = length.to(size.dtype)[:, None] if isinstance(length, Tensor) else size.new_tensor(length)
    share = (room / whole.clamp_min(torch.finfo(size.dtype).tiny)).clamp(0, 1 / served)
    first = min(size.shape[1], 4 * served)
    while True:  # as a rule a few of the largest spend the length; else all of them have to be sorted
        largest, order = size.topk(first, dim=1)
        part = share.gather(1, order).masked_fill_(largest == 0, 0)
        unspent = (part.sum(1) < 1) & (largest[:, -1] > 0)
        if first == size.shape[1] or not bool(unspent.any()):
            part = part.minimum((1 - (part.cumsum(1) - part)).clamp_min(0))
            return torch.zeros_like(size).scatter(1, order, part)
        first = size.shape[1]


def cross(norm: str, slope: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """The change (B, D) ≥ 0 of the smallest norm, no entry beyond its room, whose sum of slope · change is `gain` (B,).

    norm: "linf", "l2" or "l1". slope: (B, D) ≥ 0. Where all the room there is does not give the gain, all of it is used.
    """
    if norm == "l1":
        return _cross_l1(slope, room, gain)
    room = room.masked_fill(slope == 0, 0)
    rate = (slope > 0).to(slope.dtype) if norm == "linf" else slope
    # min(s·rate, room) with the smallest s that gives the gain: it grows with s, ever slower, so Newton's method comes from below
    wanted = gain[:, None]
    short = (slope * room).nan_to_num(torch.inf).sum(1, keepdim=True) <= wanted
    scale, count = torch.zeros_like(wanted), None
    while True:
        held = scale * rate >= room
        now = held.sum(1, keepdim=True)
        if count is not None and bool(((now == count) | short).all()):
            return torch.where(short, room, torch.minimum(scale * rate, room))
        count = now
        rest = (slope * rate).masked_fill(held, 0).sum(1, keepdim=True)
        left = wanted - (slope * room).masked_fill(~held, 0).sum(1, keepdim=True)
        scale = torch.maximum(scale, torch.where(rest > 0, left / rest, 0))


def _cross_l1(slope: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """The steepest entries first, each to the end of its room, until the gain is reached."""
    tiny = torch.finfo(slope.dtype).tiny
    room = torch.minimum(room, gain[:, None] / slope.clamp_min(tiny)).masked_fill(slope == 0, 0)
    first = min(slope.shape[1], 64)
    while True:
        steepest, order = slope.topk(first, dim=1)
        grown = steepest * room.gather(1, order)
        before = grown.cumsum(1) - grown
        if first == slope.shape[1] or bool(((before[:, -1] + grown[:, -1] >= gain) | (steepest[:, -1] == 0)).all()):
            part = torch.minimum(grown, (gain[:, None] - before).clamp_min(0)) / steepest.clamp_min(tiny)
            return torch.zeros_like(slope).scatter(1, order, part)
        first = min(slope.shape[1], 4 * first)
