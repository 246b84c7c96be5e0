"""Samples without labels beside the labelled ones: in a batch, and in what deals the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparring.text.encoded import is_tokens
from sparring.training.feed import Chunk, Feed, holds_tensors, in_memory
from sparring.training.losses import Batch

BEYOND = 1 << 40


@dataclass(frozen=True)
class Unlabelled:
    """Samples without labels beside a batch: `Batch(x, y, extras={"unlabelled": Unlabelled(x)})`, or x alone.

    x: (B, *S) floats, or texts. indices: (B,) their numbers, which random draws are keyed by; default 0 … B − 1. weight:
    of their mean in the batch's loss, where a process's share of them differs from its share of the labelled ones.
    """

    x: Tensor
    indices: Tensor | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        x, indices = self.x, self.indices
        if not is_tokens(x) and not (isinstance(x, Tensor) and x.is_floating_point()):
            given = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"unlabelled samples of {given}: expected a tensor of floats (B, *S)")
        if not len(x):
            raise ValueError(
                "the batch has no unlabelled sample: expected x (B, *S), B at least 1; leave it out for none"
            )
        if indices is not None and indices.shape != (len(x),):
            raise ValueError(
                f"indices of shape {tuple(indices.shape)} for {len(x)} unlabelled samples: expected ({len(x)},)"
            )

    @staticmethod
    def given(batch: Batch) -> Unlabelled:
        """A batch's; its labelled samples where there are no others."""
        if "unlabelled" not in batch.extras:
            return Unlabelled(batch.x, batch.indices)
        given = batch.extras["unlabelled"]
        return given if isinstance(given, Unlabelled) else Unlabelled(given)

    @staticmethod
    def of(batch: Batch) -> Unlabelled:
        """A checked batch's, of the shape of its labelled samples."""
        found = Unlabelled.given(batch)
        if found.x.shape[1:] != batch.x.shape[1:]:
            raise ValueError(
                f"unlabelled samples of shape {tuple(found.x.shape[1:])}, labelled ones of {tuple(batch.x.shape[1:])}: one "
                "network can't take both"
            )
        return found


def beside(chunk: Chunk, placed: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Unlabelled]:
    """A batch's extras. placed(x, numbers): x as it is learned from; the numbers are none that labelled samples have."""
    others = chunk.unlabelled
    if others is None or others.indices is None:
        return {}
    return {"unlabelled": replace(others, x=placed(others.x, others.indices + BEYOND))}


class Pair(NamedTuple):
    """Numbers of labelled samples, in which pass over them these come, and numbers of unlabelled samples."""

    labelled: Tensor
    again: int
    unlabelled: Tensor


class Others(Feed):
    """Samples that are learned from without their labels, if they have any."""

    EMPTY = "unlabelled has no sample: leave it out, or give it some"
    KINDS = "unlabelled is {}: expected a tensor x, a map-style Dataset of x or (x, …), or a DataLoader"

    def whole(self, data: Any) -> tuple[Tensor, Tensor] | None:
        if holds_tensors(data):
            data = data.tensors[0]
        elif isinstance(data, tuple) and data and isinstance(data[0], Tensor):
            data = data[0]
        if not isinstance(data, Tensor):
            return in_memory(data)
        if not data.is_floating_point() and not is_tokens(data):
            raise TypeError(f"unlabelled is {data.dtype}: expected floats x (N, *S)")
        return data, torch.zeros(len(data), dtype=torch.long)

    def chunk(self, items: Any, numbers: Tensor) -> Chunk:
        x = items[0] if isinstance(items, list | tuple) and items else items
        if not isinstance(x, Tensor):
            raise TypeError(f"unlabelled gives {type(x).__name__} a batch: expected x, or (x, …), of a tensor")
        return Chunk(x, torch.zeros(len(x), dtype=torch.long), numbers)


class Pairs(Feed):
    """Labelled batches, each beside an unlabelled one. The unlabelled samples make the epoch: each comes once.

    The labelled ones come round and round, in an order drawn anew for every pass, which goes on from epoch to epoch: all are
    learned from equally often, however many there are of either kind.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | None,
        seed: int,
        unlabelled: Any,
        unlabelled_batch_size: int | None,
        *,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        super().__init__(data, batch_size, seed, rank=rank, size=size)
        self.others = Others(unlabelled, unlabelled_batch_size, seed, rank=rank, size=size)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.others.to(device)

    def order(self, epoch: int) -> list[Any]:
        others = self.others.order(epoch)
        passes: dict[int, list[Tensor]] = {0: super().order(0)}
        length, pairs = len(passes[0]), []
        for i, unlabelled in enumerate(others):
            again, place = divmod(epoch * len(others) + i, length)
            if again not in passes:
                passes = {again: super().order(again)}
            labelled = passes[again]
            pairs.append(Pair(labelled[place % len(labelled)], again, unlabelled))  # a sampler may draw more or fewer
        return pairs

    def batches(self, epoch: int, order: Sequence[Any]) -> Iterator[Chunk]:
        labelled = self.dealt([pair.again for pair in order], [pair.labelled for pair in order])
        others = self.others.batches(epoch, [pair.unlabelled for pair in order])
        for pair, chunk, other in zip(order, labelled, others, strict=True):
            share = len(other.indices) / len(pair.unlabelled) / (len(chunk.indices) / len(pair.labelled))
            yield replace(chunk, unlabelled=Unlabelled(other.x, other.indices, share))
