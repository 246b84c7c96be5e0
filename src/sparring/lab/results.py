"""Result folders on the page: the verdict, the curve, and every failure, sorted and filtered."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from sparring.evaluation import EvaluationResult, load_result
from sparring.evaluation.texts.result import TextResult
from sparring.inspection import pixels as px
from sparring.lab.pictures import Refused, png
from sparring.report import texts, view, words

Show = Literal["fooled", "robust", "wrong", "all"]
Sort = Literal["index", "label", "prediction", "distance", "norm", "confidence", "clean_confidence", "attack"]
PAGE = 48
LARGEST = 512


class Run:
    """One result folder. ValueError or FileNotFoundError where it is none."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.result: EvaluationResult = load_result(folder)
        self.document = self.result.document
        self._samples = [self._row(sample) for sample in self.result.samples()]
        self._by_index = {row["index"]: row for row in self._samples}
        self._reading = threading.Lock()

    @property
    def of_texts(self) -> bool:
        return self.document.get("task") == "text"

    def _class(self, label: int | None) -> str | None:
        return None if label is None or label < 0 else view.class_name(self.document, label)

    def _row(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What the page's table shows of a sample."""
        attacks, number = self.document["attacks"], sample.get("attack", -1)
        kind = "wrong" if not sample["correct"] else "robust" if sample["robust"] else "fooled"
        row = {key: sample.get(key) for key in ("index", "label", "clean_prediction", "prediction")}
        row |= {key: sample.get(key) for key in ("confidence", "clean_confidence", "norm", "distance")}
        row |= {"kind": kind, "attack": attacks[number]["name"] if 0 <= number < len(attacks) else None}
        row["label_name"] = self._class(row["label"])
        row["seen"] = row["clean_prediction"] if kind == "wrong" else row["prediction"] if kind == "fooled" else None
        row["seen_name"] = self._class(row["seen"])
        return row

    def summary(self) -> dict[str, Any]:
        """For the list of folders."""
        document = self.document
        return {
            "name": self.name,
            "model": document["model"]["name"],
            "data": document["data"]["name"],
            "threat": words.threat(document),
            "created": words.moment(document["created"]),
            "clean": document["clean_accuracy"],
            "robust": document["robust_accuracy"],
        }

    def page(self) -> dict[str, Any]:
        """Everything but the samples."""
        document = self.document
        counts = dict.fromkeys(("fooled", "robust", "wrong"), 0)
        for row in self._samples:
            counts[row["kind"]] += 1
        return {
            **self.summary(),
            "verdict": words.verdict(document),
            "finished": document["finished"],
            "task": "text" if self.of_texts else "images",
            "norm": document["threat"]["norm"],
            "eps": document["threat"]["eps"],
            "eps_typed": document["threat"].get("eps_typed"),
            "curve": document["curve"],
            "attacks": [
                {"name": row["name"], "fooled": row["fooled"], "attacked": row["attacked"]}
                for row in document["attacks"]
            ],
            "warnings": [{"code": row["code"], "message": row["message"]} for row in document["warnings"]],
            "per_class": [
                {**row, "name": self._class(int(row["label"]))} for row in document["per_class"] if row["samples"]
            ],
            "counts": {**counts, "all": len(self._samples)},
        }

    def samples(
        self, show: Show, label: int | None, into: int | None, sort: Sort, down: bool, first: int
    ) -> dict[str, Any]:
        """One page of the table; samples without a value come last whichever way it is sorted."""
        rows = [
            row
            for row in self._samples
            if show in ("all", row["kind"]) and label in (None, row["label"]) and into in (None, row["seen"])
        ]
        key: Callable[[dict[str, Any]], Any] = lambda row: (row[sort], row["index"])  # noqa: E731
        known = sorted((row for row in rows if _known(row[sort])), key=key, reverse=down)
        rows = known + [row for row in rows if not _known(row[sort])]
        return {"total": len(rows), "first": first, "rows": rows[first : first + PAGE]}

    def sample(self, index: int) -> dict[str, Any]:
        """One sample: its row, for texts the words, and whether there is a picture of it."""
        if index not in self._by_index:
            raise Refused(f"there is no sample {index} in {self.name}", 404)
        row = dict(self._by_index[index])
        entry = next((one for one in self.document["gallery"] if one["index"] == index), None)
        for side in ("before", "after"):
            row[side] = [] if entry is None else [{**one, "name": self._class(one["label"])} for one in entry[side][:5]]
        found = self._found(index)
        row["pictured"] = found is not None and not self.of_texts and px.layout(found[0].shape) == "image"
        if found is not None and self.of_texts:
            original, changed = found
            numbers = self._changed(index, changed)
            row["pieces"] = [vars(piece) for piece in texts.pieces(original, changed, numbers)]
        return row

    def _changed(self, index: int, text: str | None) -> list[int]:
        """The numbers of the words that are others in this text of the sample."""
        assert isinstance(self.result, TextResult)
        entries = self.result.records.entries.get(index, [])
        return next((list(one["changed"]) for one in entries if text is not None and one.get("text") == text), [])

    def picture(self, index: int, which: Literal["original", "adversarial", "change"]) -> bytes:
        """A PNG."""
        self.sample(index)
        found = self._found(index)
        if found is None or self.of_texts or px.layout(found[0].shape) != "image":
            raise Refused(f"there is no picture of sample {index}", 404)
        original, adversarial = found
        bounds = self._bounds(original)
        if which == "change":
            factor = px.amplification(original, adversarial, bounds)
            shown: Tensor = px.amplified(original, adversarial, factor, bounds)
        else:
            shown = original if which == "original" else adversarial
        image = Image.fromarray(px.pixels(shown, bounds))
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
        return png(image)

    def _bounds(self, original: Tensor) -> px.Bounds:
        given = self.document["threat"].get("bounds")
        if given is not None:
            return float(given[0]), float(given[1])
        low, high = float(original.min()), float(original.max())
        return low, high if high > low else low + 1.0

    def _found(self, index: int) -> Any:
        try:
            with self._reading:
                return self.result.picture(index)
        except KeyError:
            return None


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def open_runs(folders: list[Path]) -> dict[str, Run]:
    """The result folders, and those inside a folder of such, by short names; ValueError where one holds none."""
    found: dict[str, Run] = {}
    for folder in folders:
        inside = (
            [folder] if (folder / "result.json").is_file() else sorted(p.parent for p in folder.glob("*/result.json"))
        )
        if not inside:
            raise ValueError(
                f"{folder} holds no result.json, nor do the folders in it: expected what sparring evaluate wrote"
            )
        for place in inside:
            name, number = place.resolve().name, 2
            while name in found:
                name, number = f"{place.resolve().name}-{number}", number + 1
            found[name] = Run(name, place)
    return found
