"""What an evaluation will cost, before it is run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from sparring.attacks import GradientAttack
from sparring.attacks.inputs import check_inputs, check_label_range, check_labels, split_inputs
from sparring.borrow import borrow
from sparring.evaluation import cascade
from sparring.evaluation.nearest import LOOKS, STEPS
from sparring.evaluation.placing import placed, to_device
from sparring.evaluation.source import Source
from sparring.objective import margin
from sparring.threat import Threat
from sparring.wrappers import Model


@dataclass(frozen=True)
class Estimate:
    """samples: how many (None: nobody knows). forwards, backwards: at most, a sample: what one costs that the last step fools.
    seconds_per_sample: for that sample, from one timed batch. Foreign attacks are not in it: `unknown` counts them."""

    samples: int | None
    forwards: int
    backwards: int
    seconds_per_sample: float
    unknown: int

    @property
    def seconds(self) -> float | None:
        """At most, for all samples."""
        return None if self.samples is None else self.samples * self.seconds_per_sample


def estimate(
    model: Model,
    data: Any,
    threat: Threat,
    *,
    attacks: cascade.Attacks = "adaptive",
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
) -> Estimate:
    """The cost of `evaluate` with these arguments if every sample stood to the last step; the real cost is lower.

    Times one forward and backward of one batch (after one that warms up).
    """
    chosen = cascade.resolve(attacks, threat, None)
    ours = [attack for attack in chosen if isinstance(attack, GradientAttack)]
    # besides the attacks: the clean look; and if it falls at the very end, to confirm, to find how near, and to show it
    inwards = STEPS + 1 if ours else LOOKS
    forwards = 1 + sum(attack.rounds * (attack.steps + 1) for attack in ours) + 1 + inwards + 2
    backwards = sum(attack.rounds * attack.steps for attack in ours) + (STEPS if ours else 0)
    source = Source(data, batch_size, max_samples, seed)
    batch = next(iter(source))
    with placed(model, device) as where, borrow(model) as borrowed:
        x, context = split_inputs(model, to_device(batch.x, where))
        check_inputs(x, threat)
        y = check_labels(batch.y, x)
        check_label_range(y, borrowed.look(x, context).shape[1])
        borrowed.probe(x, lambda logits: margin(logits, y), context)
        start = time.perf_counter()
        borrowed.probe(x, lambda logits: margin(logits, y), context)
        both = (time.perf_counter() - start) / len(x)
        start = time.perf_counter()
        borrowed.look(x, context)
        forward = (time.perf_counter() - start) / len(x)
    seconds = backwards * both + (forwards - backwards) * forward
    return Estimate(source.total, forwards, backwards, seconds, len(chosen) - len(ours))
