"""The state of the samples under attack: tensors with a leading batch dimension, so that rows can leave and join."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sparring.threat import Threat


@dataclass
class Rows:
    """N samples on their way through an attack. Bookkeeping lives on the CPU, the rest on the inputs' device.

    ticket: place in the caller's order. index: what the sample's noise is keyed by.
    x: the iterate, in float32 or better; best, like original, has the inputs' dtype. current: the objective at `x`.
    value, prediction, fooled: those of the best iterate so far, `best`. memory: what a recipe keeps between steps.
    zero, broken: steps at which the gradient was all zero, and at which it held NaN or inf.
    """

    ticket: Tensor
    index: Tensor
    original: Tensor
    y: Tensor
    threat: Threat
    targets: Tensor | None = None
    context: dict[str, Tensor] = field(default_factory=dict)
    reference: Tensor | None = None

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    current: Tensor = field(default_factory=lambda: torch.empty(0))
    best: Tensor = field(default_factory=lambda: torch.empty(0))
    value: Tensor = field(default_factory=lambda: torch.empty(0))
    prediction: Tensor = field(default_factory=lambda: torch.empty(0))
    fooled: Tensor = field(default_factory=lambda: torch.empty(0))
    step: Tensor = field(default_factory=lambda: torch.empty(0))
    restart: Tensor = field(default_factory=lambda: torch.empty(0))
    forwards: Tensor = field(default_factory=lambda: torch.empty(0))
    backwards: Tensor = field(default_factory=lambda: torch.empty(0))
    zero: Tensor = field(default_factory=lambda: torch.empty(0))
    broken: Tensor = field(default_factory=lambda: torch.empty(0))
    memory: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ticket)

    def __getitem__(self, rows: Tensor) -> Rows:
        """The rows that a (N,) bool mask or an int64 index on the CPU selects."""
        return replace(self, **{f.name: _take(getattr(self, f.name), rows) for f in fields(self)})

    def __add__(self, other: Rows) -> Rows:
        """Both, one after the other."""
        if not len(self) or not len(other):
            return self if len(self) else other
        memory = _merge(self.memory, len(self), other.memory, len(other))
        joined = {
            f.name: _join(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "memory"
        }
        return replace(self, memory=memory, **joined)


T = TypeVar("T")


def _take(value: T, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if len(value) else value
    if isinstance(value, dict):
        return {name: _take(part, rows) for name, part in value.items()}
    if isinstance(value, list):
        chosen = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return [value[i] for i in chosen.tolist()]
    return value[rows] if isinstance(value, Threat) else value


def _join(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.cat([a, b])
    if isinstance(a, dict):
        return {name: _join(a[name], b[name]) for name in a}
    if isinstance(a, list):
        return a + b
    return a.joined(b) if isinstance(a, Threat) else a


def _merge(a: dict[str, Any], count_a: int, b: dict[str, Any], count_b: int) -> dict[str, Any]:
    """Two memories as one; rows that remember nothing yet under a name get zeros, or None in a list."""

    def part(memory: dict[str, Any], name: str, other: Any, count: int) -> Any:
        if name in memory:
            return memory[name]
        return [None] * count if isinstance(other, list) else other.new_zeros((count, *other.shape[1:]))

    names = [*a, *(name for name in b if name not in a)]
    return {n: _join(part(a, n, b.get(n), count_a), part(b, n, a.get(n), count_b)) for n in names}


class Loop(Protocol):
    """The samples that an attack works on now: some join, each call of `step` takes them on, those that are done come back.

    What comes back has `best`, `fooled`, `prediction`, `value`, and the passes, `forwards` and `backwards`, it cost.
    """

    active: Rows | None
    parked: Rows | None

    def __len__(self) -> int: ...

    @property
    def room(self) -> int:
        """How many samples can join."""

    def add(self, rows: Rows) -> None: ...

    def step(self) -> Rows | None:
        """Some work; the samples that are done, if any."""
