"""`diagnose`: what is wrong with a network, or with its training, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparring.threat import Threat
from sparring.training.feed import Feed
from sparring.training.findings import GAP, Finding, judge
from sparring.training.strategy import Strategy
from sparring.training.symptoms import Examination, Symptoms, not_finite
from sparring.training.validation import threat_of


@dataclass(frozen=True)
class Diagnosis:
    """What was found. findings: the gravest first; none is good news. skipped: what was not looked at, and why.
    symptoms: everything that was measured."""

    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    symptoms: Symptoms

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(finding.code for finding in self.findings)

    def __str__(self) -> str:
        found = "\n".join(str(finding) for finding in self.findings) or "nothing wrong was found"
        return "\n".join([found, *(f"not looked at: {what}" for what in self.skipped)])

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "skipped": list(self.skipped),
            "measured": self.symptoms.to_json(),
        }


def diagnose(
    model: nn.Module,
    data: Any,
    threat: Threat | None = None,
    *,
    strategy: Strategy | None = None,
    history: Sequence[Any] | Any = (),
    samples: int = 256,
    batch_size: int = 64,
    seed: int = 0,
) -> Diagnosis:
    """Looks at a network, and at how its training went, for what goes wrong silently.

    model: maps x (B, *S) to logits (B, C). Afterwards modes, buffers, gradients and weights are as before. Its BatchNorm
    layers count as trained ones, unless they are in eval mode while the model is in train mode (frozen).
    data: (x, y) tensors, a map-style Dataset or a DataLoader, best of samples that it was trained on; so many are drawn, and
    shown in batches of `batch_size`, by `seed`.
    threat: what it is attacked under; default: the strategy's. Without one nothing is attacked.
    strategy: that it is trained with; says what examples are crafted with. history: a `FitResult`, its `history`, or a dict an
    epoch with some of loss, robust_accuracy, validation_robust_accuracy.

    The codes: divergence, input-scale, few-updates, running-statistics, mode-gradients, constant-predictions,
    catastrophic-overfitting, label-leaking, robust-overfitting; see docs/batchnorm.md and docs/doctor.md.
    Cost: 28 forwards and 15 backwards a sample.
    """
    if samples < 2 or batch_size < 2:
        raise ValueError(f"samples={samples}, batch_size={batch_size}: expected at least 2, for batch statistics")
    feed = Feed(data, None, seed)
    numbers = feed.numbers[torch.randperm(len(feed.numbers), generator=torch.Generator().manual_seed(seed))[:samples]]
    x, y = feed.take(numbers)
    if len(x) < 2:
        raise ValueError("the data hold one sample: expected at least 2, for batch statistics")
    threat = threat or (None if strategy is None else threat_of(strategy))
    seen = examine(model, x, y, threat, size=batch_size, seed=seed)
    skipped = [] if threat is not None else ["anything under attack: no threat was given"]
    if threat is not None and threat.norm == "l0":
        skipped = ["anything under attack: there is no one-step attack under l0"]
    if not seen.layers:
        frozen = sum(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())
        skipped.append(
            f"statistics: all {frozen} BatchNorm layers are frozen (in eval mode, inside a model in train mode); to have them "
            "looked at call model.eval() or model.train() first"
            if frozen
            else "statistics: the network has no BatchNorm that learns"
        )
    history = getattr(history, "history", history)
    if not history:
        skipped.append("how training went: no history was given (history=result.history, or --history)")
    crafts_with = "running" if strategy is None else crafting_mode(strategy)
    return Diagnosis(tuple(judge(seen, crafts_with, history)), tuple(skipped), seen)


def crafting_mode(strategy: Strategy) -> str:
    """The statistics that it crafts with now, "running" or "batch"."""
    return "batch" if strategy.statistics.mode == "batch" else "running"


def examine(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat | None, *, size: int = 64, seed: int = 0, gains: bool = True
) -> Symptoms:
    """All that can be measured on these samples, x (n, *S) and y (n,). Under attack, the network is seen with running
    statistics where they are right, with the batch's where they are not. gains: whether one mode's examples are tried on the
    other's network, too."""
    flat = x.double()
    inputs = (float(flat.amin()), float(flat.amax()), float(flat.mean()), float(flat.std()))
    seen = Symptoms(len(x), 0, y, inputs, not_finite(model))
    if seen.broken:
        return seen
    look = Examination(model, x, y, size=size, seed=seed)
    seen.layers = look.drift()
    seen.answers = {mode: look.answers(mode) for mode in (("running", "batch") if seen.layers else ("running",))}
    seen.classes = look.classes
    if threat is not None and threat.norm != "l0":
        running, batch = seen.answers["running"], seen.answers.get("batch")
        off = batch is not None and batch.accuracy - running.accuracy > GAP
        seen.attacked = look.attacked(threat, "batch" if off else "running")
        if seen.layers and gains:
            seen.gain = look.gains(threat)
    return seen
