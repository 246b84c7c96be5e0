"""What every training strategy shares: it turns a batch into losses, and the loop that owns the optimiser takes the steps.

    for loss in strategy(model, batch):
        loss.value.backward()
        if loss.update:
            optimizer.step()
            optimizer.zero_grad()

The generator resumes after each backward (and step), so what the backward left behind is there for it to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparring.attacks.inputs import check_labels
from sparring.borrow import Borrowed, borrow
from sparring.objective import check_label_range
from sparring.training.batchnorm import Statistics

if TYPE_CHECKING:
    from sparring.training.parts import Part


@dataclass(frozen=True)
class Batch:
    """What a strategy learns from.

    x: (B, *S) floats. y: (B,) class numbers. indices: (B,) numbers of the samples in their data set, which random draws
    and kept perturbations are keyed by; default 0 … B − 1. step: the number of batches before this one; default: the
    strategy counts. extras: whatever else a strategy asks for by name (unlabelled data, masks).
    """

    x: Tensor
    y: Tensor
    indices: Tensor | None = None
    step: int | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """What the forwards behind a loss answered: right answers and samples by name ("clean", "adversarial")."""

    right: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def add(self, name: str, logits: Tensor, y: Tensor) -> None:
        self.right[name] = ((logits.detach().argmax(1) == y).sum(), len(y))


class Loss:
    """One loss to go backward from, computed when `value` is first read.

    value: a scalar with a graph. update: whether the optimiser steps, and gradients are zeroed, after this backward.
    owner: whose parameters it is for, "model" or what the strategy calls its other network. seen: the answers behind it,
    once `value` was read. scale: what the loop multiplied the loss with (a gradient scaler, 1/accumulation), once it went
    backward: gradients found on the way are divided by it.
    """

    def __init__(self, compute: Callable[[Seen], Tensor], *, update: bool = True, owner: str = "model") -> None:
        self.compute, self.update, self.owner = compute, update, owner
        self.seen = Seen()
        self._value: Tensor | None = None
        self._scale: Tensor | None = None

    @property
    def value(self) -> Tensor:
        if self._value is None:
            with torch.enable_grad():
                self._value = self.compute(self.seen)
            if self._value.requires_grad:
                self._value.register_hook(self._note)  # type: ignore[no-untyped-call]
        return self._value

    def _note(self, gradient: Tensor) -> None:
        self._scale = gradient.detach()

    @property
    def scale(self) -> Tensor:
        if self._scale is None:
            raise RuntimeError(
                "the loop asked for the next loss without loss.value.backward(): a strategy needs the gradients of each"
            )
        return self._scale


@dataclass
class Passes:
    """Samples that went through the network: whole, and (YOPO) through its first layer only."""

    forwards: int = 0
    backwards: int = 0
    first_forwards: int = 0
    first_backwards: int = 0


@dataclass(eq=False, kw_only=True)
class Strategy:
    """Base of all strategies. A subclass writes `losses`.

    bn: which statistics BatchNorm layers use while examples are crafted; see `Statistics`.
    label_smoothing: of the cross-entropy that is learned from (never of the one that is attacked).
    seed: of all random draws, which are keyed by (seed, step, sample).
    """

    bn: str = "auto"
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"{self.name}(label_smoothing={self.label_smoothing!r}): expected a number from 0 to below 1"
            )
        self.statistics = Statistics(self.bn)
        self.passes = Passes()
        self.autocast: torch.dtype | None = None  # set by a loop that trains in mixed precision
        self.batches = 0
        self._classes: int | None = None

    @property
    def name(self) -> str:
        return type(self).__name__

    def settings(self) -> dict[str, Any]:
        """What this strategy was set to."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __call__(self, model: nn.Module, batch: Batch | tuple[Tensor, Tensor]) -> Iterator[Loss]:
        """The losses of this batch, in the order in which they are to go backward.

        Raises TypeError or ValueError, in one line, for a batch that cannot be learned from.
        """
        batch = self._checked(batch)
        self.statistics.check(model, batch.x)
        self.batches = (self.batches if batch.step is None else batch.step) + 1
        yield from self.losses(model, batch)

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        raise NotImplementedError

    def with_(self, *parts: Part) -> Strategy:
        """This strategy with `AWP`, `EMA`, … round it."""
        from sparring.training.parts import Composed

        return Composed(self, parts)

    def state_dict(self) -> dict[str, Any]:
        """What lasts between batches: tensors, numbers, and dicts of these."""
        return {"batches": self.batches, "statistics": self.statistics.state_dict(), "passes": vars(self.passes).copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]
        self.statistics.load_state_dict(state["statistics"])
        self.passes = Passes(**state["passes"])

    def _checked(self, batch: Batch | tuple[Tensor, Tensor]) -> Batch:
        batch = batch if isinstance(batch, Batch) else Batch(*batch)
        x = batch.x
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"batch.x of {given}: expected a tensor of floats (B, *S)")
        y = check_labels(batch.y, x)
        if self._classes is not None:
            check_label_range(y, self._classes)
        indices = torch.arange(len(x)) if batch.indices is None else batch.indices.detach().cpu().long()
        return Batch(x.detach(), y, indices, self.batches if batch.step is None else batch.step, batch.extras)

    def draw_seed(self, batch: Batch) -> int:
        """What random draws of this batch are keyed by, beside the samples' indices."""
        assert batch.step is not None
        return self.seed * 1_000_003 + batch.step

    @contextmanager
    def crafting(self, model: nn.Module, batch: Batch) -> Iterator[Borrowed]:
        """The model as examples are crafted on it: parameters frozen, dropout off, statistics as `bn` says, buffers safe."""
        with borrow(model, self.autocast, self.draw_seed(batch)) as borrowed, self.statistics.crafting(model):
            yield borrowed
        self.passes.forwards += borrowed.forwards
        self.passes.backwards += borrowed.backwards

    def forward(self, model: nn.Module, x: Tensor, y: Tensor, branch: str = "adversarial") -> Tensor:
        """Logits (B, C) of the forward that is learned from: the model's own modes, the only one that moves its buffers."""
        cast = nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast)
        with cast, self.statistics.learning(model, branch):
            logits: Tensor = model(x)
        if self._classes is None:
            self._classes = logits.shape[-1]
            check_label_range(y, self._classes)
        self.passes.forwards += len(x)
        self.passes.backwards += len(x)
        return logits
