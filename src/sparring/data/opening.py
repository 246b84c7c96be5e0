"""`open`: one way in, whatever the format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparring.data import arrays, cifar, folder, idx, images, signs, sprites
from sparring.data.bundle import BUNDLED
from sparring.data.catalogue import CATALOGUE, NAMES, candidates, roots
from sparring.data.dataset import LabelledImages, Source

SPLITS = ("train", "test")
BUNDLED_NAME = "fashion-mnist"
FORMATS = "an image folder (one sub-folder a class), an .npz with x and y, idx files, cifar-10-batches-py"


def open(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    split: str = "test",
    size: int | None = None,
    skip_bad: bool = False,
) -> LabelledImages:
    """Open labelled images by name or path.

    Args:
        spec: one of `NAMES`, "fashion-mnist:bundled", a path (image folder, .npz, folder of idx files or the images' file
            or "IMAGES,LABELS", folder cifar-10-batches-py), or the `.spec` of an opened data set, which
            brings its own arguments.
        split: "train" or "test", where the source has both.
        size: scale the short side to `size` pixels and crop the centre; needed where images differ in size.
        skip_bad: leave out what can't be read and list it in `.skipped`, instead of raising.

    Raises:
        FileNotFoundError: nothing there; says where it was looked for and how to get it.
        ValueError: unreadable, cut short, labels that don't fit; names the file.

    >>> images = open("fashion-mnist:bundled")
    >>> images
    <LabelledImages fashion-mnist (bundled subset): 2000 of 1×28×28>
    >>> images.classes[images[0][1]], open(images.spec).name == images.name
    ('Ankle boot', True)
    """
    if isinstance(spec, Mapping):
        if (split, size, skip_bad) != ("test", None, False):
            raise ValueError("a spec that is a dict brings its own split, size and skip_bad: give none beside it")
        return open(**_checked(spec))
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected 'train' or 'test'")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size={size!r}: expected a number of pixels, 1 or more, or None")
    text = os.fspath(spec)
    name, _, variant = text.partition(":")
    if name in CATALOGUE and variant in ("", "bundled"):
        if name == "gtsrb" and size is None:
            size = sprites.SIDE  # the originals all differ in size
        found = _bundled(name, split) if variant else _named(name, split, size, skip_bad)
    else:
        found = _path(text, split, size, skip_bad)
    return _dataset(found, {"spec": found.spec or text, "split": split, "size": size, "skip_bad": skip_bad})


def _named(name: str, split: str, size: int | None, skip_bad: bool) -> Source:
    known = CATALOGUE[name]
    for place in candidates(name):
        source = _folder(place, split, size, skip_bad)
        if source is not None:
            return replace(source, name=name + source.name, spec=name, classes=known.classes)
    if name == BUNDLED_NAME:
        return _bundled(name, split)
    raise FileNotFoundError(
        f"{name} ({split}) was not found: looked for {', '.join(known.places)} under {', '.join(map(str, roots()))}"
        f"{'' if os.environ.get('SPARRING_DATA') else ' (SPARRING_DATA is unset)'}; "
        f"get it, where torchvision is installed, with: {known.download(split)}; or take the subset that comes along: "
        f"{BUNDLED_NAME}:bundled"
    )


def _bundled(name: str, split: str) -> Source:
    if name != BUNDLED_NAME:
        raise ValueError(f"{name}:bundled: only {BUNDLED_NAME} has a bundled subset")
    pair = idx.find_pair(BUNDLED, split)
    if pair is None:
        raise FileNotFoundError(f"{BUNDLED}: the bundled subset is missing: install sparring again")
    source = idx.read_pair(*pair)
    classes = CATALOGUE[name].classes
    return replace(source, name=f"{name} (bundled subset)", spec=f"{name}:bundled", classes=classes)


def _path(text: str, split: str, size: int | None, skip_bad: bool) -> Source:
    path = Path(text).expanduser()
    if not path.exists() and "," in text:
        pair = [Path(part.strip()).expanduser() for part in text.split(",", 1)]
        return _located(idx.read_pair(pair[0], pair[1], skip_bad=skip_bad), *pair)
    if path.is_dir():
        source = _folder(path, split, size, skip_bad) or folder.read(path, split, size, skip_bad)
    elif path.suffix == ".npz":
        source = arrays.read(path, split)
    elif path.is_file() and ("idx" in path.name or "ubyte" in path.name):
        source = idx.read_pair(path, idx.labels_beside(path), skip_bad=skip_bad)
    elif path.is_file():
        raise ValueError(f"{text}: not a data set by its name: expected {FORMATS}")
    else:
        raise FileNotFoundError(
            f"{text}: no such file or folder, nor a known name ({', '.join(NAMES)}): expected {FORMATS}"
        )
    return _located(source, path)


def _folder(path: Path, split: str, size: int | None, skip_bad: bool) -> Source | None:
    """What lies in a folder in one of the fixed formats, or None."""
    if pair := idx.find_pair(path, split):
        return idx.read_pair(*pair, skip_bad=skip_bad)
    for place in (path, path / cifar.FOLDER):
        if cifar.present(place):
            return replace(cifar.read(place, split, skip_bad=skip_bad), classes=CATALOGUE["cifar10"].classes)
    if sprites.present(path, split):
        return sprites.read(path, split, skip_bad=skip_bad)
    if signs.present(path, split):
        return signs.read(path, split, size, skip_bad)
    return None


def _located(source: Source, *paths: Path) -> Source:
    name = paths[0].resolve().name + source.name
    return replace(source, name=name, spec=",".join(str(path.resolve()) for path in paths))


def _dataset(source: Source, spec: dict[str, Any]) -> LabelledImages:
    pixels: Any = source.pixels
    labels, skipped = source.labels, list(source.skipped)
    outside = labels < 0
    if source.classes is not None:
        outside |= labels >= len(source.classes)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        count = f"0 to {len(source.classes) - 1}" if source.classes is not None else "0 or more"
        if not spec["skip_bad"] or callable(pixels):
            raise ValueError(f"{source.name}: sample {first} has label {labels[first]}, expected {count}")
        skipped += [f"sample {i} (label {labels[i]})" for i in np.flatnonzero(outside)]
        pixels, labels = pixels[~outside], labels[~outside]
    if not len(labels):
        raise ValueError(f"{source.name}: no images")
    if not callable(pixels) and spec["size"] is not None and pixels.shape[2:] != (spec["size"], spec["size"]):
        pixels = np.stack([images.fit_array(x, spec["size"]) for x in pixels])
    return LabelledImages(
        pixels, labels, name=source.name, spec=spec, shape=source.shape, classes=source.classes, skipped=skipped
    )


def _checked(spec: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(spec) - {"spec", "split", "size", "skip_bad"}
    if unknown or not isinstance(spec.get("spec"), str):
        raise ValueError(f"{dict(spec)!r}: expected a dict with spec and, if wanted, split, size, skip_bad")
    return dict(spec)
