"""Which attacks an evaluation runs, in which order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparring import attacks as own
from sparring.attacks import (
    APGD,
    DDN,
    DIFGSM,
    FAB,
    FGSM,
    FMN,
    IFGSM,
    MIFGSM,
    PGD,
    RFGSM,
    Attack,
    CarliniWagner,
    DeepFool,
    HopSkipJump,
    OptimizerAttack,
    Square,
)
from sparring.attacks.minimal import MinimalAttack
from sparring.evaluation import adaptive, autoattack
from sparring.objective import OBJECTIVES
from sparring.threat import Threat

AnyAttack = Attack | Callable[..., Any]  # anybody's: (model, x, y) → adversarial x
Attacks = str | AnyAttack | Sequence[str | AnyAttack]

NAMED: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "rfgsm": RFGSM,
    "ifgsm": IFGSM,
    "mifgsm": MIFGSM,
    "difgsm": DIFGSM,
    "pgd": PGD,
    "apgd": APGD,
    "fab": FAB,
    "fmn": FMN,
    "ddn": DDN,
    "deepfool": DeepFool,
    "carliniwagner": CarliniWagner,
    "square": Square,
    "hopskipjump": HopSkipJump,
    "optimizer": OptimizerAttack,
}

ENSEMBLES: dict[str, Callable[[Threat], list[Attack]]] = {
    "autoattack": autoattack.standard,
    "autoattack-rand": autoattack.randomised,
}

WHOLE = ("adaptive", *ENSEMBLES)  # each a list of attacks, chosen by evaluate


def is_adaptive(attacks: Attacks) -> bool:
    return isinstance(attacks, str) and attacks.lower() == "adaptive"


def resolve(attacks: Attacks, threat: Threat, autocast: torch.dtype | None) -> list[AnyAttack]:
    """The list of attacks: our own let a sample go at its first success, and work under `threat`.

    Those that search for the smallest perturbation, and those for random models, go on to their end.
    """
    if is_adaptive(attacks):
        if threat.norm not in ("linf", "l2", "l1"):
            raise ValueError(
                f"attacks='adaptive', the default, has no form for {threat.norm}: expected linf, l2 or l1; "
                f"under {threat.norm} give the attacks, such as attacks=sp.FMN(threat)"
            )
        chosen: list[Any] = [step.attack for step in adaptive.steps(threat)]
    elif isinstance(attacks, str) and attacks.lower() in ENSEMBLES:
        chosen = list(ENSEMBLES[attacks.lower()](threat))
    else:
        chosen = list(attacks) if isinstance(attacks, (list, tuple)) else [attacks]
    if not chosen:
        raise ValueError("attacks is empty: expected 'adaptive', an attack, or a list of attacks")
    random = isinstance(attacks, str) and attacks.lower() == "autoattack-rand"  # its first success may have been luck
    resolved: list[AnyAttack] = []
    for attack in chosen:
        if isinstance(attack, str):
            name = attack.lower().replace("-", "").replace("_", "")
            if attack.lower() in WHOLE:
                raise ValueError(f"{attack.lower()!r} is a whole list of attacks: give it alone")
            if name not in NAMED:
                whole = ", ".join(map(repr, WHOLE))
                near = difflib.get_close_matches(attack.lower(), [*WHOLE, *NAMED], 1)
                hint = f"did you mean {near[0]!r}? Expected" if near else "expected"
                raise ValueError(f"attack {attack!r}: {hint} {whole}, one of {', '.join(NAMED)}, or an attack")
            attack = NAMED[name](threat)
        elif isinstance(attack, type):
            attack = attack(threat)
        if isinstance(attack, Attack):
            _check_threat(attack, threat)
            stop = attack.stop_when_fooled or not (random or isinstance(attack, MinimalAttack))
            attack = replace(attack, stop_when_fooled=stop, trace=False, autocast=attack.autocast or autocast)
        elif not callable(attack):
            raise TypeError(f"attack {attack!r}: expected an attack, its name, or a callable (model, x, y) → x")
        resolved.append(attack)
    return resolved


def _check_threat(attack: Attack, threat: Threat) -> None:
    mine = attack.threat
    same = mine.norm == threat.norm and mine.bounds == threat.bounds
    if not (same and _equal(mine.eps, threat.eps) and _equal(mine.mask, threat.mask)):
        raise ValueError(
            f"{attack.name} attacks under {mine}, the evaluation is about {threat}: give both the same threat"
        )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool((a.cpu() == b.cpu()).all()))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def name_of(attack: AnyAttack) -> str:
    return attack.name if isinstance(attack, Attack) else getattr(attack, "__name__", type(attack).__name__)


def settings_of(attack: AnyAttack) -> dict[str, Any]:
    return attack.settings() if isinstance(attack, Attack) else {"callable": repr(attack).split(" at 0x")[0]}


def recorded(rows: list[dict[str, Any]], threat: Threat) -> list[Attack] | None:
    """The attacks of a result document, built again; None where one of them is foreign, or climbs a callable's objective."""
    attacks: list[Attack] = []
    for row in rows:
        settings, cls = dict(row["settings"]), getattr(own, row["name"], None)
        if not (isinstance(cls, type) and issubclass(cls, Attack)):
            return None
        if settings.get("objective", "margin") not in OBJECTIVES:
            return None
        if settings.get("autocast") is not None:
            settings["autocast"] = getattr(torch, settings["autocast"])
        if settings.get("bounds") is not None:
            settings["bounds"] = tuple(settings["bounds"])
        attacks.append(cls(threat, **settings))
    return attacks
