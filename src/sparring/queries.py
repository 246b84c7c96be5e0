"""The loop without gradients: attacks that only ask what the model says, and count how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparring.ascent import Trace, confirmed
from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.objective import Objective, check_label_range, fooled, predict
from sparring.rows import Rows

TOGETHER = 64  # questions in a batch where nobody says how many fit and the samples are fewer


@dataclass
class Questions:
    """M points to ask the model about, each for one of N samples.

    owner: (M,) int64 on the CPU, non-decreasing: whose each point is. points: (M, *S), inside the set, in float32 or
    better. A sample may ask several at once where none depends on the answer to another, or none at all.
    """

    owner: Tensor
    points: Tensor


@dataclass
class Answers:
    """What the model said. points: (M, *S) as it saw them, in the inputs' dtype. success: (M,) bool. prediction: (M,)
    int64, −1 where the logits are not finite. value: (M,) the objective, −inf there."""

    owner: Tensor
    points: Tensor
    success: Tensor
    prediction: Tensor
    value: Tensor


class Search(Protocol):
    """What tells one query-based attack from another: what it asks next, and what it makes of the answers."""

    @property
    def queries(self) -> int:
        """How many forwards a sample may cost in a restart; the loop ends it there."""

    @property
    def restarts(self) -> int: ...

    def begin(self, rows: Rows, noise: Noise) -> None:
        """Set `rows.x`, and what `rows.memory` is to hold, for the current restart."""

    def ask(self, rows: Rows, noise: Noise, left: Tensor, room: int) -> Questions:
        """At most `left` (N,) points for each sample, and about `room` in all. `rows.step`: points asked so far."""

    def learn(self, rows: Rows, asked: Questions, answers: Answers) -> None:
        """Move on, and keep what is worth keeping in `best`, `value`, `prediction` and `fooled`."""

    def over(self, rows: Rows) -> Tensor:
        """(N,) bool on the CPU: the samples for which nothing is left to ask in this restart."""


class QueryPool:
    """The samples under attack now, at most `capacity`, each at its own point of its own search; see `rows.Loop`.

    Each `step` is one batch of questions. A sample leaves when its queries are spent, when its search is over, or, with
    `stop_when_fooled`, at its first success.
    """

    def __init__(
        self,
        model: Borrowed,
        search: Search,
        objective: Objective,
        *,
        seed: int = 0,
        capacity: int | None = None,
        stop_when_fooled: bool = False,
        goal: bool = True,
        trace: Trace | None = None,
        log: Callable[[Rows, Answers], None] | None = None,
    ) -> None:
        """goal: with targets, success is to hit the target; False counts any wrong prediction. log: is told everything."""
        self.model, self.search, self.objective, self.seed, self.capacity = model, search, objective, seed, capacity
        self.stop_when_fooled, self.goal, self.trace, self.log = stop_when_fooled, goal, trace, log
        self.active: Rows | None = None
        self.parked: Rows | None = None
        self._joined = False

    def __len__(self) -> int:
        return 0 if self.active is None else len(self.active)

    @property
    def room(self) -> int:
        return 1 << 62 if self.capacity is None else max(0, self.capacity - len(self))

    def add(self, rows: Rows) -> None:
        """Begin with these samples."""
        count = torch.zeros(len(rows), dtype=torch.int64)
        rows.step, rows.restart, rows.zero, rows.broken = (count.clone() for _ in range(4))
        if not len(rows.forwards):
            rows.forwards, rows.backwards = count.clone(), count
        dtype = torch.promote_types(rows.original.dtype, torch.float32)
        rows.value = rows.original.new_full((len(rows),), -torch.inf, dtype=dtype)
        rows.current, rows.best = rows.value, rows.original
        rows.prediction, rows.fooled = rows.y.new_full((len(rows),), -1), torch.zeros_like(rows.y, dtype=torch.bool)
        self.search.begin(rows, Noise(self.seed, rows.index))
        self.active = rows if self.active is None else self.active + rows
        self._joined = True

    def step(self) -> Rows | None:
        """One batch of questions and answers; the samples that are done, if any."""
        rows = self.active
        if rows is None or not len(rows):
            return None
        asked = self.search.ask(
            rows,
            Noise(self.seed, rows.index),
            self.search.queries - rows.step,
            self.capacity or max(len(rows), TOGETHER),
        )
        answers = self._answers(rows, asked)
        count = torch.bincount(asked.owner, minlength=len(rows))
        if self.log is not None:
            self.log(rows, answers)
        self.search.learn(rows, asked, answers)
        rows.step, rows.forwards = rows.step + count, rows.forwards + count
        over = self.search.over(rows) | (rows.step >= self.search.queries)
        if self.stop_when_fooled:
            over |= rows.fooled.cpu()
        return self._leave(rows, over) if bool(over.any()) else None

    def _answers(self, rows: Rows, asked: Questions) -> Answers:
        whose = rows if len(asked.owner) == len(rows) and bool((asked.owner.diff() == 1).all()) else rows[asked.owner]
        points = whose.threat.rounded(whose.original, asked.points)
        logits = self.model.look(points, whose.context)
        if self._joined:  # the first logits that newcomers meet say how many classes there are
            self._joined = False
            check_label_range(rows.y, logits.shape[1])
            if rows.targets is not None:
                check_label_range(rows.targets, logits.shape[1], "targets")
        prediction = predict(logits)
        value = self.objective(logits, whose.y, whose.targets, whose.reference)
        value = value.to(rows.value.dtype).masked_fill(prediction < 0, -torch.inf)
        if self.trace is not None:
            self._record(rows, asked.owner, value, logits)
        success = fooled(prediction, whose.y, whose.targets if self.goal else None)
        if self.stop_when_fooled and self.model.autocast is not None:
            rows.forwards = rows.forwards + torch.bincount(asked.owner[success.cpu()], minlength=len(rows))
            success = confirmed(self.model, whose, points, success, self.goal)
        return Answers(asked.owner, points, success, prediction, value)

    def _record(self, rows: Rows, owner: Tensor, value: Tensor, logits: Tensor) -> None:
        assert self.trace is not None
        first = torch.searchsorted(owner, owner)  # `owner` is sorted: where each sample's points begin
        place = (rows.restart * self.search.queries + rows.step)[owner] + torch.arange(len(owner)) - first
        self.trace.record(place, rows.ticket[owner], value, logits)

    def _leave(self, rows: Rows, over: Tensor) -> Rows | None:
        """Those whose restart is over begin the next one, or are done."""
        rows.restart = rows.restart + over.long()
        done = over & (rows.restart >= self.search.restarts)
        if self.stop_when_fooled:
            done |= rows.fooled.cpu()
        again = over & ~done
        if bool(again.any()):
            renewed = rows[again]
            renewed.step = torch.zeros_like(renewed.step)
            self.search.begin(renewed, Noise(self.seed, renewed.index))
            rest = rows[~again]
            rows, done = rest + renewed, torch.cat([done[~again], torch.zeros(len(renewed), dtype=torch.bool)])
        left = rows[~done]
        self.active = left if len(left) else None
        return rows[done] if bool(done.any()) else None
