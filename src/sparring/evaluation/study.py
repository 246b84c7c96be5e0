"""Running the pilot: a small evaluation of its own, whose verdicts nobody keeps."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparring.attacks import Attack
from sparring.borrow import Borrowed
from sparring.evaluation import adaptive
from sparring.evaluation.adaptive import Step
from sparring.evaluation.cascade import AnyAttack
from sparring.evaluation.pilot import Gains, Plan, plan, size
from sparring.evaluation.source import Source
from sparring.evaluation.stages import make_stage
from sparring.evaluation.store import Store
from sparring.evaluation.stream import Stream
from sparring.rows import Rows
from sparring.threat import Threat

TWINS = 900_000_011  # their draws are no attack's


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
    if not gains.random:
        gains.rugged = ruggedness(model, gains.standing, adaptive.twin(threat), batch_size, seed)
    spent = model.forwards - before[0], model.backwards - before[1]
    return plan(steps, gains, len(stream.records), *spent)


def ruggedness(model: Borrowed, rows: list[Rows], attack: Attack, batch_size: int, seed: int) -> float:
    """The median over these samples of how far apart, in closeness, the attack ends from two random starts; 0 without samples."""
    if not rows:
        return 0.0
    ends: list[dict[int, float]] = []
    for start in (0, 1):
        stage = make_stage(attack, model, batch_size, seed + TWINS + start)
        for part in rows:
            stage.feed(replace(part, start=part.start[:0], closeness=part.closeness[:0]))
        reached: dict[int, float] = {}
        while stage.busy:
            if (done := stage.step()) is not None:
                left = done.closeness.cpu().masked_fill(done.fooled.cpu(), 0.0)
                reached |= dict(zip(done.ticket.tolist(), left.tolist(), strict=True))
        ends.append(reached)
    return statistics.median(abs(left - ends[1][ticket]) for ticket, left in ends[0].items())
