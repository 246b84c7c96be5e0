"""The loop that owns the optimiser: batches to losses to steps, epoch after epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparring.objective import BrokenModel
from sparring.training.averaging import deployed
from sparring.training.callbacks import Callback
from sparring.training.checkpoint import weights
from sparring.training.feed import Chunk, Feed, groups
from sparring.training.history import Epoch, Progress
from sparring.training.ledger import Ledger, NotFinite, epoch_row
from sparring.training.limits import Limits
from sparring.training.losses import Batch, Loss, set_aside
from sparring.training.optimizing import Rates, Tuning
from sparring.training.settling import settle
from sparring.training.snapshot import Soundness, collapsed, put_back, snapshot
from sparring.training.strategy import Strategy
from sparring.training.team import Crew
from sparring.training.unlabelled import beside
from sparring.training.validation import Validation

EVERY = 20  # batches between two looks at what lies on a GPU


@dataclass(eq=False, kw_only=True)
class Run:
    """A training on its way: what a `Callback` is given.

    model: the bare module. strategy: may be replaced. history: the epochs so far. feed: the training samples,
    `feed.take(feed.numbers[:100])`. validation: the held-out ones, `validation.x` and `.y`, or None. epoch: from 0.
    """

    model: nn.Module
    strategy: Strategy
    feed: Feed
    validation: Validation | None
    optimizers: dict[str, torch.optim.Optimizer]
    rates: Rates
    tuning: Tuning
    crew: Crew
    device: torch.device
    limits: Limits
    epochs: int
    accumulate: int = 1
    max_grad_norm: float | None = None
    augment: Callable[[Tensor, Tensor, int], Tensor] | None = None
    channels_last: bool = False
    evaluate_every: int = 1
    scaler: torch.amp.GradScaler | None = None
    autocast: torch.dtype | None = None
    callbacks: Sequence[Callback] = ()
    show: Callable[[Progress], None] = lambda now: None
    keep: Callable[[Run], None] = lambda run: None

    def __post_init__(self) -> None:
        self.epoch = self.position = 0
        self.history: list[Epoch] = []
        self.notes: list[dict[str, Any]] = []
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.best_adversarial: dict[str, Tensor] | None = None
        self.ledger = Ledger()
        self.seconds = 0.0  # of this epoch
        self.good: dict[str, Any] | None = None
        self.batches = len(self.feed.order(0))
        self.counted = copy.copy(self.strategy.passes)
        self._summed = self.strategy.summed  # what the learning rate was chosen for
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.optimizers.items()
        }
        self._hooks = [hook for callback in self.callbacks if (hook := getattr(callback, "after_step", None))]
        self._bad = torch.zeros((), dtype=torch.float64, device=self.device)
        # not finite, stop, save: of all processes
        self._flags = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._on_cpu = self.device.type == "cpu"
        self._since = self._shown = time.monotonic()
        self._rolled = self._midway = False
        self._first = 0  # where this start began

    @property
    def step(self) -> int:
        """Batches that were learned from."""
        return self.epoch * self.batches + self.position

    def go(self) -> bool:
        """To the end, True; or until something asks to stop."""
        self._midway = self.good is None and self.position > 0
        self.good = snapshot(self) if self.good is None else self.good
        self._sound = Soundness([self.model, *self.strategy.modules().values()], self.crew.gather)
        self._first = self.step
        while self.epoch < self.epochs:
            self._since = time.monotonic()
            try:
                with self.tuning.applied(self.epoch):  # also where statistics are taken anew and callbacks look
                    if finished := self._learn():
                        self._close()
            except NotFinite as found:
                self._fail(found)
            if not finished:
                self.keep(self)
                return False
        return True

    def note(self, text: str) -> None:
        """Something to be said, and kept in the history."""
        self.notes.append({"epoch": self.epoch + 1, "text": text})
        self.show(self.progress(text))

    def roll_back(self) -> None:
        """Weights, optimisers and averages become those after the last epoch that no callback took back, and after which no
        more than half of the best robust accuracy was lost."""
        assert self.good is not None
        put_back(self, self.good)
        self._rolled = True

    def deployed(self) -> AbstractContextManager[None]:
        """The model with the weights that it will be used with: averaged ones, where the strategy has a part that averages."""
        return deployed(self.model, self.strategy)

    @property
    def splits(self) -> bool:
        """Whether there are two sets of BatchNorm statistics."""
        return self.strategy.statistics.policy == "split"

    def weights(self, branch: str = "clean") -> dict[str, Tensor]:
        """What the model will be used with, on the CPU; with the BatchNorm statistics of this branch, where it `splits`."""
        with self.deployed(), self._branch(branch):
            return weights(self.model)

    def _branch(self, name: str) -> AbstractContextManager[None]:
        return self.strategy.statistics.branch(self.model, name) if self.splits else nullcontext()

    def _learn(self) -> bool:
        """The rest of this epoch; False where it was stopped on the way."""
        self.strategy.autocast = self.autocast
        order = self.feed.order(self.epoch)
        for group in groups(self.feed.batches(self.epoch, order[self.position :]), self.accumulate):
            done = self.epoch + (self.position + len(group) / 2) / len(order)
            self.rates.set(done / self.epochs)
            samples = sum(len(chunk.indices) for chunk in group)
            share = self._summed / self.strategy.summed
            for i, chunk in enumerate(group):
                self._batch(chunk, share * len(chunk.indices) / samples, samples, last=i + 1 == len(group))
                self.position += 1
            self.rates.stepped()
            look = self._on_cpu or self.position % EVERY < len(group)
            if look and time.monotonic() - self._shown > 0.2:
                self._read()
                self.show(self.progress())
                self._shown = time.monotonic()
            stop, save = self._asked(look)
            save = save and self.position < len(order)
            if stop or save:
                self._read()
                self._sound.check(self.epoch, self.position - 1)
            if stop:
                return False
            if save:
                self.keep(self)
        self._read()
        self._sound.check(self.epoch, self.position - 1)
        return True

    def _batch(self, chunk: Chunk, weight: float, samples: int, last: bool) -> None:
        batch = self.prepared(chunk)
        updates: set[str] = set()
        for loss in self.strategy(self.model, batch):
            self._backward(loss, weight)
            self.ledger.add(loss, len(batch.y), self.epoch, self.position)
            if not loss.update:
                continue
            if self.accumulate > 1 and loss.owner in updates:
                raise ValueError(
                    f"accumulate={self.accumulate}: {self.strategy.name} steps more than once a batch; use accumulate=1"
                )
            updates.add(loss.owner)
            if last:
                self._update(loss.owner, samples)
            else:
                loss.update = False

    def prepared(self, chunk: Chunk) -> Batch:
        x, y = self._placed(chunk.x, chunk.indices), chunk.y.to(self.device, non_blocking=True)
        return Batch(x, y, chunk.indices, self.step, beside(chunk, self._placed))

    def _placed(self, x: Tensor, numbers: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        if self.augment is not None:
            x = self.augment(x, numbers, self.step)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _backward(self, loss: Loss, weight: float) -> None:
        value = loss.value
        if not self._on_cpu or self.crew.size > 1:
            self._bad += ~torch.isfinite(value.detach())
        elif not math.isfinite(value.item()):
            raise NotFinite(f"the loss is {value.item()}", self.epoch, self.position)
        if not value.requires_grad:
            return  # all that it would teach is frozen
        scaled = value if weight == 1 else value * weight
        with set_aside(p for owner in self._parameters if owner != loss.owner for p in self._parameters[owner]):
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()  # type: ignore[no-untyped-call]

    def _update(self, owner: str, samples: int) -> None:
        optimizer, parameters = self.optimizers[owner], self._parameters[owner]
        if self.crew.size > 1:
            asked = torch.tensor([self.limits.stop, self.limits.save], dtype=torch.float64, device=self.device)
            flags = torch.cat([self._bad[None], asked])
            self._flags = self.crew.average(self.strategy.statistics.running(), parameters, samples, flags)
            if self._on_cpu and self._flags[0] > 0:
                raise NotFinite("the loss is nan", self.epoch, self.position)
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if owner == "model":
            for hook in self._hooks:
                hook(self)

    def _asked(self, look: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether to save: all processes decide the same at the same batch."""
        if self.crew.size == 1:
            return self.limits.stop, self.limits.save
        stop, save = (self._flags[1:] > 0).tolist() if look else (False, False)
        return stop, save

    def _read(self) -> None:
        self.ledger.read()
        if max(float(self._bad), float(self._flags[0])) > 0:  # another process's, or a loss that no accuracy belongs to
            raise NotFinite("the loss is nan", self.epoch, self.position - 1)
        self.seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def release(self) -> None:
        """Leave no gradient, no precision and no processes behind."""
        for module in (self.model, *self.strategy.modules().values()):
            module.zero_grad(set_to_none=True)  # also of what no optimiser was given
        self.strategy.autocast = self.strategy.crew = None  # of the one that a rescue put there, too

    def _fail(self, found: NotFinite) -> None:
        self.roll_back()
        assert self.good is not None
        epoch = self.good.get("epoch", len(self.history))  # earlier versions did not keep it
        where = "where this start began" if self._midway else f"after epoch {epoch}" if epoch else "before training"
        raise FloatingPointError(f"{found}; the weights are as they were {where}") from None

    def _close(self) -> None:
        """The end of an epoch: validate, remember the best, let callbacks look, keep."""
        row = epoch_row(self)
        due = (self.epoch + 1) % self.evaluate_every == 0 or self.epoch + 1 == self.epochs
        if due:
            settle(self)
        if self.validation is not None and due:
            row = self._validated(row)
        self.history.append(row)
        if row.score is not None and (self.best is None or row.score >= (self.best.score or ())):
            self.best, self.best_weights = row, self.weights()
            self.best_adversarial = self.weights("adversarial") if self.splits else None
        self._rolled = False
        for callback in self.callbacks:
            callback.after_epoch(self)
        self.show(self.progress())
        self.epoch, self.position, self.seconds, self.ledger = self.epoch + 1, 0, 0.0, Ledger()
        if not self._rolled and not collapsed(row, self.best):
            self.good, self._midway = snapshot(self), False
        self.counted = copy.copy(self.strategy.passes)
        self.keep(self)

    def _validated(self, row: Epoch) -> Epoch:
        assert self.validation is not None

        def stopped() -> None:
            if self.limits.signal is not None and self.crew.size == 1:
                raise KeyboardInterrupt(f"stopped while epoch {self.epoch + 1} was validated: the same call goes on")

        start = time.monotonic()
        try:
            with self.deployed():
                clean, robust = self.validation(self.model, self.crew, stopped)
                with self._branch("adversarial"):
                    other = self.validation(self.model, self.crew, stopped) if self.splits else (None, None)
        except KeyboardInterrupt:
            self.keep(self)  # the epoch is learned; the next start begins with its validation
            raise
        except BrokenModel as found:
            raise NotFinite(f"{found},", self.epoch, self.position - 1) from None
        return replace(
            row, validation_accuracy=clean, validation_robust_accuracy=robust, validation_seconds=time.monotonic() - start,
            validation_adversarial_branch_accuracy=other[0], validation_adversarial_branch_robust_accuracy=other[1],
        )  # fmt: skip

    def progress(self, note: str | None = None) -> Progress:
        seconds = time.monotonic() - self.limits.began
        done, left = self.step - self._first, self.epochs * self.batches - self.step
        return Progress(
            min(self.epoch + 1, self.epochs), self.epochs, self.position, self.batches, *self.ledger.tally.means(),
            seconds=seconds, seconds_left=seconds / done * left if done else None,
            latest=self.history[-1] if self.history else None, note=note,
        )  # fmt: skip
