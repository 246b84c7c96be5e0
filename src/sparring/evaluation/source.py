"""Where samples come from: a Dataset, a DataLoader or a pair of tensors becomes numbered batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset
from torch.utils.data.distributed import DistributedSampler

from sparring.evaluation.randomness import OwnRandomness
from sparring.noise import Noise


@dataclass
class Batch:
    """index (n,) int64: the samples' numbers. position (n,): where they are in the data. x: a tensor, a dict or tuple of
    them, or a list of n texts; y (n,)."""

    index: Tensor
    position: Tensor
    x: Any
    y: Tensor


class Source:
    """Numbered batches, in the data's order. total: how many samples there will be, or None where nobody knows."""

    def __init__(
        self,
        data: Any,
        batch_size: int,
        max_samples: int | None,
        seed: int,
        indices: Tensor | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """max_samples: a random part of that size (chosen by `seed`) of a data set with a length; the first ones else.

        indices: the samples' numbers, where they are not their positions. shard: (i, n) for every n-th of the samples, from
        the i-th on.

        A shuffled DataLoader is read whole and in its data set's order, so that sample numbers mean the same at every run
        (also one that is dealt out by a `DistributedSampler`, which would hand out some samples twice); one with a sampler of
        the user's own as it comes. What the data draws at random is fixed by `seed`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected a whole number, at least 1")
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples={max_samples}: expected a whole number, at least 1")
        self.batch_size, self.limit, self.indices, self.shard = batch_size, max_samples, indices, shard
        self.seen = 0  # by the latest iteration
        self.randomness = OwnRandomness(seed)
        self.chosen: Tensor | None = None
        self.loader, length = self._loader(data)
        self.available = length
        if length == 0:
            raise ValueError("the data set is empty: there is nothing to evaluate")
        if indices is not None:
            _check_numbers(indices, length)
        self.total = length if max_samples is None or length is None else min(length, max_samples)
        if length is not None and self.total is not None and (self.total < length or shard[1] > 1):
            order = torch.arange(length)
            if self.total < length:
                order = Noise(seed, order).uniform((1,), "subset").squeeze(1).argsort()[: self.total].sort().values
            self.chosen = order[shard[0] :: shard[1]]
            self.total = len(self.chosen)
            if not self.total:
                raise ValueError(
                    f"shard {shard[0]} of {shard[1]} is empty, the data have {len(order)} samples: use fewer"
                )
            self.loader, _ = self._loader(data)

    def _loader(self, data: Any) -> tuple[Any, int | None]:
        if isinstance(data, DataLoader):
            kinds = (SequentialSampler, RandomSampler, DistributedSampler)
            plain = isinstance(data.sampler, kinds) and data.batch_sampler is not None
            dealt = isinstance(data.sampler, DistributedSampler)
            whole = plain and (dealt or len(data.sampler) == len(data.dataset))  # type: ignore[arg-type]
            if isinstance(data.dataset, IterableDataset) or not whole:
                return data, None
            return self._load(data.dataset, data), len(data.dataset)  # type: ignore[arg-type]
        samples = isinstance(data, list) and all(isinstance(item, tuple) and len(item) == 2 for item in data)
        if isinstance(data, (tuple, list)) and not samples:  # a list of pairs is a data set as it is
            if len(data) != 2:
                raise TypeError(f"data is a {type(data).__name__} of {len(data)}: expected the pair (x, y)")
            if of_texts(data[0]):
                texts = _zipped(data[0], torch.as_tensor(data[1]).tolist())
                return self._load(texts), len(texts)
            dataset: Any = _Pair(data[0], torch.as_tensor(data[1]))
            return self._load(dataset), len(dataset)
        if isinstance(data, IterableDataset):
            return self._load(data), None
        other = isinstance(data, (str, bytes, dict, Tensor)) or type(data).__module__ == "numpy"
        if other or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise TypeError(
                f"data is {type(data).__name__}: expected a Dataset, a DataLoader or a pair of tensors (x, y)"
            )
        return self._load(data), len(data)

    def _load(self, dataset: Any, like: DataLoader[Any] | None = None) -> DataLoader[Any]:
        if self.chosen is not None:
            dataset = Subset(dataset, self.chosen.tolist())
        # a generator of its own: a DataLoader without one draws from the global random state
        settings: dict[str, Any] = {"generator": torch.Generator()}
        if like is not None:
            settings |= {"collate_fn": like.collate_fn, "num_workers": like.num_workers, "pin_memory": like.pin_memory}
            settings |= {"worker_init_fn": like.worker_init_fn}
        base = dataset.dataset if isinstance(dataset, Subset) else dataset
        if isinstance(base, _Pair):  # sliced as a whole: no collation sample by sample
            settings["collate_fn"] = base.collate
            dataset = _Numbers(len(dataset) if self.chosen is None else self.chosen)
        return DataLoader(dataset, batch_size=self.batch_size, **settings)

    def __iter__(self) -> Iterator[Batch]:
        seen = self.seen = 0
        number, of = self.shard
        for x, y in self._pairs():
            count = len(y) if self.limit is None else min(len(y), self.limit - seen)
            for first in range(0, count, self.batch_size):  # a loader of the user's own may hand out larger ones
                rows = torch.arange(first, min(count, first + self.batch_size))
                if self.chosen is None and of > 1:  # of a stream everybody reads all
                    rows = rows[(seen + rows) % of == number]
                position = seen + rows if self.chosen is None else self.chosen[seen + rows]
                whole = len(rows) == len(y)
                self.seen += len(rows)
                if len(rows):
                    yield Batch(
                        self._numbers(position), position, x if whole else _pick(x, rows), y if whole else y[rows]
                    )
            seen += count
            if self.limit is not None and seen >= self.limit:
                break
        if not seen:
            raise ValueError("the data set is empty: there is nothing to evaluate")

    def mine(self, numbers: Tensor) -> Tensor:
        """(n,) bool: which of these samples' numbers belong to this shard."""
        number, of = self.shard
        if self.chosen is not None:
            return torch.isin(numbers, self._numbers(self.chosen))
        if self.indices is not None:
            return torch.isin(numbers, self.indices[number::of])
        return numbers % of == number

    def _pairs(self) -> Iterator[tuple[Any, Tensor]]:
        with self.randomness:
            items = iter(self.loader)
        while True:
            with self.randomness:
                item = next(items, None)
            if item is None:
                return
            if not (isinstance(item, (tuple, list)) and len(item) == 2):
                sized = isinstance(item, (tuple, list, dict))
                kind = f"a {type(item).__name__}" + (f" of {len(item)}" if sized else "")
                raise TypeError(f"the data yields {kind}: expected pairs (x, y)")
            y = torch.as_tensor(item[1])
            if not y.ndim:
                raise ValueError("the data yields single samples: expected batches (x, y), with labels (B,)")
            yield item[0], y

    def _numbers(self, positions: Tensor) -> Tensor:
        if self.indices is None:
            return positions
        if int(positions.max()) >= len(self.indices):
            raise ValueError(f"{len(self.indices)} indices for more samples: expected one for each sample")
        return self.indices[positions].cpu().long()


def _check_numbers(indices: Tensor, length: int | None) -> None:
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise TypeError(
            f"indices of shape {tuple(indices.shape)} and dtype {indices.dtype}: expected whole numbers (N,)"
        )
    if length is not None and len(indices) != length:
        raise ValueError(f"{len(indices)} indices for {length} samples: expected one for each sample")
    if len(set(indices.tolist())) < len(indices):
        raise ValueError("indices holds the same number twice: expected one of its own for each sample")


class _Pair(Dataset[Any]):
    """A pair (x, y) held in memory; x may be a dict or tuple of tensors."""

    def __init__(self, x: Any, y: Tensor) -> None:
        self.x, self.y = x, y
        for part in x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else [x]:
            if not isinstance(part, Tensor):
                hint = "; use torch.from_numpy(x)" if type(part).__module__ == "numpy" else ""
                raise TypeError(f"data's x is {type(part).__name__}: expected a tensor (N, ...){hint}")
            if len(part) != len(y):
                raise ValueError(f"data has {len(part)} inputs and {len(y)} labels")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return _pick(self.x, torch.tensor(i)), self.y[i]

    def collate(self, numbers: list[int]) -> tuple[Any, Tensor]:
        rows = torch.tensor(numbers)
        return _pick(self.x, rows), self.y[rows]


class _Numbers(Dataset[int]):
    def __init__(self, numbers: int | Tensor) -> None:
        self.numbers = torch.arange(numbers) if isinstance(numbers, int) else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> int:
        return int(self.numbers[i])


def of_texts(x: Any) -> bool:
    """Whether these are strings (or bytes, which others refuse by the number of the text)."""
    return isinstance(x, (tuple, list)) and any(isinstance(each, (str, bytes)) for each in x)


def _zipped(texts: Any, labels: list[int]) -> list[tuple[str, int]]:
    if len(texts) != len(labels):
        raise ValueError(f"data has {len(texts)} texts and {len(labels)} labels")
    return list(zip(texts, labels, strict=True))


def _pick(x: Any, rows: Tensor) -> Any:
    if of_texts(x):
        return [x[i] for i in rows.flatten().tolist()]
    if isinstance(x, dict):
        return {name: _pick(part, rows) for name, part in x.items()}
    return type(x)(_pick(part, rows) for part in x) if isinstance(x, (tuple, list)) else x[rows.to(x.device)]


def digest(x: Any, y: Tensor) -> list[int]:
    """A 63-bit fingerprint of each sample: BLAKE2b of its bytes (a text's in UTF-8) and its label."""
    if of_texts(x):
        return [_hash([text.encode()], label) for text, label in zip(x, y.tolist(), strict=True)]
    parts = list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, (tuple, list)) else [x]
    arrays = [part.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy() for part in parts]
    labels = y.detach().cpu().long().tolist()
    return [_hash([array[i].tobytes() for array in arrays], label) for i, label in enumerate(labels)]


def _hash(parts: list[bytes], label: int) -> int:
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        hasher.update(part)
    hasher.update(label.to_bytes(8, "little", signed=True))
    return int.from_bytes(hasher.digest(), "little") >> 1
