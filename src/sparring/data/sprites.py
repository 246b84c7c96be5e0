"""CIFAR-10 and GTSRB as lossless WebP columns: `SPLIT_00.webp`, `SPLIT_01.webp`, …, each
500 images of 32×32 one below the other. Labels stand in `labels.npz` as SPLIT
or SPLIT_label, and may be more than the images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparring.data.dataset import Source
from sparring.data.images import BadImage, upright

SIDE = 32
PER_COLUMN = 500


def present(folder: Path, split: str) -> bool:
    """Whether the folder holds this split."""
    return (folder / "labels.npz").is_file() and any(folder.glob(f"{split}_*.webp"))


def read(folder: Path, split: str, *, skip_bad: bool = False) -> Source:
    """uint8 (N, 3, 32, 32) and their labels; skips whole columns.

    Raises:
        ValueError: an unreadable or missing column, or fewer labels than images.
    """
    with np.load(folder / "labels.npz", allow_pickle=False) as arrays:
        labels = arrays[split if split in arrays else f"{split}_label"].astype(np.int64)
    files = sorted(folder.glob(f"{split}_*.webp"))
    x: list[NDArray[np.uint8]] = []
    y: list[NDArray[np.int64]] = []
    skipped: list[str] = []
    for number, file in enumerate(files):
        if file.stem != f"{split}_{number:02d}":  # a gap would shift every label after it
            raise ValueError(f"{folder}: {split}_{number:02d}.webp is missing; get the folder again")
        try:
            column = _column(file)
        except BadImage:
            if not skip_bad:
                raise
            skipped.append(file.name)
            continue
        start = number * PER_COLUMN
        if start + len(column) > len(labels):
            raise ValueError(f"{folder / 'labels.npz'}: {len(labels)} labels for {split}: fewer than images")
        x.append(column)
        y.append(labels[start : start + len(column)])
    if not x:
        raise ValueError(f"{folder}: none of the {len(files)} {split} columns can be read")
    count = sum(map(len, y))
    name = f" ({count:,} of {len(labels):,})" if count < len(labels) else ""
    return Source(np.concatenate(x), np.concatenate(y), skipped=skipped, name=name)


def _column(file: Path) -> NDArray[np.uint8]:
    pixels = np.asarray(upright(file).convert("RGB"), dtype=np.uint8)
    if pixels.shape[1] != SIDE or pixels.shape[0] % SIDE or len(pixels) > SIDE * PER_COLUMN:
        raise BadImage(f"{file}: {pixels.shape[1]}×{pixels.shape[0]} pixels: expected a column of 500 images of 32×32")
    return np.ascontiguousarray(pixels.reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2))
