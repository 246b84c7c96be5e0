"""Before a Trainer validates: BatchNorm statistics that are those of the network, from the last batches of training."""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sparring.lightning import states
from sparring.lightning.measuring import joined, undisturbed
from sparring.training.averaging import averages
from sparring.training.losses import Batch
from sparring.training.settling import BATCHES, BEHIND, settled
from sparring.training.strategy import Strategy

MOST = 2**28  # bytes of inputs that are held
ENOUGH = 256  # samples; fewer only where that is all there are, or all that may be held


class Recent:
    """The last batches that were learned from: up to 40 of an epoch, and no more than 256 MiB of them (but one at least), where
    they lie.

    Held while statistics may have to be taken anew: where weights are averaged, or bn="auto" watches the running ones. A data
    loader need not be asked a second time, and what it gives need not be the same twice. No checkpoint has them.
    """

    def __init__(self) -> None:
        self.held: deque[Batch] = deque()
        self.longest = BATCHES
        self._capped = self._fresh = self._warned = False

    def begin(self, batches: float) -> None:
        """Before an epoch of so many batches."""
        self.longest = int(min(BATCHES, batches))

    def add(self, strategy: Strategy, batch: Batch) -> None:
        statistics = strategy.statistics
        if not statistics.live or not (averages(strategy) or statistics.policy == "auto"):
            self.held.clear()
            return
        self.held.append(batch)
        while len(self.held) > self.longest:
            self.held.popleft()
        self._capped = False
        while len(self.held) > 1 and sum(map(_bytes, self.held)) > MOST:
            self._capped = bool(self.held.popleft())
        self._fresh = True

    @property
    def enough(self) -> bool:
        """Whether statistics of those that are held are worth more than the running ones."""
        samples = sum(len(batch.y) for batch in self.held)
        return bool(self.held) and (self._capped or len(self.held) >= self.longest or samples >= ENOUGH)

    def settle(self, model: nn.Module, strategy: Strategy, trainer: Any) -> None:
        """Takes the statistics anew where they belong to no network that was trained; not twice behind the same batch."""
        fresh, self._fresh = self._fresh, False
        everybodys = states.gathered((fresh and self.enough, len(self.held)))
        if not all(ready for ready, _ in everybodys):
            return
        count = min(number for _, number in everybodys)  # crafting may be a matter for all processes, batch by batch
        held = [replace(batch, step=strategy.batches) for batch in list(self.held)[-count:]]
        with undisturbed(held[0].x), joined(strategy, trainer, held[0].x):
            behind = settled(model, strategy, lambda: held, states.gathered)
        if behind and not self._warned:
            self._warned = True
            warnings.warn(
                f"AdversarialModule: {BEHIND} the last {count} batches, as the doctor would advise", stacklevel=2
            )


def _bytes(batch: Batch) -> int:
    parts = [batch.x, *(getattr(extra, "x", extra) for extra in batch.extras.values())]
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))
