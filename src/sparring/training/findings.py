"""What symptoms mean: each finding has a code that stays, what is wrong in words, the evidence, and the cure.

The limits were set on the networks of benchmarks/doctor.py's first set, and false and missed alarms counted on its second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from sparring.training.symptoms import Answers, LayerDrift, Symptoms

GAP = 0.10  # of accuracy, batch over running statistics
OFF = 0.5  # a layer's shift or stretch from which its running statistics are another network's
SCALE = 3.0  # factor between running and data σ of the first layer
UPDATES = 4.0  # over the momentum: by then all but 2% of what a layer began with is gone
HURTS = 0.01  # nats: what an example must raise the loss by to matter
USELESS = 0.5  # what another mode's examples raise the loss by, over what the own mode's do
CONSTANT = 0.95  # of the answers, one class
# one-step over clean accuracy from which, and many-step over one-step accuracy up to which, one step only seems to be withstood;
# the cosine of gradients, the textbook's sign, told nothing on the tuned set (.24 and .89 where it is due, .87 undefended)
HELD, MASKED = 0.6, 0.35
OVERFITTED = 0.03  # of robust validation accuracy, best over latest
RISEN = 1.5  # loss over its lowest


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. code: stable, for machines; what, evidence, cure: for people."""

    code: str
    what: str
    evidence: str
    cure: str

    def __str__(self) -> str:
        return f"{self.code}: {self.what}\n  seen: {self.evidence}\n  cure: {self.cure}"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def judge(seen: Symptoms, crafts_with: str = "running", history: Sequence[Any] = ()) -> Iterator[Finding]:
    """The findings that the symptoms and the history of a training call for, the gravest first.

    crafts_with: the statistics, "running" or "batch", on which the training crafts its examples. history: what `fit` gives,
    or dicts with some of its keys.
    """
    yield from divergence(seen, history)
    if seen.broken:
        return  # nothing else can be said of such a network
    yield from statistics(seen)
    yield from useless_gradients(seen, crafts_with)
    yield from constant(seen)
    yield from catastrophic(seen)
    yield from leaking(seen)
    yield from robust_overfitting(history)


def divergence(seen: Symptoms, history: Sequence[Any]) -> Iterator[Finding]:
    losses = [float(value) for row in history if (value := _get(row, "loss")) is not None]
    if seen.broken:
        names = ", ".join(seen.broken[:3]) + (" …" if len(seen.broken) > 3 else "")
        evidence = f"NaN or inf in {len(seen.broken)} tensors: {names}"
    elif losses and not math.isfinite(losses[-1]):
        evidence = f"the loss was {losses[-1]} in epoch {len(losses)}"
    elif len(losses) > 1 and losses[-1] > RISEN * min(losses) and losses[-1] > 0.9 * losses[0]:
        evidence = f"the loss fell to {min(losses):.3g} and rose to {losses[-1]:.3g}, after {losses[0]:.3g} in epoch 1"
    else:
        return
    yield Finding(
        "divergence",
        "training has diverged",
        evidence,
        "a lower learning rate (a third of it), a warm-up, or max_grad_norm; go back to the last good weights",
    )


def statistics(seen: Symptoms) -> Iterator[Finding]:
    """BatchNorm's running statistics: what their error costs, and where it comes from."""
    if not seen.layers:
        return
    worst = max(seen.layers, key=lambda layer: layer.size)
    first = seen.layers[0]
    scale = input_scale(first)
    stale = [layer for layer in seen.layers if too_few(layer)]
    if scale is not None:
        low, high, mean, std = seen.inputs
        times = 1 / scale if scale < 1 else scale
        larger = "larger" if scale > 1 else "smaller"
        yield Finding(
            "input-scale",
            f"the running statistics of the first BatchNorm layer are {times:.3g}× off: the inputs look like "
            f"{_range(low, high)}, what they were taken from was {times:.3g}× {larger}",
            f"{first.name}: running σ / data σ is {first.scale:.3g} in all channels (half of them within ×/÷ "
            f"{math.exp(first.spread):.2f}); the inputs lie in [{low:.3g}, {high:.3g}], mean {mean:.3g}, σ {std:.3g}",
            "feed inputs scaled as in pretraining, sp.normalized(model, mean, std); or take the statistics anew: "
            "sp.recalibrate(model, data, strategy)",
        )
    if stale:
        most = max(stale, key=lambda layer: layer.size)
        yield Finding(
            "few-updates",
            "BatchNorm has seen too few batches for its momentum",
            f"{most.name}: after {most.updates} updates at momentum {most.momentum:g}, {_left(most):.0%} of its first statistics "
            f"are left; it is {most.shift:.2g} σ off in mean and ×/÷ {math.exp(most.stretch / 2):.2g} in σ",
            f"sp.recalibrate(model, data, strategy), a higher momentum (torch's .1, or .5), or smaller batches: "
            f"{UPDATES / (most.momentum or 1):.0f} updates are needed",
        )
    running, batch = (seen.answers.get(mode) for mode in ("running", "batch"))
    if running is None or batch is None or worst.size < OFF:
        return
    gap, error = _difference(batch.right, running.right)
    if gap - 2 * error > 0 and gap > GAP:
        off = ", ".join(
            f"{layer.name} {layer.shift:.2g} σ and ×/÷ {math.exp(layer.stretch / 2):.2g}"
            for layer in sorted(seen.layers, key=lambda layer: -layer.size)[:3]
        )
        yield Finding(
            "running-statistics",
            "in eval mode this is another network: BatchNorm's running statistics are not those of the data",
            f"accuracy {running.accuracy:.1%} with running statistics, {batch.accuracy:.1%} with those of the batch; "
            f"furthest off (mean, and factor of σ): {off}",
            "sp.recalibrate(model, data, strategy) before evaluating; craft with bn='auto' or 'batch' until they agree",
        )


def _range(low: float, high: float) -> str:
    if low >= 0 and high <= 1:
        return "[0, 1]"
    return "[0, 255]" if low >= 0 and 2 < high <= 255 else f"[{low:.3g}, {high:.3g}]"


def input_scale(first: LayerDrift) -> float | None:
    """By how much the first layer's statistics belong to inputs of another scale; None where they don't, or where they are
    those that every layer begins with."""
    factor = abs(math.log(first.scale))
    if factor < math.log(SCALE) or first.spread > factor / 2:
        return None
    begun = _left(first) > 0.02 and first.fresh > 0 and first.remainder < 0.25 * math.hypot(first.shift, first.stretch)
    return None if begun else first.scale


def too_few(layer: LayerDrift) -> bool:
    if layer.updates is None or not layer.momentum:
        return False
    return layer.updates < UPDATES / layer.momentum and layer.size > OFF


def _left(layer: LayerDrift) -> float:
    return (1 - (layer.momentum or 0.0)) ** (layer.updates or 0)


def useless_gradients(seen: Symptoms, crafts_with: str) -> Iterator[Finding]:
    other = "batch"
    if not seen.gain or crafts_with == other:
        return
    own, crossed = seen.gain[other][other], seen.gain[crafts_with][other]
    if own > HURTS and crossed < USELESS * own:
        yield Finding(
            "mode-gradients",
            "examples crafted with running statistics hardly hurt the network as it trains",
            f"one step raises the loss under batch statistics by {crossed:.3g} when crafted with running ones, "
            f"by {own:.3g} when crafted with the batch's own",
            "craft with bn='auto' (the default) or bn='batch'",
        )


def constant(seen: Symptoms) -> Iterator[Finding]:
    share = float(seen.labels.bincount().max()) / len(seen.labels)
    for mode, found in seen.answers.items():
        if found.top >= CONSTANT and share < CONSTANT - 0.2:
            yield Finding(
                "constant-predictions",
                f"with {'running' if mode == 'running' else 'batch'} statistics the network says the same of everything"
                if seen.layers
                else "the network says the same of everything",
                f"class {found.top_class} for {found.top:.1%} of {len(seen.labels)} samples; entropy {found.entropy:.2g} of "
                f"{math.log(seen.classes):.2g} nats",
                "look at the statistics first (sp.recalibrate); else a lower learning rate, other initial weights, or inputs "
                "of another scale",
            )
            return


def catastrophic(seen: Symptoms) -> Iterator[Finding]:
    if seen.attacked is None:
        return
    one, many = _mean(seen.attacked.one_step), _mean(seen.attacked.many_steps)
    clean = _clean(seen)
    gap, error = _difference(seen.attacked.one_step, seen.attacked.many_steps)
    if clean is None or one < HELD * clean.accuracy or many > MASKED * one or gap < 2 * error + 0.1:
        return  # undefended networks fall at the first step; where one step is honest, many find little more
    yield Finding(
        "catastrophic-overfitting",
        "the network withstands one step, and nothing else: catastrophic overfitting",
        f"accuracy {one:.1%} after one step, {many:.1%} after {STEPS_TEXT}; gradients at a sample and beside it have "
        f"a cosine of {seen.attacked.cosine:.2f}",
        "go back to the last good weights; then sp.NFGSM, sp.GradAlign, or more steps (sp.PGDTraining(steps=2 or more))",
    )


STEPS_TEXT = "ten steps from a random point"


def leaking(seen: Symptoms) -> Iterator[Finding]:
    clean = _clean(seen)
    if seen.attacked is None or clean is None:
        return
    gap, error = _difference(seen.attacked.one_step, clean.right)
    if gap > 0.02 and gap > 2 * error:
        yield Finding(
            "label-leaking",
            "one-step examples are easier than the samples they were made from: the perturbation tells the label",
            f"accuracy {clean.accuracy:.1%} on the samples, {_mean(seen.attacked.one_step):.1%} on their FGSM examples",
            "random starts (sp.FastFGSM, sp.NFGSM), several steps, or examples against the predicted label",
        )


def robust_overfitting(history: Sequence[Any]) -> Iterator[Finding]:
    rows = [(i + 1, float(value), _get(row, "robust_accuracy")) for i, row in enumerate(history)
            if (value := _get(row, "validation_robust_accuracy")) is not None]  # fmt: skip
    if len(rows) < 4:
        return
    best = max(range(len(rows)), key=lambda i: rows[i][1])
    means = [(one[1] + other[1]) / 2 for one, other in pairwise(rows)]  # of two: one epoch's accident is no trend
    trained = rows[best][2], rows[-1][2]
    if best >= len(rows) - 2 or max(means) - means[-1] < OVERFITTED:
        return
    if trained[0] is not None and trained[1] is not None and trained[1] < trained[0]:
        return  # the training samples get worse, too: whatever it is, it is not overfitting
    rising = (
        "" if trained[0] is None else f", while that on training samples went from {trained[0]:.1%} to {trained[1]:.1%}"
    )
    yield Finding(
        "robust-overfitting",
        "robust accuracy on held-out samples falls while training goes on",
        f"{rows[best][1]:.1%} in epoch {rows[best][0]}, {means[-1]:.1%} over the last two{rising}",
        "keep the best epoch's weights (fit does), stop there, or train with sp.AWP, sp.EMA, more data or augmentation",
    )


def _clean(seen: Symptoms) -> Answers | None:
    return None if seen.attacked is None else seen.answers.get(seen.attacked.mode)


def _mean(right: Tensor) -> float:
    return float(right.double().mean())


def _difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Of two accuracies on the same samples, and its standard error."""
    apart = a.double() - b.double()
    return float(apart.mean()), float(apart.std(correction=0)) / math.sqrt(len(apart))


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, Mapping) else getattr(row, key, None)
