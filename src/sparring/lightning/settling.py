"""Before a Trainer validates: BatchNorm statistics that are those of the network, from the last batches of training."""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparring.lightning import states
from sparring.lightning.measuring import joined, undisturbed
from sparring.training.averaging import averages
from sparring.training.losses import Batch
from sparring.training.settling import BATCHES, BEHIND, settled
from sparring.training.strategy import Strategy

MOST = 2**28  # bytes of inputs that are held


class Recent:
    """The last batches that were learned from: up to 40, and no more than 256 MiB of them (but one at least), where they lie.

    Held only while statistics may have to be taken anew: where weights are averaged, or running and batch statistics don't
    agree yet. A data loader need not be asked a second time, and what it gives need not be the same twice.
    """

    def __init__(self) -> None:
        self.held: deque[Batch] = deque(maxlen=BATCHES)
        self._warned = False

    def add(self, strategy: Strategy, batch: Batch) -> None:
        statistics = strategy.statistics
        if not statistics.live or not (averages(strategy) or (statistics.policy == "auto" and not statistics.agrees)):
            self.held.clear()
            return
        self.held.append(batch)
        while len(self.held) > 1 and sum(batch.x.nbytes for batch in self.held) > MOST:
            self.held.popleft()

    def settle(self, model: nn.Module, strategy: Strategy, trainer: Any) -> None:
        """Takes the statistics anew where they belong to no network that was trained; afterwards nothing is held."""
        held = [replace(batch, step=strategy.batches) for batch in self.held]
        self.held.clear()
        if not any(states.gathered(bool(held))):
            return
        x = held[0].x if held else torch.empty(0)
        with undisturbed(x), joined(strategy, trainer, x):
            behind = settled(model, strategy, lambda: held, states.gathered)
        if behind and not self._warned:
            self._warned = True
            warnings.warn(f"AdversarialModule: {BEHIND}", stacklevel=2)
