"""Running the pilot: a small evaluation of its own, whose verdicts nobody keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.evaluation.adaptive import Step
from sparring.evaluation.cascade import AnyAttack
from sparring.evaluation.pilot import Gains, Plan, plan, size
from sparring.evaluation.source import Source
from sparring.evaluation.store import Store
from sparring.evaluation.stream import Stream
from sparring.threat import Threat


def study(
    model: Borrowed,
    data: Any,
    threat: Threat,
    steps: list[Step],
    attacks: list[AnyAttack],
    device: torch.device | None,
    *,
    batch_size: int,
    max_samples: int | None,
    seed: int,
    indices: Tensor | None,
) -> Plan:
    """The plan for these attacks, those of `steps`; the pilot is a part of the samples that `seed` and `max_samples` choose."""
    few = size(Source(data, batch_size, max_samples, seed, indices).total)
    source = Source(data, batch_size, few if max_samples is None else min(few, max_samples), seed, indices)
    numbers = [number for number, step in enumerate(steps) if step.measured]
    measured, gains = [attacks[number] for number in numbers], Gains(numbers)
    before = model.forwards, model.backwards
    stream = Stream(
        model, source, threat, measured, Store(None, {}, len(measured)), device, batch_size=batch_size, seed=seed,
        time_limit=None, report=lambda now: None, checkup=False, gains=gains,
    )  # fmt: skip
    stream.go()
    spent = model.forwards - before[0], model.backwards - before[1]
    return plan(steps, gains, len(stream.records), *spent)
