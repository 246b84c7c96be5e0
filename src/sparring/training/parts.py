"""What can be put round a strategy: `AWP`, `EMA`, `SWA`, `VirtualAdversarial`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import nn

from sparring.training.losses import Batch, Loss
from sparring.training.strategy import Strategy
from sparring.training.values import plain


class Part:
    """Takes the losses of what it stands round, and hands them on, changed or observed.

    A subclass is a dataclass of its settings, and overrides what it needs. Each belongs to one strategy.
    """

    @property
    def takes_unlabelled(self) -> bool:
        """Whether it learns from samples without labels, too: the batch's `extras["unlabelled"]`."""
        return False

    def check(self, strategy: Strategy) -> None:
        """ValueError, in one line, for a strategy that it can't stand round."""

    def around(self, strategy: Strategy, model: nn.Module, batch: Batch, losses: Iterator[Loss]) -> Iterator[Loss]:
        """The losses of this batch, which has been checked. What stands behind a `yield` runs when the loss went backward
        and the optimiser stepped."""
        yield from losses

    def settings(self) -> dict[str, Any]:
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)} if is_dataclass(self) else {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None


def begin_anew(strategy: Strategy) -> None:
    """The strategy, and each part round it, as it was made: nothing of an earlier training (statistics, averages, kept
    perturbations, passes) is carried over to the next."""
    parts = strategy.parts
    for part in parts:
        if is_dataclass(part):
            vars(part).update(vars(_new(part)))
    vars(strategy).update(vars(_new(strategy)))
    strategy.parts = parts


def _new(made: Any) -> Any:
    try:
        return replace(made)
    except TypeError as error:
        raise TypeError(
            f"{type(made).__name__} can't begin anew, since its __init__ does not take its fields: make it a dataclass, or make "
            "another one for each training"
        ) from error
