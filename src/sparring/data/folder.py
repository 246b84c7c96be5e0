"""Image folders: one sub-folder a class, or one a split and in it one a class. Files are decoded when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from sparring.data import images
from sparring.data.dataset import Pixels, Source

SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


def read(path: Path, split: str, size: int | None, skip_bad: bool) -> Source:
    """The images of a folder, classes in the order of their names.

    Images come in turn from each class, so that the first n are spread evenly. They are grey if all files are, else
    RGB. Files without the ending of an image are ignored, as are hidden ones.

    Raises:
        ValueError: no class folders, no images, images that differ in size without `size`, an unreadable image.
    """
    classes_in, classes = _classes(path, split)
    by_class = [_image_files(classes_in / name) for name in classes]
    if not any(by_class):
        raise ValueError(
            f"{path}: no images: expected one sub-folder a class with {', '.join(sorted(images.SUFFIXES))} files"
        )
    turns = zip_longest(*[[(file, label) for file in files] for label, files in enumerate(by_class)])
    samples = [sample for turn in turns for sample in turn if sample is not None]
    return from_files([file for file, _ in samples], [label for _, label in samples], classes, size, skip_bad)


def from_files(
    files: Sequence[Path], labels: Sequence[int], classes: Sequence[str] | None, size: int | None, skip_bad: bool
) -> Source:
    """Images that are decoded when asked for.

    Headers are read at once; with `skip_bad` every file is decoded once, to know which are bad.
    """
    kept: list[tuple[Path, int]] = []
    headers: list[tuple[int, int, bool]] = []
    skipped: list[str] = []
    for file, label in zip(files, labels, strict=True):
        try:
            headers.append(images.probe(file))
            if skip_bad:
                images.decode(file, channels=3)
        except images.BadImage as error:
            if not skip_bad:
                raise images.BadImage(f"{error}; skip_bad=True (--skip-bad) leaves such files out") from error
            del headers[len(kept) :]
            skipped.append(str(file))
        else:
            kept.append((file, label))
    if not kept:
        raise ValueError(f"{files[0].parent.parent}: none of the {len(files)} images can be read")
    width, height, _ = headers[0]
    if size is None:
        for (file, _), (w, h, _) in zip(kept, headers, strict=True):
            if (w, h) != (width, height):
                raise ValueError(
                    f"images differ in size ({kept[0][0]} is {width}×{height}, {file} is {w}×{h}): "
                    "give size=, for example size=224 (--size 224)"
                )
    channels = 1 if all(grey for *_, grey in headers) else 3

    def pixels(index: int) -> Pixels:
        return images.decode(kept[index][0], channels, size)

    shape = (channels, height, width) if size is None else (channels, size, size)
    return Source(pixels, np.asarray([label for _, label in kept], np.int64), shape, classes, skipped)


def _classes(path: Path, split: str) -> tuple[Path, list[str]]:
    """Where the class folders are, and the classes of all splits (one that has no test images keeps its index)."""
    folders = _sub_folders(path)
    split_names = {name for names in SPLIT_FOLDERS.values() for name in names}
    if not folders:
        raise ValueError(f"{path}: no sub-folders: expected one for each class, with its images in it")
    if not all(folder.name in split_names for folder in folders):
        return path, [folder.name for folder in folders]
    for name in SPLIT_FOLDERS[split]:
        if (path / name).is_dir():
            return path / name, sorted({inner.name for folder in folders for inner in _sub_folders(folder)})
    raise ValueError(f"{path}: it has {', '.join(f.name for f in folders)} but nothing for split={split!r}")


def _sub_folders(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    files = (
        file for file in path.rglob("*") if file.suffix.lower() in images.SUFFIXES and not file.name.startswith(".")
    )
    return sorted(file for file in files if file.is_file())
