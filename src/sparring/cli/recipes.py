"""Attacks as a person types them: ``pgd``, ``pgd:steps=100,restarts=5``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sparring.cli.models import parse_arguments
from sparring.cli.values import did_you_mean

if TYPE_CHECKING:
    from sparring.attacks import Attack
    from sparring.threat import Threat

# What `evaluate` sets itself.
_NOT_TYPED = {"threat", "stop_when_fooled", "autocast", "trace", "bounds"}


def parse(typed: Sequence[str], threat: Threat) -> str | list[Attack]:
    """One attack each, or the name of a whole list, such as "adaptive". ValueError for an attack or a setting unknown."""
    from sparring.evaluation.cascade import WHOLE

    if len(typed) == 1 and typed[0].lower() in WHOLE:
        return typed[0].lower()
    for text in typed:
        if text.lower() in WHOLE:
            raise ValueError(f"--attacks {text} is a whole list of attacks: give it alone")
    return [_one(text, threat) for text in typed]


def _one(text: str, threat: Threat) -> Attack:
    name, _, settings = text.partition(":")
    from sparring.evaluation.cascade import NAMED, WHOLE

    kind = NAMED.get(name.lower())
    if kind is None:
        known = [*WHOLE, *NAMED]
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}"
        raise ValueError(f"--attacks {name!r}: no such attack.{hint}")
    arguments: dict[str, Any] = parse_arguments(settings.split(","), f"--attacks {name}:") if settings else {}
    known = [f.name for f in fields(kind) if f.name not in _NOT_TYPED]
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known) or f" Known: {', '.join(known)}"
            raise ValueError(f"--attacks {text}: {name} has no setting {key!r}.{hint}")
    return kind(threat, **arguments)
