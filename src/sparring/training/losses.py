"""What a strategy is given and what it gives: a batch, and the losses to go backward from, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """What a strategy learns from.

    x: (B, *S) floats; for a strategy that takes texts also token numbers (B, T) int64, or an `Encoded`. y: (B,) class numbers.
    indices: (B,) numbers of the samples in their data set, which random draws and kept perturbations are keyed by; default
    0 … B − 1. step: the number of batches before this one; default: the strategy counts. extras: whatever else a strategy
    asks for by name (unlabelled data, beside which x may be empty; masks).
    """

    x: Tensor
    y: Tensor
    indices: Tensor | None = None
    step: int | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        x = f"x {tuple(self.x.shape)}" if isinstance(self.x, Tensor) else type(self.x).__name__
        more = [] if self.step is None else [f"step={self.step}"]
        return f"Batch({', '.join([x, f'{len(self.y)} labels', *more, *sorted(self.extras)])})"


@dataclass
class Seen:
    """What the forwards behind a loss answered: right answers and samples by name ("clean", "adversarial")."""

    right: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def add(self, name: str, logits: Tensor, y: Tensor) -> None:
        self.right[name] = ((logits.detach().argmax(1) == y).sum(), len(y))


class Loss:
    """One loss to go backward from, computed when `value` is first read.

    value: a scalar with a graph. update: whether the optimiser steps, and gradients are zeroed, after this backward; a loop
    that does not step where it could (because it accumulates) sets it to False, so that averages of weights know.
    owner: whose parameters it is for, "model" or what the strategy calls its other network. seen: the answers behind it,
    once `value` was read. scale: what the loop multiplied the loss with (a gradient scaler, 1/accumulation), once it went
    backward: gradients found on the way are divided by it.
    """

    share = 1.0  # of what it is a part of, where the batch's loss is a mean of several

    def __init__(self, compute: Callable[[Seen], Tensor], *, update: bool = True, owner: str = "model") -> None:
        self.compute, self.update, self.owner = compute, update, owner
        self.seen = Seen()
        self._value: Tensor | None = None
        self._scale: list[Tensor] = []  # a list, because a hook that held the loss itself would keep its graph alive

    def __repr__(self) -> str:
        value = "not computed yet" if self._value is None else f"{self._value.item():.4g}"
        right = [f"{name} {int(count)}/{samples} right" for name, (count, samples) in self.seen.right.items()]
        return f"Loss({', '.join([value, *right, f'update={self.update}', f'owner={self.owner!r}'])})"

    @property
    def value(self) -> Tensor:
        if self._value is None:
            with torch.enable_grad():
                self._value = self.compute(self.seen)
            if self._value.requires_grad:
                self._value.register_hook(self._scale.append)  # type: ignore[no-untyped-call]
        return self._value

    @property
    def scale(self) -> Tensor:
        if not self._scale:
            raise RuntimeError(
                "the loop asked for the next loss without loss.value.backward(): a strategy needs the gradients of each"
            )
        return self._scale[-1]


@dataclass
class Passes:
    """Samples that went through the network: whole, and (YOPO) through its first layer only."""

    forwards: int = 0
    backwards: int = 0
    first_forwards: int = 0
    first_backwards: int = 0


@contextmanager
def set_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """What a backward inside leaves at these, which another loss owns, is dropped, and what they had is kept."""
    kept = [(p, p.grad) for p in parameters]
    for p, _ in kept:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in kept:
            p.grad = gradient
