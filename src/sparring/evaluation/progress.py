"""How far an evaluation is, for a bar in the terminal or anybody's callback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sparring.evaluation.bar import EVERY, TerminalBar
from sparring.evaluation.files import replacing
from sparring.evaluation.statistics import Proportion


@dataclass(frozen=True)
class Progress:
    """How many samples are done, of how many (None: nobody knows), and what is known so far.

    met: samples that the model has looked at; correct and fooled are among those, so the running robust accuracy is an
    upper bound that falls (samples that fall are done sooner than those that stand: among the done it would mislead).
    resumed: done by an earlier start. seconds_left: None until it can be told.
    """

    done: int
    total: int | None
    met: int
    correct: int
    fooled: int
    forwards: int
    backwards: int
    seconds: float
    resumed: int = 0

    @property
    def clean_accuracy(self) -> Proportion:
        return Proportion(self.correct, self.met)

    @property
    def robust_accuracy(self) -> Proportion:
        return Proportion(self.correct - self.fooled, self.met)

    @property
    def samples_per_second(self) -> float:
        return (self.done - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        rate = self.samples_per_second
        return None if self.total is None or rate == 0 else (self.total - self.done) / rate


class Shared:
    """The progress of many processes as one: each writes its own to a file, the first adds them up and shows the sum."""

    def __init__(self, files: list[Path], rank: int, show: Callable[[Progress], None]) -> None:
        self._files, self._rank, self._show = files, rank, show
        self._mine: Progress | None = None
        self._written = 0.0
        files[rank].unlink(missing_ok=True)

    def __call__(self, now: Progress) -> None:
        self._mine = now
        if self._rank == 0:
            self.show()
        elif time.monotonic() - self._written > 0.5 or now.done == now.total:
            self._written = time.monotonic()
            with replacing(self._files[self._rank]) as file:
                json.dump(asdict(now), file)

    def show(self) -> None:
        everybody = [] if self._mine is None else [self._mine]
        for file in self._files[1:]:
            if file.exists():
                everybody.append(Progress(**json.loads(file.read_text("utf-8"))))
        if not everybody:
            return
        sums = {f.name: sum(getattr(each, f.name) or 0 for each in everybody) for f in fields(Progress)}
        sums |= {"seconds": max(each.seconds for each in everybody)}
        if len(everybody) < len(self._files) or any(each.total is None for each in everybody):
            sums |= {"total": None}  # who has not begun has not said how many samples it will take
        self._show(Progress(**sums))


class Bar(TerminalBar[Progress]):
    """A rich progress bar on standard error; plain lines, one every ten seconds, where there is no terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        self._last, self._shown = 0.0, 0
        count = ("{task.description}", BarColumn(), "{task.completed}/{task.total}")
        text = TextColumn("clean {task.fields[clean]}  robust ≤ {task.fields[robust]}  {task.fields[rate]}/s")
        columns = (*count, text, TimeRemainingColumn())
        super().__init__("evaluating", columns, None, False, clean="–", robust="–", rate="–")

    def show(self, now: Progress) -> None:
        fields: dict[str, Any] = {
            "clean": f"{now.clean_accuracy.value:.1%}" if now.met else "–",
            "robust": f"{now.robust_accuracy.value:.1%}" if now.met else "–",
            "rate": f"{now.samples_per_second:.1f}",
        }
        if self.bar is not None:
            self.bar.update(self.task, completed=now.done, total=now.total, **fields)
        elif now.seconds - self._last >= EVERY or (now.done == now.total and now.done > self._shown):
            self._last, self._shown = now.seconds, now.done
            self.line(
                f"{now.done}/{now.total or '?'} samples, clean {fields['clean']}, robust ≤ {fields['robust']}, "
                f"{fields['rate']} samples/s",
                now.seconds_left,
            )
