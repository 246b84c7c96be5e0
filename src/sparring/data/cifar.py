"""CIFAR-10's python batches (Krizhevsky 2009), read without giving their pickles any power.

A pickle may name any function to be called. Here the few names that an array's pickle needs are bound to inert
stand-ins that only keep what they are handed; every other name is refused. The bytes
become an array afterwards, in our own code.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.data.dataset import Source

FOLDER = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}

# How unpickling damaged bytes can fail; all mean the same.
DAMAGED = (
    *(pickle.UnpicklingError, ValueError, EOFError, AttributeError, IndexError, KeyError, TypeError),
    *(MemoryError, OverflowError, RecursionError),
)


class _Array:
    """Stands for an ndarray: keeps the state (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def bytes_array(self) -> NDArray[np.uint8]:
        """The array, if it is one of unsigned bytes in C order."""
        if len(self.state) != 5:
            raise ValueError("data is no array")
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _DType) or kind.name != "u1" or fortran or not isinstance(content, bytes):
            raise ValueError("data is no array of unsigned bytes in C order")
        if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) != len(content):
            raise ValueError("data is cut short")
        return np.frombuffer(content, np.uint8).reshape(shape)


class _DType:
    """Stands for a dtype: keeps its name."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about single bytes."""


class _NdarrayName:
    """Stands for the type `numpy.ndarray`, which an array's pickle names and nobody calls."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    # How Python 3 writes bytes in the old pickle protocols.
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("only latin1 text stands for bytes")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR batch needs: refused") from None


def present(folder: Path) -> bool:
    """Whether this is (or was meant to be) a folder of CIFAR-10 batches."""
    return any((folder / name).is_file() for names in BATCHES.values() for name in names)


def read(folder: Path, split: str, *, skip_bad: bool = False) -> Source:
    """uint8 (N, 3, 32, 32) and their labels; skips whole batches.

    Raises:
        ValueError: a batch that is missing, cut short, dangerous, or whose labels don't fit its images.
    """
    x: list[NDArray[np.uint8]] = []
    y: list[NDArray[np.int64]] = []
    skipped: list[str] = []
    for name in BATCHES[split]:
        try:
            pixels, labels = _batch(folder / name)
        except ValueError:
            if not skip_bad:
                raise
            skipped.append(name)
            continue
        x.append(pixels)
        y.append(labels)
    if not x:
        raise ValueError(f"{folder}: none of the {split} batches can be read ({', '.join(skipped)})")
    return Source(np.concatenate(x), np.concatenate(y), skipped=skipped)


def _batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not path.is_file():
        raise ValueError(f"{path}: this batch is missing; get {FOLDER} again")
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary")
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        data, labels = fields.get("data"), fields.get("labels")
        if not isinstance(data, _Array) or not isinstance(labels, list):
            raise ValueError("data and labels are not both there")
        pixels = data.bytes_array()
        if pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise ValueError(f"data has shape {pixels.shape}, expected (N, 3072)")
        if len(labels) != len(pixels):
            raise ValueError(f"{len(labels)} labels for {len(pixels)} images")
        if not all(isinstance(label, int) for label in labels):
            raise ValueError("labels are not whole numbers")
    except DAMAGED as error:
        raise ValueError(f"{path}: not a readable CIFAR-10 batch: {error}") from error
    return pixels.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)
