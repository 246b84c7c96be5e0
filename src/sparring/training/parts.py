"""What can be put round a strategy (AWP, EMA, …)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from sparring.training.strategy import Batch, Loss, Strategy


class Part(Protocol):
    """Takes the losses of what it stands round, and hands them on, changed or observed."""

    def around(self, strategy: Strategy, model: nn.Module, losses: Iterator[Loss]) -> Iterator[Loss]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> None: ...


class Composed(Strategy):
    """A strategy with parts round it, the first innermost."""

    def __init__(self, strategy: Strategy, parts: tuple[Part, ...]) -> None:
        super().__init__(bn=strategy.bn, label_smoothing=strategy.label_smoothing, seed=strategy.seed)
        self.strategy, self.parts = strategy, parts
        self.statistics, self.passes = strategy.statistics, strategy.passes

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        losses = self.strategy.losses(model, batch)
        for part in self.parts:
            losses = part.around(self.strategy, model, losses)
        yield from losses
