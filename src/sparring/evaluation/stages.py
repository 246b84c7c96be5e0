"""One attack of the cascade as a station that samples stream through: they queue, are attacked in full batches, leave."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sparring.attacks import Adversarial, Attack, GradientAttack, MarginAscent
from sparring.attacks.inputs import with_logits
from sparring.borrow import INDEX, Borrowed
from sparring.evaluation.cascade import name_of, settings_of
from sparring.evaluation.randomness import OwnRandomness
from sparring.objective import difference, fooled, margin, predict, soft_margin
from sparring.rows import Rows
from sparring.threat import per_sample


class Stage(Protocol):
    attack: Any
    name: str
    settings: dict[str, Any]
    seconds: float

    @property
    def ready(self) -> int:
        """How many samples it could work on now."""

    @property
    def busy(self) -> bool: ...

    def pointless(self, classes: int) -> bool:
        """Whether it has nothing to do on a model of so few classes."""

    def feed(self, rows: Rows) -> None: ...

    def step(self) -> Rows | None:
        """Some work; the samples that left, with `best`, `fooled`, and the passes that they cost."""

    def under_way(self) -> list[Rows]:
        """The samples that have begun and not left."""


def fresh(rows: Rows) -> Rows:
    """These samples as they came in, with no attack's state but a place to start from: where the last attack got to."""
    return Rows(
        rows.ticket, rows.index, rows.original, rows.y, rows.threat, context=rows.context, reference=rows.reference,
        start=rows.start, closeness=rows.closeness,
    )  # fmt: skip


def patient(attack: GradientAttack) -> GradientAttack:
    """The attack for a model that answers at random: one that averages over draws, and returns where that has led.

    Its momentum runs over twenty gradients, and a climb away from the label takes long enough for it to pay.
    """
    attack = replace(attack, keep="last")
    if not isinstance(attack, MarginAscent):
        return attack
    return replace(attack, decay=0.95, steps=max(attack.steps, 60) if attack.rivals is None else attack.steps)


def make_stage(attack: Any, model: Borrowed, capacity: int, seed: int, *, random: bool = False) -> Stage:
    """random: the model is. Where an iterate fooled once is luck then, and ascents take all their steps."""
    if isinstance(attack, Attack):
        return OwnStage(attack, model, capacity, seed, random=random)
    return CallStage(attack, model, capacity, seed)


class OwnStage:
    """An attack of ours, run by its loop: samples that are done leave at every step and the queue refills their places."""

    def __init__(self, attack: Attack, model: Borrowed, capacity: int, seed: int, *, random: bool = False) -> None:
        self.attack, self.model, self.capacity, self.seed = attack, model, capacity, seed
        stop = attack.stop_when_fooled
        if random and isinstance(attack, GradientAttack):
            stop, attack = False, patient(attack)
        self.pool = attack.pool(model, seed=seed, capacity=capacity, stop_when_fooled=stop, goal=False)
        self.name, self.settings, self.seconds = self.attack.name, self.attack.settings(), 0.0
        self.queue: Rows | None = None

    @property
    def _queued(self) -> int:
        return 0 if self.queue is None else len(self.queue)

    @property
    def ready(self) -> int:
        return self._queued + self.capacity - self.pool.room

    @property
    def busy(self) -> bool:
        return self._queued + len(self.pool) > 0

    def pointless(self, classes: int) -> bool:
        return self.attack.pointless(classes)

    def feed(self, rows: Rows) -> None:
        rows = fresh(rows)
        assert rows.reference is not None
        rows = with_logits(
            rows,
            rows.reference,
            targets=self.attack.targets,
            seed=self.seed,
            needs_reference=self.attack.needs_reference,
        )
        self.queue = rows if self.queue is None else self.queue + rows

    def step(self) -> Rows | None:
        start = time.perf_counter()
        # joining copies the pool, so wait until a quarter of it is free (or nobody else will come)
        if self.queue is not None and self.pool.room >= max(1, self.capacity // 4):
            joining, self.queue = self.queue.split(self.pool.room)
            self.pool.add(joining)
        with self.model.precision(self.attack.autocast):
            done = self.pool.step()
        if done is not None:
            if self.attack.autocast is not None and not len(done.norm):
                self._look_again(done)
            self._hand_on(done)
        self.seconds += time.perf_counter() - start
        return done

    def _look_again(self, rows: Rows) -> None:
        """Those that autocast leaves standing: whether their best iterate fools in full precision, one forward each."""
        standing = (~rows.fooled).cpu()
        if bool(standing.any()):
            some, there = rows[standing], standing.to(rows.fooled.device)
            logits = self.model.look(some.best, some.context)
            rows.fooled = rows.fooled.masked_scatter(there, fooled(predict(logits), some.y))
            rows.forwards = rows.forwards + standing

    def _hand_on(self, rows: Rows) -> None:
        """Where the next attack may start: the best iterate, and after attacks on the margin the best of all those."""
        if self.attack.climbs() not in (margin, soft_margin, difference) or len(rows.norm):
            if not len(rows.closeness):
                rows.start = rows.best
            return
        assert rows.reference is not None
        left = (rows.value / margin(rows.reference, rows.y)).float().nan_to_num(1.0).clamp(0, 1)
        if not len(rows.closeness):
            rows.start, rows.closeness = rows.best, left
            return
        closer = left < rows.closeness
        rows.start = torch.where(per_sample(closer, rows.best), rows.best, rows.start)
        rows.closeness = torch.minimum(left, rows.closeness)

    def under_way(self) -> list[Rows]:
        return [rows for rows in (self.pool.active, self.pool.parked) if rows is not None]


class CallStage:
    """Anybody's attack: a callable (model, x, y) that returns the adversarial inputs, or an `Adversarial`.

    What it claims is not believed: the example is projected onto the set and the model asked again. What it draws from
    the global random states is fixed by the seed, and leaves them as they were.
    """

    def __init__(self, attack: Any, model: Borrowed, capacity: int, seed: int) -> None:
        self.attack, self.model, self.capacity, self.seed = attack, model, capacity, seed
        self.name, self.settings, self.seconds = name_of(attack), settings_of(attack), 0.0
        self.randomness = OwnRandomness(seed)
        self.queue: Rows | None = None

    @property
    def ready(self) -> int:
        return 0 if self.queue is None else len(self.queue)

    @property
    def busy(self) -> bool:
        return self.ready > 0

    def pointless(self, classes: int) -> bool:
        return False

    def feed(self, rows: Rows) -> None:
        rows = fresh(rows)
        self.queue = rows if self.queue is None else self.queue + rows

    def step(self) -> Rows | None:
        start = time.perf_counter()
        assert self.queue is not None
        rows, self.queue = self.queue.split(self.capacity)
        counted = _Counting(self.model, rows.context)
        with self.randomness, torch.enable_grad():
            found = self.attack(counted, rows.original.clone(), rows.y.clone())  # it may write to what it gets
        x = found.x if isinstance(found, Adversarial) else found
        if not isinstance(x, Tensor) or x.shape != rows.original.shape:
            kind = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"attack {self.name} returned {kind}: expected {tuple(rows.original.shape)} like x")
        rows.best = rows.threat.project(rows.original, x.detach())
        logits = self.model.look(rows.best, rows.context)
        rows.prediction = predict(logits)
        rows.fooled = fooled(rows.prediction, rows.y)
        forwards, backwards = counted.forwards + len(rows), counted.backwards
        rows.forwards, rows.backwards = _share(forwards, len(rows)), _share(backwards, len(rows))
        rows.zero = rows.broken = torch.zeros(len(rows), dtype=torch.int64)
        self.seconds += time.perf_counter() - start
        return rows

    def under_way(self) -> list[Rows]:
        return []


class _Counting:
    """The borrowed model as a foreign attack sees it: a callable on x that counts its forwards and backwards."""

    def __init__(self, model: Borrowed, context: dict[str, Tensor]) -> None:
        self.model, self.context, self.forwards, self.backwards = model, context, 0, 0
        self.training = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.context.keys() - {INDEX} and len(x) != len(next(iter(self.context.values()))):
            raise ValueError("a foreign attack on a model of several inputs must keep the batch whole")
        logits = self.model.call(x, self.context)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
        self.model.backwards += self.model.cost * len(gradient)

    def eval(self) -> _Counting:
        return self

    def train(self, mode: bool = True) -> _Counting:
        if mode:
            raise ValueError("a foreign attack asked for train mode: an evaluation attacks the model in eval mode")
        return self


def _share(total: int, count: int) -> Tensor:
    shares = torch.full((count,), total // count, dtype=torch.int64)
    shares[: total % count] += 1
    return shares
