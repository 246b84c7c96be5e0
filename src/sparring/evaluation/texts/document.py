"""What the result document of texts says in its own way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from sparring.evaluation.document import describe_model, summarize
from sparring.evaluation.gallery import MOST
from sparring.evaluation.records import DONE
from sparring.evaluation.statistics import Proportion
from sparring.evaluation.texts.records import TextRecords
from sparring.evaluation.warnings import judge_texts
from sparring.text import EmbeddingPGD, TextAttack, TextClassifier

POINTS = 21


def describe_classifier(model: TextClassifier, info: dict[str, Any] | None) -> dict[str, Any]:
    """As of any model, and a hash of its vocabulary and longest text: other tokens of the same text are another input."""
    network = describe_model(model.model, None)
    about = describe_model(model, {"name": network["name"]} | (info or {}))
    tokenizer = model.tokenizer
    vocabulary = tokenizer.get_vocab()
    content = json.dumps([type(tokenizer).__name__, model.max_length, sorted(vocabulary.items())], ensure_ascii=False)
    return about | {"tokenizer": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()}


def describe_threat(attacks: list[TextAttack]) -> dict[str, Any]:
    """What these attacks may do. eps: the largest share of a text's words that may be changed, where they change words, else
    the largest perturbation of its embeddings."""
    words = [getattr(attack, "max_changed", 1.0) for attack in attacks if attack.substitutes]
    lengths = [attack.eps for attack in attacks if isinstance(attack, EmbeddingPGD)]
    said = [f"{100 * max(words):.3g}% of the words"] if words else []
    said += [f"L2 {max(lengths):.4g} in the embeddings"] if lengths else []
    return {
        "norm": "words" if words else "embeddings",
        "eps": float(max(words or lengths)) if words or lengths else None,
        "eps_typed": " or ".join(said),
        "bounds": None,
        "masked": False,
    }


def identity_of(
    model: dict[str, Any], attacks: list[TextAttack], seed: int, available: int | None, max_samples: int | None
) -> dict[str, Any]:
    """What must be the same for an evaluation to go on where an earlier one was."""
    return {
        "model": model["sha256"],
        "tokenizer": model["tokenizer"],
        "attacks": [{"name": attack.name, "settings": attack.settings()} for attack in attacks],
        "threat": describe_threat(attacks),
        "seed": seed,
        "number of samples": available,
        "max_samples": max_samples,
    }


def totals(records: TextRecords, attacks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each attack alone: how many texts it fools, its robust accuracy, and what it asks."""
    right, total = int(records.table["correct"].sum()), len(records)
    rows = []
    for number in range(len(attacks)):
        fooled = records.fooled_by(number)
        found = [entries[number] for entries in records.entries.values() if len(entries) > number]
        shares = [len(e["changed"]) / max(e["words"], 1) for e in found if e["fooled"] and "changed" in e]
        rows.append(
            {
                "fooled": fooled,
                "robust_accuracy": Proportion(right - fooled, total).to_dict(),
                "queries": float(np.mean([e["queries"] for e in found])) if found else 0.0,
                "changed": float(np.mean(shares)) if shares else None,
            }
        )
    return rows


def word_curve(records: TextRecords, threat: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy against the share of a text's words that may be changed: upper bounds, since a search that stops at its first
    success does not look for the fewest words. Empty where no attack changes words."""
    if threat["norm"] != "words":
        return []
    table, rows = records.table, []
    share = np.where(np.isnan(table["distance"]), np.inf, table["distance"])
    for at in np.linspace(0.0, threat["eps"], POINTS):
        left = Proportion(int((table["correct"] & (share > at * (1 + 1e-9))).sum()), len(table))
        rows.append({"eps": float(at), "value": left.value, "low": left.low, "high": left.high})
    return rows


def gallery(records: TextRecords, names: list[str]) -> list[dict[str, Any]]:
    """The fooled texts with the fewest words changed; its records must be sorted."""
    table, shown = records.table, []
    places = [int(i) for i in np.flatnonzero((table["attack"] >= 0) & (table["state"] == DONE))]
    for place in sorted(places, key=lambda place: (np.nan_to_num(table["distance"][place], nan=np.inf), place))[:MOST]:
        row = table[place]
        entries = [(k, e) for k, e in enumerate(records.entries[int(row["index"])]) if e["fooled"]]
        number, entry = min(entries, key=lambda item: len(item[1].get("changed", range(1 << 30))))
        words = "changed" in entry
        size = len(entry["changed"]) / max(entry["words"], 1) if words else entry["norm"]
        shown.append(
            {
                "index": int(row["index"]),
                "label": int(row["label"]),
                "attack": names[number],
                "norm": float(size),
                "distance": float(size),
                "similarity": entry.get("similarity"),
                "changed": entry.get("changed", []),
                "queries": entry["queries"],
                "before": [{"label": int(row["clean_prediction"]), "probability": float(row["clean_confidence"])}],
                "after": [{"label": entry["prediction"], "probability": entry["confidence"]}],
            }
        )
    return shown


def summarize_texts(facts: dict[str, Any], records: TextRecords) -> dict[str, Any]:
    """The document: that of all evaluations, with what differs for texts."""
    names = [attack["name"] for attack in facts["attacks"]]
    document = summarize(facts, records, gallery(records, names), shown=0)
    alone = totals(records, facts["attacks"])
    return document | {
        "attacks": [row | {"alone": own} for row, own in zip(document["attacks"], alone, strict=True)],
        "curve": word_curve(records, facts["threat"]),
        "warnings": [asdict(warning) for warning in judge_texts(records, facts["data"]["classes"])],
    }
