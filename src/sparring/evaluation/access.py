"""What an auditor may ask of a model: its gradients, its scores, or its decisions alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparring.attacks import Attack, HopSkipJump, Square
from sparring.queries import Answers, QueryPool
from sparring.rows import Rows
from sparring.threat import Threat

ACCESS = ("gradients", "scores", "decisions")  # each is content with less than the one before
BUDGET = 5000  # queries of a sample, where nobody says


def check_access(access: str, query_budget: int | None, chosen_by_us: bool) -> None:
    """ValueError for an access that there is none of, and for a budget that no attack would get."""
    if access not in ACCESS:
        raise ValueError(f"access={access!r}: expected one of {', '.join(ACCESS)}")
    if query_budget is None:
        return
    if not isinstance(query_budget, int) or query_budget < 1:
        raise ValueError(f"query_budget={query_budget!r}: expected a whole number, at least 1")
    if access == "gradients" or not chosen_by_us:
        raise ValueError(
            f"query_budget={query_budget} with access={access!r}: it is for the attack that evaluate chooses under access "
            "'scores' or 'decisions'; give your own attacks their queries, as in sp.Square(threat, queries=1000)"
        )


def default_attacks(access: str, threat: Threat, query_budget: int | None) -> list[Attack]:
    """What `evaluate` runs for an auditor without gradients."""
    kind = Square if access == "scores" else HopSkipJump
    return [kind(threat, queries=BUDGET if query_budget is None else query_budget)]


def check_attacks(attacks: Sequence[Any], access: str) -> None:
    """ValueError for an attack that asks for more than there is."""
    for attack in attacks:
        needs = attack.access if isinstance(attack, Attack) else access
        if ACCESS.index(needs) < ACCESS.index(access):
            fits = [a.__name__ for a in (Square, HopSkipJump) if ACCESS.index(a.access) >= ACCESS.index(access)]
            raise ValueError(
                f"{attack.name} needs {needs}, and access={access!r} gives none: use {' or '.join(fits)}, or leave the "
                "choice to evaluate"
            )


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
