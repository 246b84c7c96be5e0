"""Validation while a network trains: `evaluate` with one short attack on samples that are not learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparring.attacks import PGD
from sparring.attacks.base import Attack
from sparring.borrow import borrow
from sparring.evaluation import evaluate
from sparring.evaluation.cascade import Attacks
from sparring.evaluation.progress import Progress
from sparring.objective import BrokenModel, predict
from sparring.threat import Threat
from sparring.training.feed import Feed
from sparring.training.strategy import Strategy
from sparring.training.team import Crew

STEPS = 10
SAMPLES = 1000
HELD_OUT = 10  # one training sample in so many is held out where no validation data are given


@dataclass(frozen=True)
class Validation:
    """x (n, *S), y (n,) and their numbers; `attacks` under `threat`, or clean accuracy alone without one. made: x came out of a
    data set that makes its samples, maybe otherwise each time."""

    x: Tensor
    y: Tensor
    numbers: Tensor
    threat: Threat | None
    attacks: Attacks | None
    made: bool = False

    def __call__(self, model: nn.Module, crew: Crew, stopped: Any, seed: int = 0) -> tuple[float, float | None]:
        """Clean and robust accuracy. Each process asks its share; stopped: called now and then, may raise.

        Answers that are not finite are wrong; under attack they raise BrokenModel, in all processes.
        """
        mine = slice(crew.rank, None, crew.size)
        x, y, numbers = self.x[mine], self.y[mine], self.numbers[mine]
        right = robust = broken = 0
        if self.threat is None or self.attacks is None:
            right = _clean(model, x, y)
        elif len(x):

            def watch(now: Progress) -> None:
                stopped()

            try:
                result = evaluate(
                    model, (x, y), self.threat, attacks=self.attacks, batch_size=256, seed=seed, indices=numbers,
                    shard=(0, 1), checkup=False, progress=watch,
                )  # fmt: skip
                right, robust = result.clean_accuracy.count, result.robust_accuracy.count
            except BrokenModel:
                broken = 1
        counts = torch.tensor(crew.gather((right, robust, len(x), broken))).sum(0).tolist()
        if counts[3]:
            raise BrokenModel("the answers to validation samples are NaN or inf")
        return counts[0] / counts[2], None if self.threat is None else counts[1] / counts[2]


def _clean(model: nn.Module, x: Tensor, y: Tensor) -> int:
    place = next(model.parameters()).device
    with borrow(model) as borrowed:
        parts = zip(torch.split(x, 256), torch.split(y, 256))
        right = [predict(borrowed.look(some.to(place), {})).cpu() == labels for some, labels in parts]
    return int(torch.cat(right).sum())


class Held(Feed):
    """Samples that are validated on."""

    EMPTY = "validation is empty: give it samples, or validation=False"
    KINDS = (
        "validation is {}: expected the pair of tensors (x, y), a map-style Dataset, a DataLoader, or False for none"
    )


def threat_of(strategy: Strategy) -> Threat | None:
    """What a strategy trains against, if anything."""
    for owner in (strategy, getattr(strategy, "attack", None)):
        threat = getattr(owner, "threat", None)
        if isinstance(threat, Threat):
            return threat
    return None


def prepare(
    given: Any, feed: Feed, strategy: Strategy, attack: Attacks | Attack | None, samples: int | None
) -> tuple[Validation | None, str | None]:
    """What to validate on, and what there is to say about it.

    given: data as `fit` takes them; None: samples held out from the feed; False: no validation.
    """
    if given is False:
        return None, None
    if samples is not None and samples < 1:
        raise ValueError(f"validation_samples={samples}: expected a whole number, at least 1, or None for all")
    said, source = None, feed
    if given is None:
        count = min(samples or len(feed.numbers), len(feed.numbers) // HELD_OUT)
        if not count:
            raise ValueError(
                f"{len(feed.numbers)} samples are too few to hold some out: give validation=, or validation=False "
                "(--validation none)"
            )
        numbers = feed.hold_out(count)
        x, y = feed.take(numbers)
        said = (
            f"no validation data given: {count:,} of {feed.available:,} training samples are held out to validate on, and "
            "not learned from"
        )
    else:
        source = Held(given, None, 0)
        numbers = source.numbers if samples is None or samples >= source.available else source.hold_out(samples)
        x, y = source.take(numbers)
    threat = getattr(attack, "threat", None) or threat_of(strategy)
    if attack is not None and threat is None:
        raise ValueError(
            "validation_attack: give it as an object with a threat, such as sp.PGD(sp.Linf(8/255), steps=10)"
        )
    if attack is None and threat is not None:
        attack = _short(threat)
    return Validation(x, y, numbers, threat, attack, source.memory is None), said


def _short(threat: Threat) -> Attacks:
    if threat.norm == "l0":
        raise ValueError("validation_attack: there is no short one under l0; give one, such as sp.FMN(threat)")
    return [PGD(threat, steps=STEPS)]
