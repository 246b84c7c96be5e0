"""A share of an evaluation: every n-th sample, in a working folder of its own; `merge` makes one result of them.

A working folder holds `run.json` (what the evaluation is), the journal and the parts with examples, and at its end
`shard.json`: what the run knows beside its records. A single process works in `.parts`, as the only share.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparring.evaluation.files import replacing
from sparring.evaluation.kinds import result_of
from sparring.evaluation.records import DONE, Records
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.source import Source, digest
from sparring.evaluation.store import Store, check_fingerprint, read_journal, read_settings

Shard = tuple[int, int]
WHOLE: Shard = (0, 1)


def check_shard(shard: Shard, out: Path | None) -> Shard:
    """(i, n) as it is. ValueError or TypeError, in one line, for anything else."""
    whole = isinstance(shard, (tuple, list)) and len(shard) == 2 and all(type(part) is int for part in shard)
    if not whole or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={shard!r}: expected (i, n), two whole numbers with 0 <= i < n")
    if shard[1] > 1 and out is None:
        raise ValueError(f"shard={shard!r} without out: a share of an evaluation needs a folder that merge can read")
    return (shard[0], shard[1])


@dataclass(frozen=True, order=True)
class Working:
    """A working folder in the folder of a result, named after its share."""

    of: int
    number: int
    path: Path

    def __str__(self) -> str:
        return self.path.name

    @property
    def ended(self) -> bool:
        """Whether it has come to its end (or a time limit): then it says what it knows."""
        return (self.path / "shard.json").exists()

    def read(self) -> dict[str, Any]:
        path = self.path / "shard.json"
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: not readable JSON ({error}); run this shard again") from None


def working(out: Path, shard: Shard) -> Working:
    number, of = shard
    return Working(of, number, out / (f"shard-{number}-of-{of}" if of > 1 else ".parts"))


def workings(out: Path) -> list[Working]:
    """The working folders that are there, in order."""
    found = [working(out, WHOLE)]
    for path in out.glob("shard-*-of-*") if out.exists() else ():
        if match := re.fullmatch(r"shard-(\d+)-of-(\d+)", path.name):
            found.append(Working(int(match[2]), int(match[1]), path))
    return sorted(folder for folder in found if (folder.path / "run.json").exists())


def open_store(
    out: Path | None, source: Source, identity: dict[str, Any], attacks: int, records: Records | None = None
) -> Store:
    """Where this share is kept, with what an earlier start has finished of it, also one with another number of shares.

    records: to fill, where they are of another kind.
    ValueError where the folder holds another evaluation."""
    if out is None:
        return Store(None, identity, attacks, records)
    mine = working(out, source.shard)
    fresh = not mine.path.exists()
    store = Store(mine.path, fingerprint(identity, source.shard), attacks, records)
    try:  # after saying what this one is: of two that start at once, one at least sees the other
        for folder in workings(out):
            check_fingerprint(read_settings(folder.path), identity, out)
    except ValueError:
        if fresh:
            store.remove()
        raise
    for folder in workings(out):
        if folder.of != mine.of:
            store.adopt(folder.path, source.mine)
    return store


def fingerprint(identity: dict[str, Any], shard: Shard) -> dict[str, Any]:
    return identity if shard == WHOLE else identity | {"shard": list(shard)}


def earlier(
    out: Path, source: Source, identity: dict[str, Any], attacks: int, records: Records | None = None
) -> EvaluationResult | None:
    """This share, where it is finished. Of the data its first batch is compared. records: as of `open_store`."""
    mine = working(out, source.shard)
    if not mine.ended:
        return None
    known = mine.read()
    if not known["facts"]["finished"]:
        (mine.path / "shard.json").unlink()  # it is worked on again: what it knew when time was up is out of date
        return None
    store = open_store(out, source, identity, attacks, records)
    batch = next(iter(source))
    for index, print_of in zip(batch.index.tolist(), digest(batch.x, batch.y), strict=True):
        store.holds(index, print_of)
    return _result(known, store)


def keep(
    out: Path, source: Source, facts: dict[str, Any], gallery: list[dict[str, Any]], store: Store
) -> EvaluationResult:
    """Say what this share has come to; its result. The store's records must be sorted."""
    under_way = np.flatnonzero(store.records.table["state"] != DONE)
    known = {
        "facts": facts | {"settings": facts["settings"] | {"shard": list(source.shard)}},
        "gallery": gallery,
        "seen": source.seen,
        "under way": [json.loads(line) for line in store.records.lines(under_way.tolist(), inside=True)],
    }
    with replacing(working(out, source.shard).path / "shard.json") as file:
        json.dump(known, file, indent=1, allow_nan=False)
    return _result(known, store)


def _result(known: dict[str, Any], store: Store) -> EvaluationResult:
    store.sort()
    return result_of(known["facts"], store, known["gallery"])


def finished(out: Path, shard: Shard | None = None) -> int:
    """How many samples the working folders in `out` have finished; with a shard, its own folder."""
    done: set[int] = set()
    for folder in workings(out):
        if shard in (None, WHOLE, (folder.number, folder.of)):
            read_journal(folder.path, lambda line: done.add(json.loads(line)["index"]))
    return len(done)


def remove(out: Path) -> None:
    """All working folders, once their result is written."""
    for folder in workings(out):
        shutil.rmtree(folder.path, ignore_errors=True)
