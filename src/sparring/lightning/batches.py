"""What a data loader gives, read: inputs, labels, and the samples' numbers where they are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparring.training.strategy import Strategy
from sparring.training.unlabelled import Unlabelled

NUMBERS = ("index", "indices")  # what a dict calls the samples' numbers
Names = Sequence[str | int]


class Indexed(Dataset[Any]):
    """A map-style data set of (x, y) that also tells each sample's number: (x, y, number).

    For strategies that keep something for every sample, such as `sp.PGDTraining(threat, keep=True)`.

    >>> Indexed([("cat.png", 3), ("dog.png", 5)])[1]
    ('dog.png', 5, 1)
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> Any:
        return (*self.data[number], number)


@dataclass(frozen=True)
class Fields:
    """Where a batch holds x (B, *S), y (B,) and the samples' numbers (B,): keys of a dict, or places of a tuple."""

    x: Any
    y: Any
    numbers: Any = None

    @staticmethod
    def named(names: Names | None) -> Fields | None:
        """From what a user gave: two names or places, or three with the samples' numbers."""
        if names is None:
            return None
        if isinstance(names, str) or len(names) not in (2, 3):
            raise ValueError(
                f"fields={names!r}: expected the names of x and y in a batch, as in fields=('image', 'label')"
            )
        return Fields(*names)

    @staticmethod
    def of(batch: Any) -> Fields:
        """Found in a batch that leaves no doubt. TypeError for others."""
        if isinstance(batch, Mapping):
            floats = [key for key, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()]
            whole = [key for key, value in batch.items() if _numbers(value) and key not in NUMBERS]
            if len(floats) == 1 and len(whole) == 1:
                return Fields(floats[0], whole[0], next((key for key in NUMBERS if key in batch), None))
        elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3) and isinstance(batch[0], Tensor):
            if len(batch) == 2:
                return Fields(0, 1)
            if _numbers(batch[2]) and len(batch[2]) == len(batch[0]):
                return Fields(0, 1, 2)
        raise TypeError(
            f"the batch is {_told(batch)}: expected (x, y), (x, y, index), or fields=(name of x, name of y) to say where "
            "they are"
        )

    def read(self, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        try:
            return batch[self.x], batch[self.y], None if self.numbers is None else batch[self.numbers]
        except (KeyError, IndexError, TypeError):
            raise TypeError(f"the batch is {_told(batch)}: it has no {self}") from None

    def put(self, batch: Any, x: Tensor) -> Any:
        """A batch of the same kind with another x."""
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(x if i == self.x else part for i, part in enumerate(batch)))
        if isinstance(batch, (tuple, list)):
            return type(batch)(x if i == self.x else part for i, part in enumerate(batch))
        changed = {**batch, self.x: x}
        return changed if type(batch) is dict else type(batch)(changed)

    def __str__(self) -> str:
        return " and ".join(repr(place) for place in (self.x, self.y, self.numbers) if place is not None)


def parted(batch: Any, strategy: Strategy, trainer: Any) -> tuple[Any, dict[str, Unlabelled]]:
    """The labelled part of what a CombinedLoader of "labelled" and "unlabelled" gives, and a batch's extras; another batch as
    it is. The unlabelled part is x, (x, …) with labels that nobody reads, or a dict with one tensor of floats."""
    if not isinstance(batch, Mapping) or set(batch) != {"labelled", "unlabelled"}:
        return batch, {}
    if batch["labelled"] is None or batch["unlabelled"] is None:
        raise ValueError(
            "the batch has labelled or unlabelled samples only, for one loader has ended: give trainer.fit the dict of both, or "
            'a CombinedLoader(…, "max_size_cycle"), which begins the shorter one anew'
        )
    if not strategy.takes_unlabelled:
        raise ValueError(
            f"the batch has unlabelled samples, from which {strategy.name} learns nothing: use sp.VAT(eps), or put "
            "sp.VirtualAdversarial(eps) round it"
        )
    other = batch["unlabelled"]
    if isinstance(other, Mapping):
        x = next((part for part in other.values() if isinstance(part, Tensor) and part.is_floating_point()), None)
        numbers = next((other[key] for key in NUMBERS if key in other), None)
    else:
        x = other[0] if isinstance(other, (tuple, list)) and other else other
        numbers = other[2] if isinstance(other, (tuple, list)) and len(other) == 3 and _numbers(other[2]) else None
    if not isinstance(x, Tensor):
        raise TypeError(
            f"the unlabelled batch is {_told(other)}: expected x, (x, …), or a dict with one tensor of floats"
        )
    return batch["labelled"], {"unlabelled": Unlabelled(x, places(numbers, len(x), trainer))}


def found(batch: Any) -> tuple[Tensor, Tensor]:
    """x and y of a batch, wherever in tuples, lists and dicts they stand. TypeError for a batch that leaves a doubt."""
    try:
        x, y, _ = Fields.of(batch).read(batch)
    except TypeError:
        parts = list(_leaves(batch))
        floats = [part for part in parts if part.is_floating_point() and part.ndim > 1]
        whole = [part for part in parts if _numbers(part) and floats and len(part) == len(floats[0])]
        if len(floats) != 1 or len(whole) != 1:
            raise TypeError(
                f"the batch is {_told(batch)}: no single float tensor with a row of labels beside it; say where they are, "
                "as in get=lambda batch: (batch['image'], batch['label'])"
            ) from None
        x, y = floats[0], whole[0]
    return x, y


def _leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for name, part in batch.items() if isinstance(batch, Mapping) else enumerate(batch):
            if name not in NUMBERS:
                yield from _leaves(part)


def places(numbers: Tensor | None, count: int, trainer: Any, before: int = 0) -> Tensor:
    """The samples' numbers (count,), or for samples that carry none their places in the batch of all processes together.

    A distributed sampler deals the samples out like cards, so process r's i-th is number i · size + r of them all: random
    draws keyed by it are those that one process would make for the same sample. before: samples of this process so far.
    """
    if numbers is not None:
        return numbers.detach().cpu()
    return (before + torch.arange(count)) * int(trainer.world_size) + int(trainer.global_rank)


def learned(strategy: Strategy, numbers: Tensor | None, count: int, trainer: Any) -> Tensor:
    """`places`, of samples to learn from. ValueError where the strategy must know which ones they are."""
    if numbers is None and strategy.needs_indices:
        raise ValueError(
            f"{strategy.name} keeps something for every sample, and the batch doesn't tell which ones it holds: wrap the data "
            "set, sparring.lightning.Indexed(data), so that batches are (x, y, number)"
        )
    return places(numbers, count, trainer)


def _numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point()


def _told(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict with {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
    return f"a {type(batch).__name__}"
