"""One batch in a Trainer: learned from with its precision and processes, or measured, wherever Lightning asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparring.attacks import PGD
from sparring.attacks.base import Attack
from sparring.borrow import borrow
from sparring.evaluation.together import Team
from sparring.objective import predict
from sparring.threat import Threat
from sparring.training.losses import Loss
from sparring.training.settings import PRECISIONS
from sparring.training.strategy import Strategy
from sparring.training.team import Crew
from sparring.training.validation import STEPS

NAMES = {"clean": "clean_accuracy", "adversarial": "robust_accuracy"}


def precision(trainer: Any) -> torch.dtype | None:
    """What a Trainer's mixed precision runs the network in; None: the network's own."""
    name = str(trainer.precision)
    return PRECISIONS.get(name) if name.endswith("-mixed") else None


@contextmanager
def joined(strategy: Strategy, trainer: Any, x: Tensor) -> Iterator[None]:
    """For one batch the strategy has the Trainer's mixed precision and processes.

    It puts the network under autocast, and nothing else, so the Trainer's own is off. What it keeps for samples, and AWP's
    step, it shares with the others.
    """
    before = strategy.autocast, strategy.crew
    rank, size = trainer.global_rank, trainer.world_size  # of Lightning's own process group
    strategy.autocast = precision(trainer)
    strategy.crew = Crew(Team(rank, size, None)) if size > 1 else None
    try:
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        strategy.autocast, strategy.crew = before


@contextmanager
def undisturbed(x: Tensor) -> Iterator[None]:
    """Gradients on, inference mode and the Trainer's own autocast off."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        yield


def short_attack(attack: Attack | None, threat: Threat | None) -> Attack | None:
    """What to measure with: the user's, or a few steps of PGD. TypeError for what is no attack."""
    if attack is None and threat is None:
        return None
    if attack is None and threat is not None:
        if threat.norm == "l0":
            raise ValueError("validation_attack: there is no short one under l0; give one, such as sp.FMN(threat)")
        return PGD(threat, STEPS, stop_when_fooled=True)
    if not isinstance(attack, Attack):
        raise TypeError(f"validation_attack={attack!r}: expected an attack, such as sp.PGD(sp.Linf(8/255), steps=10)")
    return replace(attack, stop_when_fooled=True)


def in_precision(attack: Attack, cast: torch.dtype | None) -> Attack:
    """The attack in the Trainer's mixed precision, unless it names one of its own."""
    return attack if cast is None or attack.autocast is not None else replace(attack, autocast=cast)


def measured(
    model: nn.Module, attack: Attack | None, x: Tensor, y: Tensor, indices: Tensor, cast: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """(B,) bool each: right as they are, and right under attack (None without one). Only the former are attacked."""
    with undisturbed(x):
        with borrow(model, cast) as borrowed:
            clean = predict(borrowed.look(x)) == y
        if attack is None:
            return clean, None
        robust = clean.clone()
        some = clean.nonzero().flatten()
        if len(some):
            # by place: copies, for what inference mode made can take no gradient
            robust[some] = (
                in_precision(attack, cast)(model, x[some], y[some], indices=indices[some.cpu()]).prediction == y[some]
            )
        return clean, robust


def tally(sums: dict[str, tuple[Tensor, int]], loss: Loss, count: int) -> None:
    """Adds what this loss has shown. One without answers, such as YOPO's of the first layer, is no mean over samples."""
    shown = {NAMES[name]: found for name, found in loss.seen.right.items() if name in NAMES}
    if loss.seen.right:
        shown["loss"] = (loss.value.detach() * count, count)
    for name, (total, number) in shown.items():
        before = sums.get(name, (0, 0))
        sums[name] = (before[0] + total, before[1] + number)
