"""From the result document to the rows and cards that the template prints; every text in them is still unescaped."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.report import texts, words
from sparring.report.pictures import Panel, panels

Document = Mapping[str, Any]
Picture = Callable[[int], tuple[Any, Any]]  # tensors, or texts


@dataclass(frozen=True)
class ClassRow:
    label: int
    name: str
    samples: int
    correct: int
    robust: int

    @property
    def clean_share(self) -> float:
        return self.correct / self.samples

    @property
    def robust_share(self) -> float:
        return self.robust / self.samples


@dataclass(frozen=True)
class Bar:
    name: str
    share: float
    true: bool


@dataclass(frozen=True)
class Card:
    index: int
    truth: str
    fooled_into: str
    panels: list[Panel]
    note: str
    before: list[Bar]
    after: list[Bar]
    alt: str
    meta: list[tuple[str, str]]
    pieces: list[texts.Piece]


def class_name(document: Document, label: int) -> str:
    names = document["data"].get("class_names")
    return str(names[label]) if names and 0 <= label < len(names) else f"class {label}"


def class_rows(document: Document) -> list[ClassRow]:
    """The classes that have samples, the least robust first; of equals the less often classified correctly first."""
    rows = [
        ClassRow(
            int(row["label"]),
            str(row.get("name") or class_name(document, int(row["label"]))),
            int(row["samples"]),
            int(row["correct"]),
            int(row["robust"]),
        )
        for row in document["per_class"]
        if row["samples"]
    ]
    return sorted(rows, key=lambda row: (row.robust_share, row.clean_share, row.label))


def cards(document: Document, picture: Picture) -> list[Card]:
    """The gallery, the smallest perturbation that fools first."""
    ranked = sorted(document["gallery"], key=lambda entry: (_size(entry), entry["index"]))
    return [_card(document, entry, picture) for entry in ranked]


def _size(entry: Mapping[str, Any]) -> float:
    known = [entry[key] for key in ("distance", "norm") if entry.get(key) is not None]
    return float(known[0]) if known else math.inf


def _card(document: Document, entry: Mapping[str, Any], picture: Picture) -> Card:
    """One failure; of a text its words, of anything else its pictures."""
    found = picture(int(entry["index"]))
    if document.get("task") == "text":
        original, changed = found
        meta = texts.meta(document, entry)
        return _told(document, entry, meta, pieces=texts.pieces(original, changed, entry["changed"]))
    original, adversarial = found
    bounds = document["threat"].get("bounds")
    if bounds is None:
        low, high = (float(extreme) for extreme in (original.min(), original.max()))
        bounds = (low, high if high > low else low + 1.0)
    shown, note = panels(original, adversarial, (float(bounds[0]), float(bounds[1])))
    threat = document["threat"]
    meta = [
        ("Sample", str(entry["index"])),
        ("Fooled by", str(entry["attack"])),
        ("Norm", words.size(entry.get("norm"), threat)),
        ("Smallest norm found", words.size(entry.get("distance"), threat)),
    ]
    return _told(document, entry, meta, panels=shown, note=note)


def _told(
    document: Document,
    entry: Mapping[str, Any],
    meta: list[tuple[str, str]],
    *,
    panels: list[Panel] | None = None,
    note: str = "",
    pieces: list[texts.Piece] | None = None,
) -> Card:
    """The card with what the model said before and after."""
    label = int(entry["label"])
    before, after = (
        [
            Bar(class_name(document, int(p["label"])), float(p["probability"]), int(p["label"]) == label)
            for p in entry[side][:5]
        ]
        for side in ("before", "after")
    )
    truth = class_name(document, label)
    into = next((bar.name for bar in after if not bar.true), "another class") if after else "another class"
    return Card(
        index=int(entry["index"]),
        truth=truth,
        fooled_into=into,
        panels=panels or [],
        note=note,
        before=before,
        after=after,
        alt=f"sample {entry['index']}, {truth}",
        meta=meta,
        pieces=pieces or [],
    )


def numbered(attacks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The attacks that a sample came to (all of them, where it came to none), by the numbers that they have among all, with
    the settings that say something."""
    came = [attack["attacked"] or not any(other["attacked"] for other in attacks) for attack in attacks]
    return [
        {
            **attack,
            "label": f"{number}. {attack['name']}" if len(attacks) > 1 else attack["name"],
            "settings": {
                key: value for key, value in (attack.get("settings") or {}).items() if value not in (None, False)
            },
        }
        for number, (attack, shown) in enumerate(zip(attacks, came, strict=True), 1)
        if shown
    ]


def setting(value: Any) -> str:
    """A setting as text: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def facts(document: Document) -> list[tuple[str, list[tuple[str, str]]]]:
    """How it was run, group by group: (title, [(name, value)]); what the document doesn't tell is left out."""
    tool, model, data = document["tool"], document["model"], document["data"]
    environment, passes = document["environment"], document["passes"]
    shape = " × ".join(str(size) for size in data.get("shape") or [])
    groups: list[tuple[str, list[tuple[str, Any]]]] = [
        (
            "Run",
            [
                ("finished", "yes" if document["finished"] else "no"),
                ("created", document["created"]),
                ("took", words.duration(document.get("seconds"))),
                ("seed", document["seed"]),
                (tool["name"], tool["version"]),
                *environment.items(),
                *(document.get("settings") or {}).items(),
            ],
        ),
        ("Threat model", [("norm", document["threat"]["norm"]), ("eps", _eps(document["threat"])),
                          *((k, v) for k, v in document["threat"].items() if k not in ("norm", "eps", "eps_typed"))]),
        ("Model", [("name", model.get("name")), ("parameters", _count(model.get("parameters"))),
                   ("load with", model.get("spec")), ("SHA-256", model.get("sha256"))]),
        ("Data", [("name", data.get("name")), ("samples", _count(data.get("samples"))), ("shape", shape or None),
                  ("classes", _count(data.get("classes"))), ("load with", data.get("spec")),
                  ("SHA-256", data.get("sha256"))]),
        ("Passes", [(name, words.number(count)) for name, count in passes.items()]),
    ]  # fmt: skip
    return [
        (title, [(str(k).replace("_", " "), setting(v)) for k, v in rows if v is not None]) for title, rows in groups
    ]


def _eps(threat: Mapping[str, Any]) -> str:
    typed = threat.get("eps_typed")
    return f"{typed} = {threat['eps']!r}" if typed and str(typed) != repr(threat["eps"]) else repr(threat["eps"])


def _count(count: int | None) -> str | None:
    return None if count is None else words.number(count)


def verify_command(document: Document) -> str:
    """The command line that checks this result; placeholders in capitals stand for what the document doesn't know."""
    spec = document["model"].get("spec")
    model = shlex.quote(spec) if isinstance(spec, str) and spec else "MODEL"
    if isinstance(spec, dict) and document.get("task") == "text":
        return "sparring verify FOLDER"
    return f"sparring verify FOLDER --model {model}"
