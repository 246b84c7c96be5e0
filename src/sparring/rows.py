"""The state of the samples under attack: tensors with a leading batch dimension, so that rows can leave and join."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sparring.threat import Threat, per_sample


@dataclass
class Rows:
    """N samples on their way through an attack. Bookkeeping lives on the CPU, the rest on the inputs' device.

    ticket: place in the caller's order. index: what the sample's noise is keyed by.
    start: (N, *S) where an attack that takes one begins, as the best iterate of the attack before; empty where none is given.
    closeness: (N,) how much of the clean margin the attacks before have left, 1 for all of it and 0 for none; empty where
    nobody keeps account.
    x: the iterate, in float32 or better; best, like original, has the inputs' dtype. current: the objective at `x`.
    fools: whether `x` does.
    value, prediction, fooled: those of the best iterate so far, `best`. memory: what a recipe keeps between steps.
    norm: in a search for the nearest (empty elsewhere), the smallest norm that fooled, inf where none did; `best` has it
    also where it is beyond eps, and `fooled` says whether it is within.
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
    start: Tensor = field(default_factory=lambda: torch.empty(0))
    closeness: Tensor = field(default_factory=lambda: torch.empty(0))

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    current: Tensor = field(default_factory=lambda: torch.empty(0))
    fools: Tensor = field(default_factory=lambda: torch.empty(0))
    best: Tensor = field(default_factory=lambda: torch.empty(0))
    value: Tensor = field(default_factory=lambda: torch.empty(0))
    prediction: Tensor = field(default_factory=lambda: torch.empty(0))
    fooled: Tensor = field(default_factory=lambda: torch.empty(0))
    norm: Tensor = field(default_factory=lambda: torch.empty(0))
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

    def split(self, count: int) -> tuple[Rows, Rows | None]:
        """The first so many, and the rest, if any."""
        if len(self) <= count:
            return self, None
        order = torch.arange(len(self))
        return self[order[:count]], self[order[count:]]

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


def keep_better(rows: Rows, point: Tensor, value: Tensor, prediction: Tensor, success: Tensor) -> None:
    """Keep the better of this point (N, *S) and the best so far: fooling beats not fooling, then the higher objective.

    In a search for the nearest (`rows.norm` is kept): fooling beats not fooling, then the smaller norm.
    """
    if len(rows.norm):
        size = rows.threat.size(rows.original, point)
        # the original itself, where it was looked at, stands in until something fools
        better = torch.where(success, size < rows.norm, (size == 0) & rows.norm.isinf())
        rows.norm = torch.where(success & better, size, rows.norm)
        rows.fooled = rows.norm.isfinite() & (rows.norm <= rows.threat.eps)
    else:
        better = (success & ~rows.fooled) | ((success == rows.fooled) & (value > rows.value))
        rows.fooled = rows.fooled | success
    count = int(better.sum())
    if count == len(rows):  # as a rule in the first steps: nothing to copy, because nobody changes a point in place
        rows.value, rows.prediction, rows.best = value.to(rows.value.dtype), prediction, point
    elif count:
        rows.value = torch.where(better, value.to(rows.value.dtype), rows.value)
        rows.prediction = torch.where(better, prediction, rows.prediction)
        rows.best = torch.where(per_sample(better, point), point, rows.best)


class Loop(Protocol):
    """The samples that an attack works on now: some join, each call of `step` takes them on, those that are done come back.

    What comes back has `best`, `fooled`, `prediction`, `value`, in a search for the nearest also `norm`, and the passes,
    `forwards` and `backwards`, it cost.
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
