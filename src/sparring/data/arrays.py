"""A plain .npz with x and y."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.data.dataset import Pixels, Source

CHANNELS = (1, 3)


def read(path: Path, split: str) -> Source:
    """x (N, C, H, W) uint8 or float32, y, and the names in the optional array `classes`.

    Arrays are called x and y, or x_test and y_test (x_train, y_train) where the file has both splits.

    Raises:
        ValueError: unreadable, without these arrays, or arrays that are no labelled images; the message says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array: expected an .npz with x and y")
            keys = (f"x_{split}", f"y_{split}") if f"x_{split}" in file else ("x", "y")
            missing = [key for key in keys if key not in file]
            if missing:
                raise ValueError(f"no array named {missing[0]}; it has {', '.join(file) or 'none'}: expected x and y")
            x, y = file[keys[0]], file[keys[1]]
            classes = [str(name) for name in file["classes"]] if "classes" in file else None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz: {error}") from error
    try:
        return Source(images(x), labels(y, len(x)), classes=classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def images(x: NDArray[Any]) -> Pixels:
    """Any usual layout as (N, C, H, W), uint8 or float32.

    The rule: (N, H, W) is grey. Of (N, a, b, c), a is the channels if it is 1 or 3 (also if c is), else c must be.

    >>> images(np.zeros((5, 32, 32, 3), np.uint8)).shape, images(np.zeros((5, 8, 9))).dtype
    ((5, 3, 32, 32), dtype('float32'))
    """
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in CHANNELS and x.shape[3] in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in CHANNELS or 0 in x.shape[2:]:
        raise ValueError(
            f"x has shape {x.shape}: expected (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels"
        )
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"x is {x.dtype}: expected uint8, or floats in [0, 1]")
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.size:
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise ValueError(f"x lies in [{low:.4g}, {high:.4g}]: floats must be in [0, 1] (for 0 to 255 save uint8)")
    return x


def labels(y: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Whole numbers, one an image, as int64 (N,); (N, 1) is accepted."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"y is {y.dtype} of shape {y.shape}: expected one whole number an image, the index of its class"
        )
    if len(y) != count:
        raise ValueError(f"{len(y)} labels for {count} images")
    return y.astype(np.int64)
