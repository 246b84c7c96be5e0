"""What a result folder claims, held against itself: do its parts fit together?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparring.evaluation.document import curve, per_class
from sparring.evaluation.files import sha256
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.statistics import Proportion


def check_files(result: EvaluationResult) -> list[str]:
    """A lie for each file that is not the one the result was written with."""
    assert result.folder is not None
    files, lies = result.document["files"], []
    for name in {"samples.jsonl", *files}:
        path = result.folder / name
        if name not in files:
            lies.append(f"result.json holds no hash of {name}")
        elif not path.exists():
            lies.append(f"{name} is missing")
        elif sha256(path) != files[name]:
            lies.append(f"{name} was changed after the run: its hash is not the recorded one")
    return lies


def check_totals(result: EvaluationResult) -> list[str]:
    """A lie for each total that does not follow from the samples' rows, and each row that contradicts itself."""
    document, records = result.document, result._records
    table, lies = records.table, []

    def expect(what: str, claimed: Any, counted: Any) -> None:
        if not _same(claimed, counted):
            lies.append(f"{what} claims {_brief(claimed)}, the samples' rows say {_brief(counted)}")

    def of(count: Any) -> dict[str, Any]:
        return Proportion(int(count), len(table)).to_dict()

    expect("clean_accuracy", document["clean_accuracy"], of(table["correct"].sum()))
    expect("robust_accuracy", document["robust_accuracy"], of(table["robust"].sum()))
    if document["finished"] and result.unfinished:
        lies.append(f"the run is called finished, {result.unfinished} samples were not")
    expect("per_class", document["per_class"], per_class(records, document["data"]["class_names"]))
    texts = document.get("task") == "text"  # whose curve, and whose rows' geometry, are of another kind
    if not texts:
        expect("curve", document["curve"], curve(records, document["threat"]["eps"]))
    standing = int(table["correct"].sum())
    for i, row in enumerate(document["attacks"]):
        fooled = int((table["attack"] == i).sum())
        standing -= fooled
        expect(f"attack {i} ({row['name']}): fooled", row["fooled"], fooled)
        expect(f"attack {i} ({row['name']}): robust_accuracy", row["robust_accuracy"], of(standing))
    passes, rows = document["passes"], document["attacks"]
    forwards, backwards = int(table["forwards"].sum()), int(table["backwards"].sum())
    beside = [document.get(part) or {} for part in ("checkup", "plan")]
    for way, counted, shown in (("forwards", forwards, passes["gallery"]), ("backwards", backwards, 0)):
        expect(f"passes: {way}", passes[way] - shown - sum(part.get(way, 0) for part in beside), counted)
    expect("the attacks' backwards", sum(row["backwards"] for row in rows), backwards - passes["distance_backwards"])
    expect(
        "the attacks' forwards", sum(row["forwards"] for row in rows), forwards - passes["clean"] - passes["distance"]
    )
    began = document["identity"]
    if any(began["threat"].get(key) != value for key, value in document["threat"].items()):
        lies.append("the threat is not the one that the run began with (identity)")
    if [{"name": row["name"], "settings": row["settings"]} for row in rows] != began["attacks"]:
        lies.append("the attacks are not those that the run began with (identity)")
    if records.data_sha256() != document["data"]["sha256"]:
        lies.append("the hash of the data does not follow from the samples' rows")
    threat = document["threat"]
    several = threat["masked"] or threat["eps_typed"] == "one per sample"
    limit = 0.0 if several else math.inf if threat["eps"] is None else threat["eps"]
    return lies + _check_rows(table, None if texts else limit)


def _check_rows(table: Any, limit: float | None) -> list[str]:
    """limit: the threat's; None: distances are no norms."""
    right, robust = table["clean_prediction"] == table["label"], table["robust"]
    fallen = table["correct"] & ~robust
    contradictions = {
        "called correct or wrong against their clean prediction": table["correct"] != right,
        "called robust though their clean prediction is wrong": robust & ~table["correct"],
        "called robust though an attack fooled them, or the reverse": fallen != (table["attack"] >= 0),
        "fooled without a wrong prediction": fallen
        & ((table["prediction"] == table["label"]) | (table["prediction"] < 0)),
    }
    if limit is not None:
        contradictions |= {
            "fooled at a distance that is not between 0 and the example's norm": fallen
            & ~((table["distance"] >= 0) & (table["distance"] <= table["norm"] * (1 + 1e-6))),
            "given a distance though nothing fooled them": ~table["correct"] & ~np.isnan(table["distance"]),
            "called robust though an example within eps is told of": robust & (table["distance"] < limit * (1 - 1e-6)),
        }
    return [
        f"{int(where.sum())} samples are {what} (first: sample {int(table['index'][where][0])})"
        for what, where in contradictions.items()
        if where.any()
    ]


def _same(claimed: Any, counted: Any) -> bool:
    if isinstance(claimed, dict) and isinstance(counted, dict):
        return claimed.keys() == counted.keys() and all(_same(claimed[key], counted[key]) for key in counted)
    if isinstance(claimed, list) and isinstance(counted, list):
        return len(claimed) == len(counted) and all(map(_same, claimed, counted))
    if isinstance(claimed, float) or isinstance(counted, float):
        return isinstance(claimed, (int, float)) and abs(claimed - counted) <= 1e-9
    return bool(claimed == counted)


def _brief(value: Any) -> str:
    if isinstance(value, dict) and "count" in value:
        return f"{value['value']} ({value['count']} of {value['total']})"
    text = repr(value)
    return text if len(text) <= 80 else "something else" if isinstance(value, str) else "other numbers"
