"""GTSRB in its original files (Stallkamp et al. 2012), laid out as torchvision does: PPM images of any size."""

from __future__ import annotations

import csv
from pathlib import Path

from sparring.data import folder
from sparring.data.dataset import Source

TEST_LABELS = ("GT-final_test.csv", "../GT-final_test.csv")
TRAIN_FOLDERS = ("Training", "Final_Training/Images", "GTSRB/Training", "GTSRB/Final_Training/Images")
TEST_FOLDERS = ("Final_Test/Images", "GTSRB/Final_Test/Images")


def present(path: Path, split: str) -> bool:
    """Whether the folder holds this split."""
    return _first(path, TRAIN_FOLDERS if split == "train" else TEST_FOLDERS) is not None


def read(path: Path, split: str, size: int | None, skip_bad: bool) -> Source:
    """The signs of a split; test labels come from GT-final_test.csv.

    Raises:
        ValueError, FileNotFoundError: unreadable images, no or a damaged GT-final_test.csv, images missing.
    """
    place = _first(path, TRAIN_FOLDERS if split == "train" else TEST_FOLDERS)
    if place is None:
        raise FileNotFoundError(f"{path}: no {split} images of GTSRB")
    if split == "train":
        return folder.read(place, split, size, skip_bad)
    table = _first(path, TEST_LABELS)
    if table is None:
        raise FileNotFoundError(f"{path}: the test labels, GT-final_test.csv, are missing")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    try:
        files, labels = [place / row["Filename"] for row in rows], [int(row["ClassId"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table}: expected columns Filename and ClassId parted by ';' ({error})") from error
    if not files:
        raise ValueError(f"{table}: no rows")
    return folder.from_files(files, labels, None, size, skip_bad)


def _first(path: Path, places: tuple[str, ...]) -> Path | None:
    return next((path / place for place in places if (path / place).exists()), None)
