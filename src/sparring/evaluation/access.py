"""What an auditor may ask of a model: its gradients, its scores, or its decisions alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparring.attacks import Attack, HopSkipJump, Square
from sparring.evaluation import cascade
from sparring.queries import Answers, QueryPool
from sparring.rows import Rows
from sparring.threat import Threat

ACCESS = ("gradients", "scores", "decisions")  # each is content with less than the one before
BUDGET = 5000  # queries of a sample, where nobody says


def choose(
    attacks: cascade.Attacks, threat: Threat, autocast: torch.dtype | None, access: str, query_budget: int | None
) -> list[cascade.AnyAttack]:
    """The attacks to run, none of which asks for more than there is; where the choice is ours, the one for this access.

    ValueError for an access that is none, an attack that needs more, and a budget that no attack would get.
    """
    ours = cascade.is_adaptive(attacks)
    if access not in ACCESS:
        raise ValueError(f"access={access!r}: expected one of {', '.join(ACCESS)}")
    if query_budget is not None and (access == "gradients" or not ours):
        raise ValueError(
            f"query_budget={query_budget} with access={access!r}: it is for the attack that evaluate chooses under access "
            "'scores' or 'decisions'; give your own attacks their queries, as in sp.Square(threat, queries=1000)"
        )
    if ours and access != "gradients":
        kind = Square if access == "scores" else HopSkipJump
        attacks = kind(threat, queries=BUDGET if query_budget is None else query_budget)
    chosen = cascade.resolve(attacks, threat, autocast)
    for attack in chosen:
        if isinstance(attack, Attack) and ACCESS.index(attack.access) < ACCESS.index(access):
            fits = [
                kind.__name__ for kind in (Square, HopSkipJump) if ACCESS.index(kind.access) >= ACCESS.index(access)
            ]
            raise ValueError(
                f"{attack.name} needs {attack.access}, and access={access!r} gives none: use {' or '.join(fits)}, or leave "
                "the choice to evaluate"
            )
    return chosen


@contextmanager
def logged(pools: Sequence[Any], path: str | Path | None) -> Iterator[None]:
    """While the block runs, every query of these loops is a line of the file: sample, query, margin (for decisions ± 1),
    and whether it fooled. A run that goes on where it was appends."""
    if path is None:
        yield
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def write(rows: Rows, answers: Answers) -> None:
            asked, last = rows.forwards.tolist(), -1
            index, count = rows.index.tolist(), 0
            for owner, value, success in zip(
                answers.owner.tolist(), answers.value.tolist(), answers.success.tolist(), strict=True
            ):
                count = count + 1 if owner == last else 1
                last = owner
                line = {"sample": index[owner], "query": asked[owner] + count, "value": value, "fooled": success}
                file.write(json.dumps(line) + "\n")

        for pool in pools:
            if isinstance(pool, QueryPool):
                pool.log = write
        yield
