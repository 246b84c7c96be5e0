"""Batches of texts of like length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from sparring.checks import check_whole


class LengthBatches(Sampler[list[int]]):
    """Batches of texts of like length: a `batch_sampler` for a `DataLoader` that `sp.fit` takes.

    A batch costs what its longest text costs, so texts drawn at random cost up to twice their own length. Here they are shuffled,
    each window of so many batches is sorted by length and cut into batches, and the batches are shuffled: every text comes
    once an epoch, in other company each time. Draws from torch's global generator, which `fit` keys by (seed, epoch).

    lengths: (N,) tokens of each text, as `TextClassifier.lengths` counts them. batch_size: texts a batch. window: batches that
    are sorted together; a smaller one keeps more of chance. ValueError for what can't be.

    >>> lengths = [3, 9, 3, 9, 3, 9, 3, 9]
    >>> sorted(sorted(lengths[i] for i in batch) for batch in LengthBatches(lengths, 4))
    [[3, 3, 3, 3], [9, 9, 9, 9]]
    """

    def __init__(self, lengths: Sequence[int] | Tensor, batch_size: int, window: int = 50) -> None:
        check_whole("LengthBatches", batch_size=batch_size, window=window)
        try:
            self.lengths = torch.as_tensor(lengths)
        except (TypeError, ValueError) as error:
            raise TypeError(f"lengths of {type(lengths).__name__}: expected one number a text ({error})") from None
        if self.lengths.ndim != 1 or not len(self.lengths):
            raise ValueError(
                f"lengths of shape {tuple(self.lengths.shape)}: expected one number a text, and a text at least"
            )
        self.batch_size, self.window = batch_size, window

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[Tensor] = []
        for some in torch.split(torch.randperm(len(self.lengths)), self.batch_size * self.window):
            ordered = some[self.lengths[some].argsort(descending=True, stable=True)]
            batches += ordered.tensor_split(-(-len(some) // self.batch_size))  # of even sizes: no rest of one text
        for number in torch.randperm(len(batches)).tolist():
            yield batches[number].tolist()

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)
