"""Examples to train on: the attacks of `sparring.attacks`, at K forwards and K backwards, and their last iterate."""

from __future__ import annotations

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
) -> Tensor:
    """Adversarial examples (B, *S) for x (B, *S) with labels y (B,), crafted on a borrowed model.

    K steps of a gradient attack cost K forwards and K backwards, and the last iterate is returned: no look whether it
    fools. With `stop_when_fooled` a sample stays where it first fooled, and costs no more. Attacks that are no ascent
    (smallest perturbation, query-based) run as they do when called.
    start: (B, *S) where to begin, instead of where the attack would.
    """
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
            result[gone.ticket.to(result.device)] = gone.best
        return result
    pool.add(rows)
    if start is not None and pool.active is not None:
        pool.active.x = rows.threat.project(rows.original, start, wide=True)

    def put(those: Rows) -> None:
        result[those.ticket.to(result.device)] = those.threat.rounded(those.original, those.x)

    while pool.active is not None:  # the pool has no limit: it looks at last iterates only when nobody climbs any more
        if (left := pool.step()) is not None:
            put(left)
    if pool.parked is not None:
        put(pool.parked)
    return result
