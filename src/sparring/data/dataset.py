"""Labelled images as a map-style dataset: uint8 in memory, float32 in [0, 1] when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """What a reader found.

    `pixels`: (N, C, H, W), or a function that reads image i as (C, H, W); then `shape` says which.
    `name`: what to call it, or what to add to the name of the place. `spec`: how to find it again.
    """

    pixels: Pixels | Callable[[int], Pixels]
    labels: NDArray[np.int64]
    shape: tuple[int, int, int] | None = None
    classes: Sequence[str] | None = None
    skipped: Sequence[str] = ()
    name: str = ""
    spec: str = ""


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images of one shape with their labels; sample i is `(x, y)`: x float32 (C, H, W) in [0, 1], y int.

    Attributes:
        name: what it is, for people: "fashion-mnist (bundled subset)".
        shape: (C, H, W).
        classes: the classes' names, or None where the source has none.
        spec: a dict of plain values; `open(spec)` gives the same data again.
        skipped: what was left out because it could not be read (only with `skip_bad=True`).
        labels: int64 (N,).

    >>> images = LabelledImages(np.zeros((3, 1, 2, 2), np.uint8), [0, 1, 0], name="zeros", spec={})
    >>> images[1][0].shape, images[1][1], images.tensors(2)[1].tolist()
    (torch.Size([1, 2, 2]), 1, [0, 1])
    """

    def __init__(
        self,
        pixels: Pixels | Callable[[int], Pixels],
        labels: Sequence[int] | NDArray[Any],
        *,
        name: str,
        spec: dict[str, Any],
        shape: tuple[int, int, int] | None = None,
        classes: Sequence[str] | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        """`pixels`: an array (N, C, H, W), uint8 or float32 in [0, 1], or a function that reads image i (C, H, W) when
        asked (then `shape` says what it will give)."""
        if not callable(pixels):
            shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        if shape is None:
            raise TypeError("pixels that are read when asked need shape=(C, H, W)")
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        self.shape: tuple[int, int, int] = shape
        self.name = name
        self.spec = spec
        self.classes = list(classes) if classes is not None else None
        self.skipped = list(skipped)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside {self.name}, which has {len(self)} samples")
        index %= len(self)
        pixels = self._pixels(index) if callable(self._pixels) else self._pixels[index]
        return to_float(pixels), int(self.labels[index])

    def tensors(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The first n samples (all by default) as x float32 (n, C, H, W) in [0, 1] and y int64 (n,)."""
        n = len(self) if n is None else min(n, len(self))
        if n < 0:
            raise ValueError(f"n={n}: expected how many samples to take, 0 or more")
        if not callable(self._pixels):
            return to_float(self._pixels[:n]), self.labels[:n].clone()
        x = torch.empty((n, *self.shape))
        for i in range(n):
            x[i] = to_float(self._pixels(i))
        return x, self.labels[:n].clone()

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return f"<LabelledImages {self.name}: {len(self)} of {channels}×{height}×{width}>"


def to_float(pixels: Pixels) -> Tensor:
    """uint8 or float32 pixels as a new float32 tensor in [0, 1]."""
    if pixels.dtype == np.uint8:
        return torch.tensor(pixels).float().div_(255)
    return torch.tensor(pixels, dtype=torch.float32)
