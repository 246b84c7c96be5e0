"""An attack, step by step: the loop of the attacks itself, looked at after each of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.ascent import Trace
from sparring.attacks import Attack
from sparring.attacks.inputs import prepare
from sparring.borrow import Borrowed, borrow
from sparring.lab.networks import Network
from sparring.objective import fooled, predict
from sparring.rows import Rows
from sparring.threat import Threat

TOGETHER = 4  # sizes of a sweep under attack at once
QUERY_FRAMES = 50


@dataclass(frozen=True)
class Frame:
    """What one step saw. at: the step, or in a sweep eps. x: (C, H, W). logits: (K,). norm: size of the change."""

    at: float
    x: Tensor
    objective: float
    logits: Tensor
    fooled: bool
    norm: float


@dataclass(frozen=True)
class Answer:
    """How it ended: x (C, H, W) the best iterate, its 8-bit picture, and what the network says of both. fools: success, or
    by a change that is larger than eps."""

    x: Tensor
    success: bool
    fools: bool
    norm: float
    logits: Tensor
    rounded: Tensor
    success_8bit: bool
    norm_8bit: float
    logits_8bit: Tensor


class Witness(Trace):
    """A trace of one step, with the logits that an ordinary one sums up."""

    def __init__(self, rows: int) -> None:
        empty = Trace.empty(0, rows)
        super().__init__(empty.objective, empty.prediction, empty.confidence)
        self.value = torch.zeros(rows)
        self.logits: Tensor | None = None

    def record(self, place: Tensor, ticket: Tensor, value: Tensor, logits: Tensor) -> None:
        self.value, self.logits = value, logits


class Watched:
    """One picture under attack by one network.

    x: (C, H, W) in [0, 1]. label: what the network sees in it, and what it is to unsee. check: called before each step;
    it may raise to end the job.
    """

    def __init__(
        self,
        network: Network,
        x: Tensor,
        attack: Attack,
        *,
        target: int | None = None,
        seed: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.network, self.attack, self.seed, self.check = network, attack, seed, check
        self.x = x[None].to(network.device)
        self.target = None if target is None else torch.tensor([target])
        self.forwards = self.backwards = 0
        with self._borrowed() as model:
            self.before = model.look(self.x)[0]
        self.label = int(self.before.argmax())

    @contextmanager
    def _borrowed(self) -> Iterator[Borrowed]:
        with borrow(self.network.model, None, self.seed) as model:
            try:
                yield model
            finally:
                self.forwards += model.forwards
                self.backwards += model.backwards

    def steps(self) -> Iterator[Frame]:
        """A frame for each step, the first of the start; afterwards `answer` has the end.

        Of an attack by queries: about fifty of the best so far, because a single question shows nothing.
        """
        with self._borrowed() as model:
            rows = self._rows(model, self.attack.threat, 1)
            climbs = self.attack.access == "gradients"
            done = yield from (self._climb if climbs else self._ask)(model, rows)
            self.answer = self._judge(model, done)

    def _climb(self, model: Borrowed, rows: Rows) -> Generator[Frame, None, Rows]:
        witness = Witness(1)
        pool = self.attack.pool(model, seed=self.seed, stop_when_fooled=False, trace=witness)
        with self.network.turn:
            pool.add(rows)
        done, number = None, 0
        while len(pool):
            self.check()
            group = pool.active if pool.active is not None and len(pool.active) else pool.parked
            assert group is not None
            point = group.threat.rounded(group.original, group.x)
            with self.network.turn:
                done = pool.step()
            assert witness.logits is not None
            yield self._frame(number, point, witness.value, witness.logits)
            number += 1
        assert done is not None
        return done

    def _ask(self, model: Borrowed, rows: Rows) -> Generator[Frame, None, Rows]:
        pool = self.attack.pool(model, seed=self.seed, stop_when_fooled=False)
        pool.add(rows)
        due, done = 1, None
        while done is None:
            self.check()
            with self.network.turn:
                done = pool.step()
                now = pool.active if done is None else done
                assert now is not None
                asked = int(now.step)
                if asked < due and done is None:
                    continue
                logits = model.look(now.best)
            yield self._frame(asked, now.best, now.value, logits)
            due = asked + math.ceil(self.attack.steps / QUERY_FRAMES)
        return done

    def sweep(self, sizes: list[float]) -> Iterator[tuple[Frame, Answer]]:
        """What is found at each of these eps, in the order of its end; a sample leaves at its first success."""
        with self._borrowed() as model:
            threat = self.attack.threat
            eps = torch.tensor(sizes, device=self.x.device)
            rows = self._rows(model, Threat(threat.norm, eps, typed="one per size"), len(sizes))
            pool = self.attack.pool(model, seed=self.seed, capacity=TOGETHER, stop_when_fooled=True)
            waiting: Rows | None = rows
            while len(pool) or waiting is not None:
                self.check()
                with self.network.turn:
                    if waiting is not None and pool.room:
                        now, waiting = waiting.split(pool.room)
                        pool.add(now)
                    done = pool.step()
                for i in range(0 if done is None else len(done)):
                    assert done is not None
                    one = done[torch.tensor([i])]
                    answer = self._judge(model, one)
                    at = sizes[int(one.ticket)]
                    yield (
                        Frame(at, answer.x, float(one.value), answer.logits, answer.success, answer.norm),
                        answer,
                    )

    def _rows(self, model: Borrowed, threat: Threat, count: int) -> Rows:
        """The picture, so many times; each draws the same random numbers."""
        return prepare(
            model,
            threat,
            self.x.expand(count, *self.x.shape[1:]).contiguous(),
            torch.full((count,), self.label),
            targets=None if self.target is None else self.target.expand(count),
            indices=torch.zeros(count, dtype=torch.int64),
            seed=self.seed,
            needs_reference=self.attack.needs_reference,
        )

    def _fools(self, logits: Tensor) -> bool:
        y = torch.tensor([self.label], device=logits.device)
        target = None if self.target is None else self.target.to(logits.device)
        return bool(fooled(predict(logits), y, target))

    def _frame(self, at: float, point: Tensor, value: Tensor, logits: Tensor) -> Frame:
        size = float(self.attack.threat.size(self.x, point))
        return Frame(at, point[0].cpu(), float(value), logits[0].cpu(), self._fools(logits), size)

    def _judge(self, model: Borrowed, row: Rows) -> Answer:
        """The best iterate, and what 8 bits leave of it: a picture is saved in those."""
        rounded = (row.best * 255).round() / 255
        with self.network.turn:
            logits = model.look(torch.cat([row.best, rounded]))
        threat = self.attack.threat
        return Answer(
            x=row.best[0].cpu(),
            success=bool(row.fooled),
            fools=self._fools(logits[:1]),
            norm=float(threat.size(self.x, row.best)),
            logits=logits[0].cpu(),
            rounded=rounded[0].cpu(),
            success_8bit=self._fools(logits[1:]),
            norm_8bit=float(threat.size(self.x, rounded)),
            logits_8bit=logits[1].cpu(),
        )
