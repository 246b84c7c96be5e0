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


def kinds() -> dict[str, type[Attack]]:
    """The attacks by the names that are typed."""
    from sparring import attacks

    return {
        "pgd": attacks.PGD,
        "fgsm": attacks.FGSM,
        "rfgsm": attacks.RFGSM,
        "ifgsm": attacks.IFGSM,
        "mifgsm": attacks.MIFGSM,
        "difgsm": attacks.DIFGSM,
        "optimizer": attacks.OptimizerAttack,
        "square": attacks.Square,
        "hopskipjump": attacks.HopSkipJump,
    }


def parse(typed: Sequence[str], threat: Threat) -> str | list[Attack]:
    """``["adaptive"]`` as evaluate's own choice; otherwise one attack each. ValueError for an attack or a setting unknown."""
    if list(typed) == ["adaptive"]:
        return "adaptive"
    if "adaptive" in typed:
        raise ValueError("--attacks adaptive is a whole list of attacks: give it alone")
    return [_one(text, threat) for text in typed]


def _one(text: str, threat: Threat) -> Attack:
    name, _, settings = text.partition(":")
    kind = kinds().get(name.lower())
    if kind is None:
        known = ["adaptive", *kinds()]
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}"
        raise ValueError(f"--attacks {name!r}: no such attack.{hint}")
    arguments: dict[str, Any] = parse_arguments(settings.split(","), f"--attacks {name}:") if settings else {}
    known = [f.name for f in fields(kind) if f.name not in _NOT_TYPED]
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known) or f" Known: {', '.join(known)}"
            raise ValueError(f"--attacks {text}: {name} has no setting {key!r}.{hint}")
    return kind(threat, **arguments)
