"""Averages of the weights that a training passes through: often more robust than where it ends, and calmer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparring.checks import check_whole
from sparring.training.losses import Batch, Loss
from sparring.training.parts import Part
from sparring.training.strategy import Strategy


class Average(Part):
    """Base of averages of weights, brought up to date after every step of the model's optimiser.

    Parameters and floating-point buffers are averaged, in float32 or better; other buffers, and masks (with inf in them, of
    which there is no mean), are the last. The averaged
    network is another network: its own BatchNorm statistics are best estimated anew (`recalibrate`), or else the average
    of the statistics stands in.
    """

    def __init__(self) -> None:
        self.count = 0  # weights in the average
        self._steps = 0
        self._average: dict[str, Tensor] = {}
        self._masks: set[str] | None = None

    def share(self) -> float:
        """Of the newest weights, the `count`-th, in the average."""
        raise NotImplementedError

    def due(self, strategy: Strategy) -> bool:
        """Whether the weights after this step belong into the average."""
        return True

    def around(self, strategy: Strategy, model: nn.Module, batch: Batch, losses: Iterator[Loss]) -> Iterator[Loss]:
        for loss in losses:
            yield loss
            if loss.update and loss.owner == "model":
                self._steps += 1
                if self.due(strategy):
                    self._add(model)

    @torch.no_grad()
    def _add(self, model: nn.Module) -> None:
        self.count += 1
        now = tensors(model)
        if self.count == 1:
            self._average = {name: value.to(wide(value), copy=True) for name, value in now.items()}
            return
        if self._average.keys() != now.keys():
            raise ValueError(f"{type(self).__name__} has averaged another model: each training needs one of its own")
        self._average = {name: average.to(now[name].device) for name, average in self._average.items()}
        if self._masks is None:
            self._masks = {name for name, _ in model.named_buffers() if name in now and bool(now[name].isinf().any())}
        floats = [name for name, value in now.items() if value.is_floating_point() and name not in self._masks]
        mine = [self._average[name] for name in floats]
        torch._foreach_lerp_(mine, [now[name].to(a.dtype) for name, a in zip(floats, mine)], self.share())
        for name, value in now.items():
            if not value.is_floating_point() or name in self._masks:
                self._average[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model` with the averaged weights and buffers in it, for as long as the block; afterwards it is as it was.

        Nothing is changed before there is an average. What is changed in the buffers inside (`recalibrate`) is kept by the
        average, not by the model.
        """
        if not self.count:
            yield model
            return
        now = tensors(model)
        own = {name: value.clone() for name, value in now.items()}
        put(now, self._average)
        try:
            yield model
            for name, _ in model.named_buffers():
                if name in now:
                    self._average[name].copy_(now[name])
        finally:
            put(now, own)

    def averaged(self, model: nn.Module) -> nn.Module:
        """A copy of `model` with the averaged weights, in eval mode: to evaluate, to save, to export."""
        made = copy.deepcopy(model).eval()
        made.zero_grad()
        put(tensors(made), self._average)
        return made

    def state_dict(self) -> dict[str, Any]:
        average = {name: value.clone() for name, value in self._average.items()}
        return {"count": self.count, "steps": self._steps, "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self._steps = state["count"], state["steps"]
        self._average = {name: value.clone() for name, value in state["average"].items()}
        self._masks = None


def averages(strategy: Strategy) -> list[Average]:
    """The parts round it that average weights."""
    return [part for part in strategy.parts if isinstance(part, Average)]


@contextmanager
def deployed(model: nn.Module, strategy: Strategy) -> Iterator[None]:
    """The model with the weights that it will be used with: averaged ones, where the strategy has a part that averages."""
    found = averages(strategy)
    with found[-1].applied(model) if found else nullcontext():
        yield


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by name, as they lie in the model."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def put(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype


@dataclass(eq=False)
class EMA(Average):
    """Exponential moving average of the weights: each step back counts `decay` times as much as the one after it.

    Free of the first weights' bias from the start (divided by what the shares add up to, as in Adam), so that it can be
    looked at after a few steps. decay: 0.995 suits some thousand steps, 0.999 more.

    >>> EMA(1.0)
    Traceback (most recent call last):
    ValueError: EMA(decay=1.0): expected a number between 0 and 1
    """

    decay: float = 0.995

    def __post_init__(self) -> None:
        super().__init__()
        if not 0 < self.decay < 1:
            raise ValueError(f"EMA(decay={self.decay!r}): expected a number between 0 and 1")

    def share(self) -> float:
        return (1 - self.decay) / (1 - self.decay**self.count)


@dataclass(eq=False)
class SWA(Average):
    """Stochastic weight averaging: the plain mean of the weights from batch number `start` on, after each `every`-th step.
    Izmailov et al. (2018).
    """

    start: int
    every: int = 1

    def __post_init__(self) -> None:
        super().__init__()
        check_whole("SWA", 0, start=self.start)
        check_whole("SWA", every=self.every)

    def share(self) -> float:
        return 1 / self.count

    def due(self, strategy: Strategy) -> bool:
        return strategy.batches > self.start and self._steps % self.every == 0
