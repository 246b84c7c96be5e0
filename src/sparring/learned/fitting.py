"""Fitting an attack to data: which samples it learns from, which it is chosen by, and the loop round its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sparring.attacks.inputs import prepare
from sparring.borrow import Borrowed
from sparring.evaluation.placing import to_device
from sparring.evaluation.source import Source
from sparring.noise import Noise
from sparring.objective import check_label_range, fooled, margin, predict
from sparring.rows import Rows
from sparring.threat import Threat

Progress = Callable[[str, float], None]
CHECKS = 10  # how often a fit looks at the held-out samples


@dataclass(frozen=True)
class FitRecord:
    """How an attack was fitted and what it cost.

    samples, held_out: how many it learned from, and by how many it was chosen; both were right before (or, with a
    target, not at the target). fooled: of the held-out ones, at each check; the attack is that of the best check.
    forwards, backwards: samples passed through the model, the checks and the first look at the data included.
    """

    samples: int
    held_out: int
    steps: int
    batch_size: int
    seed: int
    fooled: tuple[int, ...]
    forwards: int
    backwards: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"fooled": list(self.fooled)}


Learned = TypeVar("Learned", bound="Applied")
A = TypeVar("A", bound="Applied", covariant=True)


class Applied(Protocol):
    """A fitted attack as the loop sees it."""

    def apply(self, rows: Rows, noise: Noise, draw: int | Tensor = 0) -> Tensor:
        """The examples (N, *S) of these samples."""


class Learner(Protocol[A]):
    """An attack that is being fitted."""

    def step(self, model: Borrowed, rows: Rows, number: int, steps: int) -> None:
        """One update from a batch, `number` of `steps`: one forward and one backward a sample."""

    def snapshot(self) -> A:
        """The attack as it is now; later steps don't change it."""


def gather(model: Borrowed, threat: Threat, data: Any, target: int | None, max_samples: int | None, seed: int) -> Rows:
    """The data's samples, checked, in memory where the model is; `targets` filled in where there is a target."""
    batches = list(Source(data, 1024, max_samples, seed))
    parameter = next(iter(getattr(model.model, "parameters", lambda: ())()), None)
    x = to_device(_joined([batch.x for batch in batches]), None if parameter is None else parameter.device)
    index = torch.cat([batch.index for batch in batches])
    y = torch.cat([batch.y for batch in batches])
    return with_target(prepare(model, threat, x, y, indices=index), target)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return type(parts[0])(torch.cat(column) for column in zip(*parts))


def with_target(rows: Rows, target: int | None) -> Rows:
    return rows if target is None else replace(rows, targets=torch.full_like(rows.y, target))


def attackable(model: Borrowed, rows: Rows, batch_size: int) -> tuple[Rows, Tensor]:
    """The samples that there is something to win on, with their clean margins (n,): one forward a sample.

    Without a target those that the model gets right, with one those that it does not see there, and that don't belong.
    """
    keep, margins = [], []
    for part in parts(rows, batch_size):
        logits = model.look(part.original, part.context)
        check_label_range(part.y, logits.shape[1])
        if part.targets is not None:
            check_label_range(part.targets, logits.shape[1], "target")
        seen = predict(logits)
        away = None if part.targets is None else (seen >= 0) & (seen != part.targets) & (part.y != part.targets)
        keep.append(seen == part.y if away is None else away)
        margins.append(margin(logits, part.y, part.targets))
    chosen = torch.cat(keep)
    return rows[chosen.cpu()], torch.cat(margins)[chosen]


def parts(rows: Rows, batch_size: int) -> Iterator[Rows]:
    for some in torch.split(torch.arange(len(rows)), batch_size):
        yield rows[some]


def divided(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Samples to learn from, and at least one held out; keyed by their numbers."""
    order = Noise(seed, rows.index).uniform((1,), "held out").squeeze(1).argsort()
    count = max(1, round(share * len(rows)))
    return rows[order[count:].sort().values], rows[order[:count].sort().values]


def batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches of row numbers, the samples shuffled anew each time that they are used up."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, count)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def count_fooled(model: Borrowed, attack: Applied, rows: Rows, batch_size: int, seed: int) -> tuple[int, float]:
    """How many of these samples the attack fools, and its mean margin: one forward a sample."""
    found, total = 0, 0.0
    for part in parts(rows, batch_size):
        logits = model.look(attack.apply(part, Noise(seed, part.index)), part.context)
        found += int(fooled(predict(logits), part.y, part.targets).sum())
        total += float(margin(logits, part.y, part.targets).double().sum())
    return found, total / len(rows)


def learn(
    model: Borrowed,
    learner: Learner[Learned],
    rows: Rows,
    held: Rows,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> tuple[Learned, FitRecord]:
    """All steps, and the snapshot that fooled most of the held-out samples (then the one with the larger mean margin)."""
    best: Learned | None = None
    best_score = (-1, -math.inf)
    seen: list[int] = []
    due = {math.ceil(steps * (i + 1) / CHECKS) for i in range(CHECKS)}
    for number, chosen in enumerate(batches(len(rows), batch_size, steps, seed)):
        learner.step(model, rows[chosen], number, steps)
        if number + 1 not in due:
            continue
        attack = learner.snapshot()
        score = count_fooled(model, attack, held, batch_size, seed)
        seen.append(score[0])
        if best is None or score > best_score:
            best, best_score = attack, score
        if progress is not None:
            progress(
                f"step {number + 1}/{steps}, {score[0]} of {len(held)} held-out samples fooled", (number + 1) / steps
            )
    assert best is not None
    record = FitRecord(len(rows), len(held), steps, batch_size, seed, tuple(seen), model.forwards, model.backwards)
    return best, record


def pull(model: Borrowed, rows: Rows, x: Tensor, softness: float) -> Tensor:
    """Where each sample wants to go from its example x (B, *S): a gradient, for one forward and one backward.

    It is that of sigmoid(margin / softness), whose sum is a smooth count of the fooled samples: those that are fooled, or
    far from it, leave the decision to the others (Shafahi et al. 2020 clip their loss to that end). Zero where the box
    would swallow it: at entries at the box's end that are pushed further out. Differentiating through the clamp would
    lose those, too, that are pulled back in, and with them the way back.
    """
    _, _, gradient = model.probe(
        x, lambda logits: torch.sigmoid(margin(logits, rows.y, rows.targets) / softness), rows.context
    )
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    if rows.threat.bounds is not None:
        low, high = rows.threat.bounds
        gradient = gradient.masked_fill(((x <= low) & (gradient < 0)) | ((x >= high) & (gradient > 0)), 0.0)
    return gradient if rows.threat.mask is None else gradient * rows.threat.mask


def cosine(number: int, steps: int) -> float:
    """From 1 at the first of the steps towards 0 at the last."""
    return (1 + math.cos(math.pi * number / steps)) / 2
