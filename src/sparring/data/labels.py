"""Which samples get to keep their label, where there are to be few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def few_labels(labels: Sequence[int] | NDArray[Any], count: int, seed: int = 0) -> NDArray[np.int64]:
    """The numbers (count,) of samples, sorted, chosen by the seed: equally many of each class, as near as `count` divides.

    labels: (N,) class numbers. Raises ValueError, in one line, where there are more classes than labels to give, or a class
    has too few samples.

    >>> chosen = few_labels([0, 0, 0, 1, 1, 1], 4)
    >>> len(chosen), np.bincount(np.array([0, 0, 0, 1, 1, 1])[chosen]).tolist()
    (4, [2, 2])
    """
    known = np.asarray(labels)
    if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer):
        raise ValueError(f"labels of {known.dtype}, shape {known.shape}: expected class numbers (N,)")
    classes, sizes = np.unique(known, return_counts=True)
    if isinstance(count, bool) or not isinstance(count, int) or count < max(len(classes), 1):
        raise ValueError(
            f"labels={count!r}: expected a whole number, at least one label for each of {len(classes)} classes"
        )
    draw = np.random.default_rng(seed)
    share = np.full(len(classes), count // len(classes))
    share[draw.permutation(len(classes))[: count % len(classes)]] += 1
    for label, size, wanted in zip(classes, sizes, share, strict=True):
        if size < wanted:
            raise ValueError(f"labels={count}: class {label} has {size} samples, and {wanted} of each class are wanted")
    chosen = [draw.permutation(np.flatnonzero(known == label))[:wanted] for label, wanted in zip(classes, share)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
