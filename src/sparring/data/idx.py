"""The idx format of MNIST (yann.lecun.com, 1998), plain or gzipped: a magic number, the sizes, big-endian values."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparring.data import arrays
from sparring.data.dataset import Source

PIECE = 1 << 16
SPLIT_PREFIX = {"train": "train", "test": "t10k"}


class Idx(NamedTuple):
    """`values` (uint8, any rank) and how many entries the header promised; fewer arrived if the file is cut short."""

    values: NDArray[np.uint8]
    promised: int


def find_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The images and the labels of a split in a folder of MNIST-named files, or None."""
    prefix = SPLIT_PREFIX[split]
    for end in ("", ".gz"):
        for dot in ("-", "."):
            images = folder / f"{prefix}-images{dot}idx3-ubyte{end}"
            if images.is_file():
                return images, labels_beside(images)
    return None


def labels_beside(images: Path) -> Path:
    """The labels' file that belongs to an images' file by MNIST's naming."""
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1"))
    if labels == images or not labels.is_file():
        raise FileNotFoundError(
            f"{images}: its labels are missing: expected {labels.name if labels != images else 'a name with images'} "
            "beside it, or the pair written as IMAGES,LABELS"
        )
    return labels


def read_pair(images: Path, labels: Path, *, skip_bad: bool = False) -> Source:
    """Images (N, H, W) or one of `arrays.images`' layouts with their labels.

    With `skip_bad` what a file that is cut short has lost is left out.

    Raises:
        FileNotFoundError, ValueError: as `read`; as many labels as images are expected.
    """
    x, y = read(images, (3, 4), whole=not skip_bad), read(labels, (1,), whole=not skip_bad)
    if x.promised != y.promised:  # which label belongs to which image is unknown then, so nothing can be skipped
        raise ValueError(f"{labels}: {y.promised} labels for the {x.promised} images of {images.name}")
    count = min(len(x.values), len(y.values))
    skipped = (
        [f"samples {count} to {x.promised - 1} ({images.name} or its labels cut short)"] if count < x.promised else []
    )
    try:
        return Source(arrays.images(x.values[:count]), y.values[:count].astype(np.int64), skipped=skipped)
    except ValueError as error:
        raise ValueError(f"{images}: {error}") from error


def read(path: Path, ranks: tuple[int, ...], *, whole: bool = True) -> Idx:
    """An idx file of unsigned bytes with one of the ranks given; `whole=False` accepts one that is cut short.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not idx, not bytes, another rank, cut short, or longer than its header says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such idx file")
    content, broken = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ValueError(
            f"{path}: not an idx file (MNIST's format starts with two zero bytes, a type and a rank){broken}"
        )
    kind, rank = content[2], content[3]
    if kind != 0x08 or rank not in ranks:
        expected = " or ".join(map(str, ranks))
        raise ValueError(
            f"{path}: idx type 0x{kind:02x} and rank {rank}: expected unsigned bytes (0x08) of rank {expected}"
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"{path}: cut short within its header{broken}")
    sizes = struct.unpack(f">{rank}I", content[4:start])
    each = math.prod(sizes[1:])
    present = (len(content) - start) // each if each else 0
    if len(content) - start > math.prod(sizes):
        raise ValueError(f"{path}: longer than its header says ({sizes[0]} entries of {each} bytes)")
    if whole and (broken or present < sizes[0]):
        raise ValueError(f"{path}: cut short: {present} of {sizes[0]} entries are there{broken}; get the file again")
    values = np.frombuffer(content, np.uint8, count=present * each, offset=start)
    return Idx(values.reshape(present, *sizes[1:]), sizes[0])


def _unpacked(path: Path) -> tuple[bytes, str]:
    """The content and, where gzip found the end missing or damaged, a remark; what came before is kept."""
    packed = path.read_bytes()
    if not packed.startswith(b"\x1f\x8b"):
        return packed, ""
    content = bytearray()
    while packed.startswith(b"\x1f\x8b"):  # a gzip file may have several members
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        for start in range(0, len(packed), PIECE):  # in pieces, so that damage costs only what follows it
            try:
                content += stream.decompress(packed[start : start + PIECE])
            except zlib.error as error:
                return bytes(content), f" (gzip: {error})"
            if stream.eof:
                break
        if not stream.eof:
            return bytes(content), " (gzip: its end is missing)"
        packed = stream.unused_data + packed[start + PIECE :]
    return bytes(content), ""
