"""Examples in part files, and the records that say which one is where: read in any order, written as tidy files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sparring.evaluation.files import clear_temporaries, replacing
from sparring.evaluation.records import DONE, Records

SHARD_BYTES = 4 << 20
Example = tuple[int, Tensor, Tensor]


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


def part_of(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


class Parts:
    """Records whose columns `part` and `row` say where an example is kept; `path(part)` is that file."""

    def __init__(self, records: Records, path: Callable[[int], Path]) -> None:
        self.records, self._part = records, path

    def flush(self) -> None:
        """Write what waits to be written: nothing here."""

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
