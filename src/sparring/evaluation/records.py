"""What is known of each sample: a table of a few dozen bytes a row, so that memory does not grow with the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PENDING, STARTED, DONE = 0, 1, 2

# passes: forwards and backwards of each attack of the cascade.
# state: PENDING, STARTED (in flight) or DONE. attack: the position of the attack that fooled the sample, or −1.
# prediction and confidence: at the adversarial example. part, row: where that example is kept.
# closeness: what the attacks left of the clean margin, from 1 to 0; NaN where they climbed something else.
# unconfirmed: successes that were gone when the model was asked again. probabilities: the clean output looks like them.
COLUMNS = [
        ("index", "i8"), ("digest", "i8"), ("label", "i4"), ("state", "i1"), ("correct", "?"), ("robust", "?"),
        ("clean_prediction", "i4"), ("clean_confidence", "f4"), ("attack", "i2"), ("prediction", "i4"),
        ("confidence", "f4"), ("norm", "f8"), ("distance", "f8"), ("zero", "i4"), ("broken", "i4"),
        ("forwards", "i8"), ("backwards", "i8"), ("part", "i4"), ("row", "i4"), ("unconfirmed", "i2"),
        ("probabilities", "?"), ("closeness", "f4"),
]  # fmt: skip
_KEPT_INSIDE = ("state", "part", "row", "unconfirmed", "probabilities", "passes")


class Records:
    """Rows in the order in which samples were met; `place(index)` finds one."""

    def __init__(self, attacks: int, room: int = 1024) -> None:
        self._table = np.zeros(room, np.dtype([*COLUMNS, ("passes", "i4", (attacks, 2))]))
        self._count = 0
        self._elsewhere: dict[int, int] = {}  # the places of samples whose place is not their number

    def __len__(self) -> int:
        return self._count

    @property
    def table(self) -> np.ndarray[Any, Any]:
        """The filled rows; writing to them writes the records."""
        return self._table[: self._count]

    def place(self, index: int) -> int | None:
        if 0 <= index < self._count and self._table[index]["index"] == index:
            return index
        return self._elsewhere.get(index)

    def same(self, index: int, digest: int) -> bool:
        """Whether the sample of this number is the one with this fingerprint."""
        place = self.place(index)
        return place is not None and int(self._table[place]["digest"]) == digest

    def add(self, index: int) -> int:
        """A new row for this sample; its place."""
        if self._count == len(self._table):
            self._table = np.concatenate([self._table, np.zeros(len(self._table), self._table.dtype)])
        place = self._count
        self._count += 1
        if index != place:
            self._elsewhere[index] = place
        row = self._table[place]
        row["index"], row["attack"], row["part"] = index, -1, -1
        row["prediction"], row["norm"], row["distance"] = -1, np.nan, np.nan
        row["confidence"] = row["closeness"] = np.nan
        return place

    def copied(self, other: Records, place: int) -> int:
        """The row at that place of other records of the same kind, as a row of these; its place here. Its example stays there."""
        here = self.add(int(other.table[place]["index"]))
        self._table[here] = other.table[place]
        self._table[here]["part"] = -1
        return here

    def sort(self) -> None:
        """Put the rows in the order of the samples' numbers."""
        index = self.table["index"]
        if bool((index[1:] < index[:-1]).any()):
            self._table = self.table[np.argsort(index, kind="stable")]
        index = self.table["index"]
        self._elsewhere = {int(index[place]): int(place) for place in np.flatnonzero(index != np.arange(len(index)))}

    def column(self, name: str) -> Tensor:
        return torch.from_numpy(self.table[name].copy())

    def data_sha256(self) -> str:
        """Of the samples' fingerprints, in the order of their numbers."""
        order = np.argsort(self.table["index"], kind="stable")
        return hashlib.sha256(self.table["digest"][order].astype("<i8").tobytes()).hexdigest()

    def lines(self, places: Sequence[int] | None = None, inside: bool = False, chunk: int = 4096) -> Iterator[str]:
        """One JSON object a row; `inside` adds what only a resumed run needs."""
        order: Any = np.arange(self._count) if places is None else np.asarray(places, dtype=np.int64)
        names = [name for name in self._table.dtype.names or () if inside or name not in _KEPT_INSIDE]
        for first in range(0, len(order), chunk):
            rows = self._table[order[first : first + chunk]]
            columns = [_json_column(name, rows[name]) for name in names]
            for done, *values in zip((rows["state"] == DONE).tolist(), *columns, strict=True):
                row = dict(zip(names, values, strict=True))
                row |= self.beside(row["index"])
                yield json.dumps(row if done else row | {"finished": False}) + "\n"

    def beside(self, index: int) -> dict[str, Any]:
        """What a sample's line says beside the columns."""
        return {}

    def take(self, line: str | bytes) -> int:
        """A row back from its line, and its place; of two lines about one sample the later one counts."""
        values = json.loads(line)
        index, digest = values["index"], int(values["digest"], 16)
        place = self.place(index)
        if place is None:
            place = self.add(index)  # may replace the table, so before it is looked into
        row = self._table[place]
        for name in self._table.dtype.names or ():
            if values.get(name) is not None:
                row[name] = digest if name == "digest" else values[name]
        if "state" not in values:
            row["state"] = DONE if values.get("finished", True) else STARTED
        return place


def _json_column(name: str, values: np.ndarray[Any, Any]) -> list[Any]:
    if name == "digest":
        return [f"{value:016x}" for value in values.tolist()]
    if values.dtype.kind == "f":
        return [None if value != value else value for value in values.tolist()]  # NaN is no JSON
    return list(values.tolist())
