"""Examples to train on: the attacks of `sparring.attacks`, at K forwards and K backwards, and their last iterate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparring.ascent import Pool
from sparring.attacks.base import Attack, drain
from sparring.attacks.inputs import prepare
from sparring.borrow import Borrowed
from sparring.rows import Rows


def craft(
    attack: Attack,
    model: Borrowed,
    x: Tensor,
    y: Tensor,
    *,
    indices: Tensor | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    together: bool = False,
) -> Tensor:
    """Adversarial examples (B, *S) for x (B, *S) with labels y (B,), crafted on a borrowed model.

    K steps of a gradient attack cost K forwards and K backwards, and the last iterate is returned: no look whether it
    fools. With `stop_when_fooled` a sample stays where it first fooled, and costs no more. Attacks that are no ascent
    (smallest perturbation, query-based) run as they do when called.
    start: (B, *S) where to begin, instead of where the attack would. together: samples that have stopped stay in the
    forwards of the others, whose BatchNorm takes its statistics from the whole batch, also where one sample is left.
    """
    if not together:
        return _crafted(attack, model, x, y, indices, seed, start, [])
    with company(model) as stopped:
        return _crafted(attack, model, x, y, indices, seed, start, stopped)


@contextmanager
def company(model: Borrowed) -> Iterator[list[Tensor]]:
    """What is put into the list goes through the model beside whatever it is called with; only its answers to that are seen."""
    alone = model.model
    stopped: list[Tensor] = []

    def beside(x: Tensor) -> Any:
        if not stopped:
            return alone(x)
        others = torch.cat(stopped).to(x)
        model.forwards += len(others)
        return alone(torch.cat([x, others]))[: len(x)]

    before = model.layout.whole
    model.model, model.layout.whole = beside, True  # copies that fill a batch up would enter its statistics
    try:
        yield stopped
    finally:
        model.model, model.layout.whole = alone, before


def _crafted(
    attack: Attack,
    model: Borrowed,
    x: Tensor,
    y: Tensor,
    indices: Tensor | None,
    seed: int,
    start: Tensor | None,
    stopped: list[Tensor],
) -> Tensor:
    rows = prepare(
        model,
        attack.threat,
        x,
        y,
        targets=attack.targets,
        indices=indices,
        seed=seed,
        needs_reference=attack.needs_reference,
    )
    pool = attack.pool(model, seed=seed, stop_when_fooled=attack.stop_when_fooled)
    result = rows.original.clone()
    if not isinstance(pool, Pool) or attack.restarts > 1:
        for gone in drain(pool, rows):
            stopped.append(gone.best)
            result[gone.ticket.to(result.device)] = gone.best
        return result
    pool.add(rows)
    if start is not None and pool.active is not None:
        pool.active.x = rows.threat.project(rows.original, start, wide=True)

    def put(those: Rows) -> None:
        stopped.append(those.threat.rounded(those.original, those.x))
        result[those.ticket.to(result.device)] = stopped[-1]

    while pool.active is not None:  # the pool has no limit: it looks at last iterates only when nobody climbs any more
        if (left := pool.step()) is not None:
            put(left)
    if pool.parked is not None:
        put(pool.parked)
    return result
