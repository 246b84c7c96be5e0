"""What an evaluation will cost, before it is run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from sparring.attacks import Attack, HopSkipJump, Square
from sparring.attacks.inputs import check_inputs, check_label_range, check_labels, split_inputs
from sparring.borrow import borrow
from sparring.evaluation import cascade
from sparring.evaluation.access import choose
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
    access: str = "gradients",
    query_budget: int | None = None,
    class_names: list[str] | None = None,
) -> Estimate:
    """The cost of `evaluate` with these arguments if every sample stood to the last step; the real cost is lower.

    Times one forward and backward of one batch (after one that warms up).
    """
    chosen = choose(attacks, threat, None, access, query_budget)
    ours = [attack for attack in chosen if isinstance(attack, Attack)]
    climbing = [attack for attack in ours if attack.access == "gradients"]
    asking = [attack for attack in ours if isinstance(attack, (HopSkipJump, Square))]
    # besides the attacks: the clean look; and if it falls at the very end, to confirm, to find how near, and to show it
    inwards = STEPS + 1 if climbing else LOOKS
    forwards = 1 + sum(attack.rounds * (attack.steps + 1) for attack in climbing) + 1 + inwards + 2
    forwards += sum(attack.rounds * attack.queries for attack in asking)
    backwards = sum(attack.rounds * attack.steps for attack in climbing) + (STEPS if climbing else 0)
    source = Source(data, batch_size, max_samples, seed)
    batch = next(iter(source))
    labels = None if class_names is None else len(class_names)
    with placed(model, device) as where, borrow(model, access=access, labels=labels) as borrowed:
        x, context = split_inputs(model, to_device(batch.x, where))
        check_inputs(x, threat)
        y = check_labels(batch.y, x)
        check_label_range(y, borrowed.look(x, context).shape[1])
        both = 0.0
        if backwards:
            borrowed.probe(x, lambda logits: margin(logits, y), context)
            start = time.perf_counter()
            borrowed.probe(x, lambda logits: margin(logits, y), context)
            both = (time.perf_counter() - start) / len(x)
        start = time.perf_counter()
        borrowed.look(x, context)
        forward = (time.perf_counter() - start) / len(x)
    seconds = backwards * both + (forwards - backwards) * forward
    return Estimate(source.total, forwards, backwards, seconds, len(chosen) - len(ours))
