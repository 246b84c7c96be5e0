"""What the attacks of a result are called where people read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def labels(attacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each row of a document's attacks: what it does, and of several its number, since some come again.

    >>> labels([{"name": "PGD", "settings": {"steps": 40, "objective": "margin"}}])
    ['PGD, 40 steps, margin']
    >>> labels([{"name": "Square", "settings": {"queries": 1000, "start": "given"}}, {"name": "mine", "settings": {}}])
    ['1. Square, 1,000 queries, from the best point so far', '2. mine']
    """
    told = [_described(row["name"], row["settings"]) for row in attacks]
    return told if len(told) == 1 else [f"{number}. {text}" for number, text in enumerate(told, 1)]


def _described(name: str, settings: Mapping[str, Any]) -> str:
    restarts, first, rivals = settings.get("restarts", 1), settings.get("first", 0), settings.get("rivals")
    parts = [
        name,
        f"{settings['steps']} steps" if "steps" in settings else None,
        f"{settings['queries']:,} queries" if settings.get("queries") else None,
        f"{restarts} restarts" if restarts > 1 else None,
        f"rival{'s' if rivals > 1 else ''} {first + 1}{f' to {first + rivals}' if rivals > 1 else ''}"
        if rivals
        else None,
        f"by {settings['rank']}" if "rank" in settings else None,
        settings.get("objective"),
        f"towards {settings['targets']}" if settings.get("targets") else None,
        "from the best point so far" if settings.get("start") == "given" else None,
    ]
    return ", ".join(part for part in parts if part)
