"""`EvaluationResult`: the verdict, the evidence for it, and the folder that holds both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.evaluation.document import SCHEMA_VERSION, schema
from sparring.evaluation.files import replacing, sha256
from sparring.evaluation.parts import Example, Parts, read_examples
from sparring.evaluation.pilot import Plan
from sparring.evaluation.records import DONE, Records
from sparring.evaluation.source import Source, digest
from sparring.evaluation.statistics import Proportion
from sparring.evaluation.store import check_fingerprint
from sparring.evaluation.texts.records import TextRecords
from sparring.evaluation.warnings import Warning


class EvaluationResult:
    """What `evaluate` found.

    clean_accuracy, robust_accuracy: each with `.value`, `.low`, `.high` (95% Wilson interval). The robust accuracy is an upper
    bound: the samples that these attacks left standing.
    robust, correct: (N,) bool, one per sample, in the order of their numbers `index` (N,).
    examples: iterates over (index, original, adversarial) of the fooled samples, reading from disk.
    attacks: one dict an attack. warnings: each with `.code` and `.message`. document: all that `result.json` holds.
    """

    def __init__(self, document: dict[str, Any], store: Parts | None = None, *, folder: Path | None = None) -> None:
        self.document, self._store, self.folder = document, store, folder
        self._records = store.records if store is not None else _read_records(folder or Path(), document)

    def _proportion(self, name: str) -> Proportion:
        return Proportion(self.document[name]["count"], self.document[name]["total"])

    @property
    def clean_accuracy(self) -> Proportion:
        return self._proportion("clean_accuracy")

    @property
    def robust_accuracy(self) -> Proportion:
        return self._proportion("robust_accuracy")

    @property
    def index(self) -> Tensor:
        return self._records.column("index")

    @property
    def correct(self) -> Tensor:
        return self._records.column("correct")

    @property
    def robust(self) -> Tensor:
        return self._records.column("robust")

    @property
    def distance(self) -> Tensor:
        """(N,) float64, the smallest norm found that fools; inf where none was, 0 where the model is wrong anyway."""
        distance = self._records.column("distance").nan_to_num(torch.inf)
        return torch.where(self.correct, distance, 0.0)

    @property
    def curve(self) -> list[dict[str, float]]:
        """Accuracy against eps: `eps`, `value`, `low` and `high` of each point.

        It ends at the run's eps, or where a search for the smallest perturbation (as `sp.FMN`) was among the attacks at the
        largest norm that one found.
        """
        return list(self.document["curve"])

    def accuracy_at(self, eps: float) -> Proportion:
        """The robust accuracy at another eps: the samples with no example found at that distance or nearer.

        An upper bound like the robust accuracy. ValueError for an eps beyond the curve, where nobody has looked.
        """
        limit = self.document["threat"]["eps"]
        if limit is not None and eps == limit:
            return self.robust_accuracy
        if not eps >= 0 or (limit is not None and eps > self.curve[-1]["eps"]):
            raise ValueError(
                f"accuracy_at({eps}): expected a number from 0 to {self.curve[-1]['eps']:.4g}, where this run has looked; to "
                "look further search for the smallest perturbation, as with attacks=sp.FMN(threat)"
            )
        return Proportion(int((self.distance > eps * (1 + 1e-6)).sum()), len(self.distance))

    @property
    def finished(self) -> bool:
        return bool(self.document["finished"])

    @property
    def unfinished(self) -> int:
        """How many samples were still under attack when a time limit ended the run; they count as robust."""
        return int((self._records.table["state"] != DONE).sum())

    @property
    def forwards(self) -> int:
        return int(self.document["passes"]["forwards"])

    @property
    def backwards(self) -> int:
        return int(self.document["passes"]["backwards"])

    @property
    def attacks(self) -> list[dict[str, Any]]:
        return list(self.document["attacks"])

    @property
    def warnings(self) -> list[Warning]:
        return [Warning(**warning) for warning in self.document["warnings"]]

    @property
    def plan(self) -> Plan | None:
        """What the pilot of an adaptive run decided: who goes on to which attack."""
        plan = self.document.get("plan")
        return None if plan is None else Plan.from_json(plan)

    @property
    def examples(self) -> Iterator[Example]:
        if self._store is not None:
            return self._store.examples(self._store.fooled())
        return (example for path in self._shards() for example in read_examples(path))

    def _shards(self) -> list[Path]:
        assert self.folder is not None
        return [self.folder / name for name in self.document["files"] if name.endswith(".safetensors")]

    def samples(self) -> Iterator[dict[str, Any]]:
        """What is known of each sample, as in `samples.jsonl`."""
        return (json.loads(line) for line in self._records.lines())

    def __repr__(self) -> str:
        codes = [warning.code for warning in self.warnings]
        warned = f"{len(codes)} warning{'' if len(codes) == 1 else 's'}{': ' if codes else ''}{', '.join(codes)}"
        return (
            f"EvaluationResult(clean {self.clean_accuracy}, robust at most {self.robust_accuracy}, "
            f"{self.forwards} forwards, {self.backwards} backwards, {warned})"
        )

    def picture(self, index: int) -> tuple[Tensor, Tensor]:
        """(original, adversarial) of one fooled sample. KeyError where that sample was not fooled."""
        place = self._records.place(index)
        if place is not None and self._store is not None and self._records.table[place]["part"] >= 0:
            return next(iter(self._store.examples([place])))[1:]
        if place is not None and self._store is None:
            for path in self._shards():
                for example in read_examples(path, only=index):
                    return example[1:]
        raise KeyError(f"sample {index} was not fooled: there is no example of it")

    def save(self, folder: str | Path) -> Path:
        """Write `result.json`, `samples.jsonl`, `adversarial-*.safetensors` and `report.html` into the folder; its path.

        Every file is written whole or not at all, `result.json`, with the hashes of the others, last. A result that was
        loaded is copied with the hashes that it came with, so that no damage is covered up.
        """
        from sparring import report

        folder = Path(folder)
        document = self.document
        if self._store is not None:
            (folder / "result.json").unlink(missing_ok=True)
            names = self._store.write_tidy(folder)
            document = document | {"files": {name: sha256(folder / name) for name in names}}
        elif self.folder is not None and folder.resolve() != self.folder.resolve():
            (folder / "result.json").unlink(missing_ok=True)
            for name in document["files"]:
                with open(self.folder / name, "rb") as source, replacing(folder / name, "wb") as file:
                    shutil.copyfileobj(source, file)
        html = report.render(document, self.picture)
        with replacing(folder / "report.html") as file:
            file.write(html)
        with replacing(folder / "result.json") as file:
            json.dump(document, file, indent=1, allow_nan=False)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationResult:
        """The result in a folder. FileNotFoundError or ValueError, in one line, where there is none or half of one."""
        folder = Path(folder)
        path = folder / "result.json"
        if not path.exists():
            if (folder / ".parts").exists():
                raise ValueError(f"{folder} holds an unfinished evaluation: run it again with the same out to go on")
            if (folder / "shard.json").exists():
                raise ValueError(f"{folder} is one shard of an evaluation: merge {folder.parent} when all are done")
            if next(folder.glob("shard-*-of-*"), None) is not None:
                raise ValueError(f"{folder} holds shards of an evaluation: merge them first (sparring merge {folder})")
            raise FileNotFoundError(f"{folder} holds no result.json: expected the folder of an evaluation")
        try:
            document = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not readable JSON ({error})") from None
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path}: schema version {version!r}, this sparring reads {SCHEMA_VERSION}")
        missing = [name for name in schema()["required"] if name not in document]
        if missing:
            raise ValueError(f"{path}: {', '.join(missing)} missing, not a whole result")
        if any(Path(name).name != name for name in document["files"]):
            raise ValueError(f"{path}: files names a path, expected names of files in {folder}")
        if document.get("task") == "text":
            from sparring.evaluation.texts.result import TextResult

            return TextResult(document, folder=folder)
        return cls(document, folder=folder)

    @classmethod
    def load_matching(cls, folder: Path, identity: dict[str, Any], source: Source) -> EvaluationResult | None:
        """The finished result in `folder`; None where it is unfinished. ValueError where it is of another evaluation.

        Of the data, its length and first batch are compared: enough to notice another data set, and no wait.
        """
        earlier = cls.load(folder)
        check_fingerprint(earlier.document["identity"], identity, folder)
        if not earlier.finished:
            return None
        batch = next(iter(source))
        for index, fingerprint in zip(batch.index.tolist(), digest(batch.x, batch.y), strict=True):
            if not earlier._records.same(index, fingerprint):
                raise ValueError(
                    f"{folder} holds an evaluation of other data (sample {index} differs): choose another folder"
                )
        return earlier


def load_result(folder: str | Path) -> EvaluationResult:
    """The result that `EvaluationResult.save` (or `evaluate(..., out=folder)`) has written."""
    return EvaluationResult.load(folder)


def _read_records(folder: Path, document: dict[str, Any]) -> Records:
    path = folder / "samples.jsonl"
    records = TextRecords(0) if document.get("task") == "text" else Records(0)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: the result in {folder} is not whole")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                records.take(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise ValueError(f"{path}, line {number}: not a sample's record ({error})") from None
    expected = document["data"]["samples"]
    if len(records) != expected:
        raise ValueError(f"{path} holds {len(records)} samples, {folder / 'result.json'} says {expected}")
    return records
