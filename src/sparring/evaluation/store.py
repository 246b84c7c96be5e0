"""Where an evaluation keeps what it has found: parts of examples and a journal while it runs, tidy files at the end.

A part is written to a temporary name, renamed, and only then mentioned in the journal: killed at any moment, what the
journal says is there. The tidy files hold the samples in the order of their numbers, whatever order they fell in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparring.evaluation.records import DONE, Records

SHARD_BYTES = 32 << 20
Example = tuple[int, Tensor, Tensor]


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes `path`'s place when it has been written whole, and leaves nothing behind otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_examples(path: Path, index: Tensor, original: Tensor, adversarial: Tensor) -> None:
    """One safetensors file of `index` (n,), `original` and `adversarial` (n, *S), written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {"index": index, "original": original, "adversarial": adversarial}
    try:
        save_file({name: part.detach().cpu().contiguous() for name, part in tensors.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_examples(path: Path, chunk: int = 64) -> Iterator[Example]:
    """(index, original, adversarial), one sample at a time. ValueError naming the file where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            index = file.get_tensor("index")
            for first in range(0, len(index), chunk):
                original = file.get_slice("original")[first : first + chunk]
                adversarial = file.get_slice("adversarial")[first : first + chunk]
                yield from zip(index[first : first + chunk].tolist(), original, adversarial, strict=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own type for any damage
        raise ValueError(f"{path}: not a readable file of examples ({error})") from error


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: IO[bytes]) -> str:  # Python 3.10
    hasher = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        hasher.update(block)
    return hasher.hexdigest()


class Store:
    """The working folder of one evaluation. With a `fingerprint` it goes on from what an earlier start has left."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any], attacks: int) -> None:
        self.folder = folder
        self.records = Records(attacks)
        self._waiting: list[tuple[int, Tensor, Tensor]] = []  # place, original, adversarial
        self._unwritten: list[int] = []
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
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
        check_fingerprint(json.loads(settings.read_text()), fingerprint, self.folder.parent)
        if not self._journal.exists():
            return
        data = self._journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # killed while writing the last line
            with replacing(self._journal, "wb") as file:
                file.write(whole)
        for line in whole.decode().splitlines():
            self.records.take(line)

    def finish(self, place: int, example: tuple[Tensor, Tensor] | None = None) -> None:
        """This sample's row will not change any more; `example` is its (original, adversarial) where it was fooled."""
        self.records.table[place]["state"] = DONE
        self._unwritten.append(place)
        if example is not None:
            original, adversarial = (part.detach().cpu().clone() for part in example)
            self._waiting.append((place, original, adversarial))
            self._bytes += 2 * original.nbytes
            if self._bytes >= SHARD_BYTES:
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
            with open(self._journal, "a", encoding="utf-8") as file:
                file.writelines(self.records.lines(iter(self._unwritten), inside=True))
                file.flush()
                os.fsync(file.fileno())
            self._unwritten = []

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

    def write_tidy(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
        """samples.jsonl and adversarial-*.safetensors in `folder`; their names. The records must be sorted."""
        self.flush()
        names = ["samples.jsonl"]
        with replacing(folder / names[0]) as file:
            file.writelines(self.records.lines())
        for old in folder.glob("adversarial-*.safetensors"):
            old.unlink()
        held: list[Example] = []
        size = 0

        def write() -> None:
            names.append(f"adversarial-{len(names) - 1:05d}.safetensors")
            index, originals, adversarials = zip(*held, strict=True)
            save_examples(folder / names[-1], torch.tensor(index), torch.stack(originals), torch.stack(adversarials))

        for example in self.examples(self.fooled()):
            held.append(example)
            size += 2 * example[1].nbytes
            if size >= shard_bytes:
                write()
                held, size = [], 0
        if held:
            write()
        return names

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Open:
    """Keeps the last few part files open: rows in sample order jump between neighbouring parts."""

    def __init__(self, path: Callable[[int], Path], most: int = 8) -> None:
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
