"""What a training tells: a row an epoch, and how far it is."""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sparring.evaluation.bar import EVERY, TerminalBar
from sparring.evaluation.files import replacing


@dataclass(frozen=True)
class Epoch:
    """One epoch. Loss and training accuracies are means over its samples, measured in passing, before each update.

    epoch: from 1. batches: that were learned from until its end. accuracy, robust_accuracy: of the training samples, where
    the strategy looked at them as they are, and at their adversarial examples. lr: of the last step (of the head, where the
    body has one of its own). passes: samples, whole network and first layer. validation_*: of held-out samples, under the
    short attack; None where this epoch was not validated. Under bn="split" these are the branch "clean"'s, the model's own
    statistics, and validation_adversarial_branch_* those of the same weights with the statistics of the other branch.
    """

    epoch: int
    batches: int
    loss: float
    accuracy: float | None
    robust_accuracy: float | None
    lr: float
    seconds: float
    forwards: int
    backwards: int
    first_forwards: int
    first_backwards: int
    validation_accuracy: float | None = None
    validation_robust_accuracy: float | None = None
    validation_seconds: float | None = None
    validation_adversarial_branch_accuracy: float | None = None
    validation_adversarial_branch_robust_accuracy: float | None = None

    @property
    def standing(self) -> str:
        """Accuracies on validation data, in words; empty where there are none."""
        own = _told(("clean", self.validation_accuracy), ("robust", self.validation_robust_accuracy))
        other = _told(
            ("clean", self.validation_adversarial_branch_accuracy),
            ("robust", self.validation_adversarial_branch_robust_accuracy),
        )
        return f'branch "clean": {own}; branch "adversarial": {other}' if other else own

    @property
    def score(self) -> tuple[float, float] | None:
        """By what the best epoch is found: robust accuracy on validation data, then clean; None without validation."""
        if self.validation_accuracy is None:
            return None
        robust = self.validation_robust_accuracy
        return (self.validation_accuracy if robust is None else robust), self.validation_accuracy

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _told(*pairs: tuple[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in pairs if value is not None)


@dataclass(frozen=True)
class Progress:
    """How far a training is; loss and accuracies are means over the epoch so far. epoch and batch count from 1."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    accuracy: float | None
    robust_accuracy: float | None
    seconds: float
    seconds_left: float | None
    latest: Epoch | None = None
    note: str | None = None

    @property
    def fraction(self) -> float:
        return ((self.epoch - 1) * self.batches + self.batch) / (self.epochs * self.batches)

    @property
    def text(self) -> str:
        """
        >>> Progress(2, 5, 10, 79, 0.512, 0.9, None, 3.0, None).text
        'epoch 2/5, loss 0.512, clean 90.0%'
        """
        parts = [f"epoch {self.epoch}/{self.epochs}, loss {self.loss:.3f}"]
        pairs = [("clean", self.accuracy), ("robust", self.robust_accuracy)]
        seen = []
        if self.latest is not None:
            earlier = "" if self.latest.epoch == self.epoch else f"epoch {self.latest.epoch}: "
            seen = [
                (f"{earlier}validation clean", self.latest.validation_accuracy),
                ("validation robust", self.latest.validation_robust_accuracy),
                ("with adversarial statistics", self.latest.validation_adversarial_branch_accuracy),
                ("robust", self.latest.validation_adversarial_branch_robust_accuracy),
            ]  # fmt: skip
        return ", ".join(filter(None, (*parts, _told(*pairs), _told(*seen))))

    @property
    def ends(self) -> bool:
        """Whether an epoch has just come to its end, with all that is known of it."""
        return self.batch == self.batches and self.latest is not None and self.latest.epoch == self.epoch


Show = Callable[[Progress], None]


SHORT = 1.0  # seconds


class Bar(TerminalBar[Progress]):
    """A rich progress bar on standard error; where there is no terminal plain lines: one every ten seconds, one at the end of an
    epoch (of short ones at most one a second), and the last."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._last = time.monotonic()
        columns = ("training", BarColumn(bar_width=30), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
        text = TextColumn("[dim]{task.fields[text]}")
        super().__init__("training", (*columns, TimeRemainingColumn(), text), 1.0, True, text="")

    def show(self, now: Progress) -> None:
        if now.note is not None:
            self.console.print(now.note, highlight=False, markup=False, soft_wrap=True)
        if self.bar is not None:
            self.bar.update(self.task, completed=now.fraction, text=now.text)
        elif time.monotonic() - self._last >= (SHORT if now.ends else EVERY) or (now.ends and now.epoch == now.epochs):
            self._last = time.monotonic()
            self.line(f"{now.text}, {now.seconds:.0f} s", now.seconds_left, soft_wrap=True)


def write_csv(path: Path, rows: Sequence[Epoch]) -> None:
    with replacing(path) as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Epoch)])
        writer.writerows(["" if value is None else value for value in row.to_json().values()] for row in rows)


LOGGERS = ("csv", "tensorboard")


class Board:
    """TensorBoard's log of a training; a resumed one goes on behind the last epoch that is known."""

    def __init__(self, folder: Path, known: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=known + 1)

    def __call__(self, row: Epoch) -> None:
        for name, value in row.to_json().items():
            if value is not None and name != "epoch":
                self._writer.add_scalar(name.replace("validation_", "validation/"), value, row.epoch)
        self._writer.flush()


def check_loggers(loggers: Sequence[str]) -> tuple[str, ...]:
    for name in loggers:
        if name not in LOGGERS:
            raise ValueError(f"loggers={tuple(loggers)!r}: {name!r} is none of {', '.join(LOGGERS)}")
    return tuple(loggers)


def has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None
