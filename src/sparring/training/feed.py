"""Training data as numbered batches: which samples, in which order, is decided by (seed, epoch) alone."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from sparring.checks import check_whole
from sparring.evaluation.randomness import OwnRandomness
from sparring.text.encoded import is_tokens

if TYPE_CHECKING:
    from sparring.training.unlabelled import Unlabelled

IN_MEMORY = 2 << 30  # bytes of float32 up to which a data set that offers its tensors is held in memory


@dataclass(frozen=True)
class Chunk:
    """x (B, *S) floats, y (B,), indices (B,) int64 on the CPU: the samples' numbers in the data set. unlabelled: others
    beside them."""

    x: Tensor
    y: Tensor
    indices: Tensor
    unlabelled: Unlabelled | None = None


class Feed:
    """Samples that are learned from.

    numbers (n,): which of the data set's samples they are. An epoch is a list of batches of such numbers; of each,
    process `rank` of `size` takes every size-th, so that no sample is seen twice and the training is that of one process.
    A rest too small for batch statistics in every process joins the batch before it.
    """

    EMPTY = "the data set is empty: nothing to train on"
    KINDS = (
        "data is {}: expected the pair of tensors (x, y), a map-style Dataset or a DataLoader, since samples are known by "
        "number"
    )

    def __init__(self, data: Any, batch_size: int | None, seed: int, *, rank: int = 0, size: int = 1) -> None:
        self.seed, self.rank, self.size = seed, rank, size
        self.loader = data if isinstance(data, DataLoader) else None
        self.data: Any = data if self.loader is None else self.loader.dataset
        plain = self.loader is None or self.loader.collate_fn is default_collate
        self.memory = self.whole(self.data) if plain else None
        if self.memory is None and (isinstance(self.data, IterableDataset) or not _is_map(self.data)):
            raise TypeError(self.KINDS.format(type(self.data).__name__))
        known: Any = self.data if self.memory is None else self.memory[0]
        self.available = len(known)
        if not self.available:
            raise ValueError(self.EMPTY)
        self.numbers = torch.arange(self.available)
        if batch_size is not None:
            check_whole("", batch_size=batch_size)
        self.sampler, self.batch_sampler, own, self.drop_last = _samplers(self.loader)
        if self.batch_sampler is not None and batch_size not in (None, own):
            raise ValueError(
                f"batch_size={batch_size}: the loader's batch_sampler, {type(self.batch_sampler).__name__}, makes its own "
                "batches: leave batch_size out"
            )
        self.batch_size = batch_size or own or 128

    def whole(self, data: Any) -> tuple[Tensor, Tensor] | None:
        """(x, y) of data that have them as they are; None of those that make their samples."""
        return in_memory(data)

    def chunk(self, items: Any, numbers: Tensor) -> Chunk:
        """What a loader gives for these samples."""
        return _chunk(items, numbers)

    def hold_out(self, count: int) -> Tensor:
        """Takes so many samples out, chosen by the seed: their numbers, sorted."""
        order = torch.randperm(len(self.numbers), generator=torch.Generator().manual_seed(self.seed))
        held = self.numbers[order[:count]].sort().values
        self.numbers = self.numbers[order[count:]].sort().values
        return held

    def to(self, device: torch.device) -> None:
        """Samples in memory go to a GPU once, where they take up less than half of what is free there."""
        if self.memory is not None and device.type == "cuda":
            x, y = self.memory
            if x.numel() * x.element_size() < torch.cuda.mem_get_info(device)[0] / 2:
                self.memory = (x.to(device), y.to(device))

    def order(self, epoch: int) -> list[Any]:
        """The batches of an epoch, as numbers of samples, of all processes together: what `batches` takes."""
        if self.batch_sampler is not None or not _plain(self.sampler, self.available):
            batches = self._drawn(epoch)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            shuffled = not isinstance(self.sampler, SequentialSampler)
            n = len(self.numbers)
            order = self.numbers[torch.randperm(n, generator=generator)] if shuffled else self.numbers
            batches = self._cut(order)
        least = 2 * self.size
        if len(batches) > 1 and len(batches[-1]) < least:
            batches[-2:] = [torch.cat(batches[-2:])]
        if self.size > 1 and min(map(len, batches), default=0) < self.size:
            raise ValueError(
                f"a batch of {min(map(len, batches))} samples for {self.size} processes: use fewer processes"
            )
        if not batches:
            raise ValueError(f"the loader gives no batch of these {len(self.numbers)} samples: nothing to train on")
        return batches

    def batches(self, epoch: int, order: Sequence[Any]) -> Iterator[Chunk]:
        """This process's share of each of these batches, in turn."""
        return self.dealt([epoch] * len(order), order)

    def dealt(self, epochs: Sequence[int], order: Sequence[Tensor]) -> Iterator[Chunk]:
        """`batches`, each of an epoch of its own."""
        mine = [batch[self.rank :: self.size] for batch in order]
        if self.memory is not None:
            x, y = self.memory
            for numbers in mine:
                where = numbers.to(x.device)
                yield Chunk(x[where], y[where], numbers)
            return
        for items, numbers in zip(self._loaded(epochs, mine), mine, strict=True):
            yield self.chunk(items, numbers)

    def take(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """These samples as x (n, *S) and y (n,), on the CPU."""
        if self.memory is not None:
            x, y = self.memory
            where = numbers.to(x.device)
            return x[where].cpu(), y[where].cpu()
        parts = torch.split(numbers, 256)
        loaded = self._loaded([-1] * len(parts), parts)
        chunks = [self.chunk(items, some) for some, items in zip(parts, loaded, strict=True)]
        return torch.cat([chunk.x for chunk in chunks]), torch.cat([chunk.y for chunk in chunks])

    def _drawn(self, epoch: int) -> list[Tensor]:
        """The batches that the user's own sampler draws for an epoch, without the samples that are held out."""
        seed = self.seed * 1_000_003 + epoch
        with OwnRandomness(seed), _seeded(seed, self.sampler, self.batch_sampler):
            if self.batch_sampler is not None:
                batches = [torch.tensor(list(batch), dtype=torch.long) for batch in self.batch_sampler]
            else:
                batches = self._cut(torch.tensor(list(self.sampler), dtype=torch.long))
        if (last := max((int(batch.max()) for batch in batches if len(batch)), default=0)) >= self.available:
            raise ValueError(f"the loader's sampler draws sample {last} of {self.available}: it is another data set's")
        kept = torch.zeros(self.available, dtype=torch.bool)
        kept[self.numbers] = True
        return [part for batch in batches if len(part := batch[kept[batch]])]

    def _cut(self, order: Tensor) -> list[Tensor]:
        batches = list(torch.split(order, self.batch_size))
        short = self.drop_last and len(batches[-1]) < self.batch_size > 1
        return batches[:-1] if short else batches

    def _loaded(self, epochs: Sequence[int], batches: Sequence[Tensor]) -> DataLoader[Any]:
        own = self.loader
        given: dict[str, Any] = {} if own is None else {"num_workers": own.num_workers, "pin_memory": own.pin_memory}
        if own is not None and own.num_workers:
            given |= {
                "worker_init_fn": _Deaf(own.worker_init_fn),
                "multiprocessing_context": own.multiprocessing_context,
            }
            given |= {"prefetch_factor": own.prefetch_factor, "timeout": own.timeout}
        return DataLoader(
            _Keyed(self.data, self.seed),
            batch_sampler=[[(epoch, i) for i in batch.tolist()] for epoch, batch in zip(epochs, batches, strict=True)],
            collate_fn=None if own is None else own.collate_fn,
            generator=torch.Generator().manual_seed(
                self.seed
            ),  # not the global one, which a resumed run must find as it was
            **given,
        )


class _Deaf:
    """Ctrl-C reaches workers, too, and they would leave before the training has stopped in order."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self.own = own

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.own is not None:
            self.own(worker)


class _Keyed(Dataset[Any]):
    """A data set whose random changes of a sample are keyed by (seed, epoch, sample): by no order, worker or process."""

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, number = key
        numpy, python, cpu = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
        drawn = ((self.seed * 1_000_003 + epoch) * 2_147_483_629 + number) % 2**63
        random.seed(drawn)
        np.random.seed(drawn % 2**32)  # noqa: NPY002  # what other people's transforms draw from
        torch.default_generator.manual_seed(drawn)
        try:
            return self.data[number]
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
            torch.set_rng_state(cpu)


def _samplers(loader: Any) -> tuple[Any, Any, int | None, bool]:
    """A loader's sampler of samples, its sampler of batches, the size of these, and whether a short last one is dropped.

    torch's own BatchSampler only cuts what its sampler gives, as we do: then there is no sampler of batches.
    """
    if loader is None:
        return None, None, None, False
    if loader.batch_size is not None or loader.batch_sampler is None:  # else the user gave the sampler of batches
        return loader.sampler, None, loader.batch_size, loader.drop_last
    own = loader.batch_sampler
    if type(own) is BatchSampler:
        return own.sampler, None, own.batch_size, own.drop_last
    return None, own, getattr(own, "batch_size", None), False


def _plain(sampler: Any, available: int) -> bool:
    """Whether a sampler gives every sample once, in the data set's order or by chance alone, which is ours to draw."""
    if sampler is None or isinstance(sampler, DistributedSampler):
        return True
    again = isinstance(sampler, RandomSampler) and sampler.replacement
    return type(sampler) in (RandomSampler, SequentialSampler) and not again and len(sampler) == available


@contextmanager
def _seeded(seed: int, *samplers: Any) -> Iterator[None]:
    """torch generators of a sampler's own begin from the seed; afterwards they are as they were."""
    held = [sampler for each in samplers for sampler in (each, getattr(each, "sampler", None))]
    found = [value for each in held for value in getattr(each, "__dict__", {}).values()]
    own = {id(value): value for value in found if isinstance(value, torch.Generator)}
    states = [(generator, generator.get_state()) for generator in own.values()]
    try:
        for generator, _ in states:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _is_map(data: Any) -> bool:
    other = isinstance(data, (str, bytes, dict, Tensor)) or type(data).__module__ == "numpy"
    return not other and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def holds_tensors(data: Any) -> bool:
    """Whether it is a TensorDataset that gives its tensors' rows as they are: a subclass may make something else of them."""
    return isinstance(data, TensorDataset) and type(data).__getitem__ is TensorDataset.__getitem__


def in_memory(data: Any) -> tuple[Tensor, Tensor] | None:
    """(x, y) of a data set that has them as they are; None of one that makes its samples."""
    if type(data) is Subset:
        whole = in_memory(data.dataset)
        return None if whole is None else (whole[0][data.indices], whole[1][data.indices])
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray):
        x, y = torch.as_tensor(data[0]), torch.as_tensor(data[1])
    elif holds_tensors(data) and len(data.tensors) == 2:
        x, y = data.tensors
    elif callable(getattr(data, "tensors", None)) and 4 * len(data) * math.prod(data.shape) <= IN_MEMORY:
        x, y = data.tensors()
    else:
        return None
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y {len(y)}: expected equally many")
    if not (x.is_floating_point() or is_tokens(x)) or y.is_floating_point() or y.dim() != 1:
        raise ValueError(f"x is {x.dtype} and y is {y.dtype}, shape {tuple(y.shape)}: expected float x, integer y (N,)")
    return x, y.long()


def _chunk(items: Any, numbers: Tensor) -> Chunk:
    if not isinstance(items, list | tuple) or len(items) != 2 or not isinstance(items[0], Tensor):
        raise TypeError(
            f"the data give {type(items).__name__} a batch: expected pairs (x, y) of a tensor and a class number"
        )
    return Chunk(items[0], torch.as_tensor(items[1]).long(), numbers)


def groups(chunks: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """So many at a time; fewer at the end."""
    group: list[Chunk] = []
    for chunk in chunks:
        group.append(chunk)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
