"""Where an evaluation keeps what it has found: parts of examples and a journal while it runs, tidy files at the end.

A part is written to a temporary name, renamed, and only then mentioned in the journal: killed at any moment, what the
journal says is there. The tidy files hold the samples in the order of their numbers, whatever order they fell in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sparring.evaluation.records import DONE, Records

SHARD_BYTES = 4 << 20
ROWS_AT_ONCE = 4096
Example = tuple[int, Tensor, Tensor]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line what could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"can't write {path}: {error.strerror or error}") from None


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes `path`'s place when it has been written whole, and leaves nothing behind otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def clear_temporaries(folder: Path) -> None:
    """Remove what a process killed while replacing one of the result's files has left."""
    for name in ("samples.jsonl", "adversarial-*.safetensors", "report.html", "result.json"):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def save_examples(path: Path, index: Tensor, original: Tensor, adversarial: Tensor) -> None:
    """One safetensors file of `index` (n,), `original` and `adversarial` (n, *S), written whole or not at all."""
    tensors = {"index": index, "original": original, "adversarial": adversarial}
    data = save({name: part.detach().cpu().contiguous() for name, part in tensors.items()})
    with replacing(path, "wb") as file:
        file.write(data)


def read_examples(path: Path, chunk: int = 64, only: int | None = None) -> Iterator[Example]:
    """(index, original, adversarial), one sample at a time, or of the sample `only`. ValueError for a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            index = file.get_tensor("index").tolist()
            original, adversarial = file.get_slice("original"), file.get_slice("adversarial")
            starts = range(0, len(index), chunk)
            if only is not None:
                at, chunk = index.index(only) if only in index else len(index), 1
                starts = range(at, min(at + 1, len(index)))
            for first in starts:
                part = slice(first, first + chunk)
                yield from zip(index[part], original[part], adversarial[part], strict=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: the result in {path.parent} is not whole") from None
    except Exception as error:  # safetensors raises its own type for any damage
        raise ValueError(f"{path}: not a readable file of examples ({error})") from None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: IO[bytes]) -> str:  # Python 3.10
    hasher = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        hasher.update(block)
    return hasher.hexdigest()


class Store:
    """The working folder of one evaluation; it goes on from what an earlier start with the same `fingerprint` has left."""

    def __init__(self, folder: Path | None, fingerprint: dict[str, Any], attacks: int) -> None:
        """folder: None for one that lives as long as the store."""
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="sparring-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self.records = Records(attacks)
        self._waiting: list[tuple[int, Tensor, Tensor]] = []  # place, original, adversarial
        self._unwritten: list[int] = []
        self._bytes = 0
        settings = folder / "run.json"
        if settings.exists():
            self._resume(settings, fingerprint)
        else:
            with replacing(settings) as file:
                json.dump(fingerprint, file, indent=1)
        self._parts = len(list(folder.glob("part-*.safetensors")))

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def _resume(self, settings: Path, fingerprint: dict[str, Any]) -> None:
        try:
            there = json.loads(settings.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{settings}: not readable JSON ({error}); remove {self.folder} to start anew") from None
        check_fingerprint(there, fingerprint, self.folder.parent)
        if not self._journal.exists():
            return
        whole = 0
        with open(self._journal, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):  # killed while writing it
                    break
                try:
                    self.records.take(line)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                    raise ValueError(
                        f"{self._journal}, line {number}: not a sample's record ({error}); remove {self.folder} to "
                        "start anew"
                    ) from None
                whole += len(line)
        if whole < self._journal.stat().st_size:
            os.truncate(self._journal, whole)

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
                self._part(self._parts),
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

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def examples(self, places: list[int]) -> Iterator[Example]:
        """The examples of these rows, in this order."""
        self.flush()
        with _Open(self._part) as parts:
            for place in places:
                row = self.records.table[place]
                original, adversarial = parts.read(int(row["part"]), int(row["row"]))
                yield int(row["index"]), original, adversarial

    def fooled(self) -> list[int]:
        """The rows with an example, in the order of the samples' numbers (once the records are sorted)."""
        table = self.records.table
        return [int(i) for i in np.flatnonzero((table["part"] >= 0) & (table["state"] == DONE))]

    def sort(self) -> None:
        """Put the rows in the order of the samples' numbers."""
        self.flush()  # what waits to be written is known by its row
        self.records.sort()

    def write_tidy(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
        """samples.jsonl and adversarial-*.safetensors in `folder`; their names. The records must be sorted."""
        self.flush()
        clear_temporaries(folder)
        names = ["samples.jsonl"]
        with replacing(folder / names[0]) as file:
            file.writelines(self.records.lines())
        for old in folder.glob("adversarial-*.safetensors"):
            old.unlink()
        places = self.fooled()
        rows = 1
        if places:
            _, first, _ = next(iter(self.examples(places[:1])))
            rows = max(1, shard_bytes // (2 * first.nbytes))
            # filled again for each shard: a list of small tensors would be copied, and leave holes in the memory
            pair = torch.empty((2, min(rows, len(places)), *first.shape), dtype=first.dtype)
        examples = self.examples(places)
        for start in range(0, len(places), rows):
            index = []
            for i, (number, original, adversarial) in enumerate(islice(examples, rows)):
                index.append(number)
                pair[0, i], pair[1, i] = original, adversarial
            names.append(f"adversarial-{start // rows:05d}.safetensors")
            save_examples(folder / names[-1], torch.tensor(index), pair[0, : len(index)], pair[1, : len(index)])
        return names

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Open:
    """Keeps the last few part files open: rows in sample order jump between neighbouring parts."""

    def __init__(self, path: Callable[[int], Path], most: int = 4) -> None:
        self.path, self.most = path, most
        self._files: dict[int, Any] = {}

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()

    def read(self, part: int, row: int) -> tuple[Tensor, Tensor]:
        if part not in self._files:
            while len(self._files) >= self.most:
                self._files.pop(next(iter(self._files)))
            self._files[part] = safe_open(self.path(part), "pt")
        file = self._files[part]
        return tuple(file.get_slice(name)[row : row + 1][0] for name in ("original", "adversarial"))


def check_fingerprint(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """ValueError naming the first setting in which the evaluation in `folder` differs from this one."""
    here = json.loads(json.dumps(here))
    for name in here:
        if there.get(name) != here[name]:
            raise ValueError(
                f"{folder} holds an evaluation with another {name} ({there.get(name)!r}, now {here[name]!r}): "
                "choose another folder, or remove that one"
            )
