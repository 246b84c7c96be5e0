"""Where an evaluation keeps what it has found: parts of examples and a journal while it runs, tidy files at the end.

A part is written to a temporary name, renamed, and only then mentioned in the journal: killed at any moment, what the
journal says is there. The tidy files hold the samples in the order of their numbers, whatever order they fell in.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.evaluation.files import locked, replacing, writing
from sparring.evaluation.parts import SHARD_BYTES, Parts, part_of, save_examples
from sparring.evaluation.records import DONE, Records

ROWS_AT_ONCE = 4096


class Store(Parts):
    """The working folder of one evaluation; it goes on from what an earlier start with the same `fingerprint` has left."""

    def __init__(
        self, folder: Path | None, fingerprint: dict[str, Any], attacks: int, records: Records | None = None
    ) -> None:
        """folder: None for one that lives as long as the store. records: to fill, where they are of another kind."""
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="sparring-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self._lock = locked(folder / "lock")
        super().__init__(Records(attacks) if records is None else records, lambda part: part_of(folder, part))
        self._waiting: list[tuple[int, Tensor, Tensor]] = []  # place, original, adversarial
        self._unwritten: list[int] = []
        self._bytes = 0
        settings = folder / "run.json"
        if settings.exists():
            check_fingerprint(read_settings(folder), fingerprint, folder.parent)
            self._resume()
        else:
            with replacing(settings) as file:
                json.dump(fingerprint, file, indent=1)
        self._parts = len(list(folder.glob("part-*.safetensors")))

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def _resume(self) -> None:
        whole = read_journal(self.folder, self.records.take)
        if self._journal.exists() and whole < self._journal.stat().st_size:
            os.truncate(self._journal, whole)

    def adopt(self, folder: Path, mine: Callable[[Tensor], Tensor]) -> None:
        """Take over what another working folder of the same evaluation has finished of the samples that are `mine`."""
        attacks = self.records.table["passes"].shape[1]
        other = Parts(type(self.records)(attacks), lambda part: part_of(folder, part))
        read_journal(folder, other.records.take)
        table, wanted = other.records.table, mine(other.records.column("index"))
        for place in wanted.nonzero().flatten().tolist():
            if self.records.place(int(table["index"][place])) is not None:
                continue
            example = next(iter(other.examples([place])))[1:] if table["part"][place] >= 0 else None
            self.finish(self.records.copied(other.records, place), example)

    def holds(self, index: int, digest: int) -> bool:
        """Whether the sample is known. ValueError where another sample goes by this number."""
        if self.records.place(index) is None:
            return False
        if not self.records.same(index, digest):
            raise ValueError(
                f"sample {index} is not the one that the evaluation in {self.folder.parent} began with: go on with the "
                "same data, or choose another folder"
            )
        return True

    def finish(self, place: int, example: tuple[Tensor, Tensor] | None = None) -> None:
        """This sample's row will not change any more; `example` is its (original, adversarial) where it was fooled."""
        if example is not None:
            original, adversarial = (part.detach().cpu().clone() for part in example)
            self._waiting.append((place, original, adversarial))
            self._bytes += 2 * original.nbytes
        self.records.table[place]["state"] = DONE
        self._unwritten.append(place)  # last: an interrupt before it forgets the sample, which is then attacked again
        if self._bytes >= SHARD_BYTES or len(self._unwritten) >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is finished: the examples, then the rows that speak of them."""
        if self._waiting:
            places = [place for place, _, _ in self._waiting]
            table = self.records.table
            table["part"][places], table["row"][places] = self._parts, np.arange(len(places))
            save_examples(
                part_of(self.folder, self._parts),
                torch.tensor([int(table["index"][place]) for place in places]),
                torch.stack([original for _, original, _ in self._waiting]),
                torch.stack([adversarial for _, _, adversarial in self._waiting]),
            )
            self._parts += 1
            self._waiting, self._bytes = [], 0
        if self._unwritten:
            self._append("".join(self.records.lines(self._unwritten, inside=True)).encode())
            self._unwritten = []

    def _append(self, data: bytes) -> None:
        with writing(self._journal), open(self._journal, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)  # half a line would spoil the next one
                raise

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def check_fingerprint(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """ValueError naming the first setting in which the evaluation in `folder` differs from this one."""
    here = json.loads(json.dumps(here))
    for name in here:
        if there.get(name) != here[name]:
            if name == "attacks":
                what = f"other attacks ({_first_difference(there.get(name) or [], here[name])})"
            else:
                what = f"another {name} ({there.get(name)!r}, now {here[name]!r})"
            raise ValueError(f"{folder} holds an evaluation with {what}: choose another folder, or remove that one")


def _first_difference(there: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    """``attack 2, PGD: steps 40, now 20``: where two lists of attacks part; the lists themselves fill a screen."""
    for number, (one, other) in enumerate(zip(there, here, strict=False), 1):
        if one["name"] != other["name"]:
            return f"attack {number} was {one['name']}, now {other['name']}"
        mine, theirs = other["settings"], one["settings"]
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                return f"attack {number}, {one['name']}: {key} {theirs.get(key)!r}, now {mine.get(key)!r}"
    return f"{len(there)} of them, now {len(here)}"


def read_settings(folder: Path) -> dict[str, Any]:
    """What the evaluation in this working folder was begun with."""
    path = folder / "run.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: not readable JSON ({error}); remove {folder} to start anew") from None


def read_journal(folder: Path, take: Callable[[bytes], Any]) -> int:
    """Hand each line of the journal to `take`; the bytes of those that are whole (a kill may tear the last one)."""
    path, whole = folder / "journal.jsonl", 0
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                take(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a sample's record ({error}); remove {folder} to start anew"
                ) from None
            whole += len(line)
    return whole
