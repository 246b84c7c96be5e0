"""The report: a result document becomes one self-contained HTML file that a person enjoys reading."""

from __future__ import annotations

import math

from markupsafe import Markup

from sparring import inspection
from sparring.evaluation.warnings import loose_curve
from sparring.report import svg, texts, view, words
from sparring.report.beside import beside
from sparring.report.page import page
from sparring.report.view import Document, Picture

__all__ = ["beside", "render"]

SCHEMA_VERSION = 1
_KEYS = (
    "finished", "created", "seed", "tool", "environment", "threat", "model", "data", "clean_accuracy",
    "robust_accuracy", "attacks", "passes", "per_class", "curve", "gallery", "warnings", "files",
)  # fmt: skip
_MANY_CLASSES = 24
_WORST_CLASSES = 12


def render(document: Document, picture: Picture) -> str:
    """The result document as one HTML file: no request leaves it, it needs no script, and it opens from ``file://``.

    Every text of the document is escaped; the page's content security policy allows its own style sheet and its own
    script, by their hashes, and nothing else.

    Args:
        document: laid out as ``result.json`` (``docs/architecture.md``); keys that it doesn't know are left alone.
        picture: gives, for a sample's index, the original and the adversarial tensor, each without a batch dimension:
            (C, H, W) or (H, W) are shown as pictures, (L,) and (C, L) as lines, other shapes not at all. Where samples are
            texts: the original and the changed text, or None where only its embeddings were perturbed.

    Raises:
        ValueError: the document is of another schema version, or one of its parts is missing.
    """
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"cannot render a result with schema_version={version!r}: expected {SCHEMA_VERSION}; "
            "render it with the version of sparring that wrote it"
        )
    missing = [key for key in _KEYS if key not in document]
    if missing:
        raise ValueError(f"the result document has no {missing[0]!r}: expected the layout of docs/architecture.md")
    return page("template.html.j2", **_context(document, picture))


def _context(document: Document, picture: Picture) -> dict[str, object]:
    one, many = words.nouns(document)
    rows = view.class_rows(document)
    attacks = document["attacks"]
    total, planned = int(document["robust_accuracy"]["total"]), words.planned(document)
    return {
        "doc": document,
        "one": one,
        "many": many,
        "total": total,
        "planned": planned if planned is not None and planned > total else None,
        "verdict": words.verdict(document),
        "threat": words.threat(document),
        "cost": words.cost(document),
        "halfway": words.halfway(document),
        "loose": loose_curve(document["warnings"]),
        "charts": _charts(document),
        "rows": rows,
        "text": document.get("task") == "text",
        "gallery_lead": texts.lead(document) if document.get("task") == "text" else None,
        "worst": rows[:_WORST_CLASSES] if len(rows) > _MANY_CLASSES else rows,
        "cards": view.cards(document, picture),
        "attacks": view.numbered(attacks),
        "left_out": sum(not attack["attacked"] for attack in attacks),
        "fooled": sum(int(attack["fooled"]) for attack in attacks),
        "facts": view.facts(document),
        "verify": view.verify_command(document),
    }


def _charts(document: Document) -> list[Markup]:
    """The curve twice, for a wide page and for a phone, so that its text is legible on both."""
    curve, threat = document["curve"], document["threat"]
    if len(curve) < 2:
        return []
    first, last = curve[0], curve[-1]
    eps = threat["eps"] if threat["eps"] is not None and math.isfinite(threat["eps"]) else None
    against, ends = "the size of the perturbation", [f"{first['eps']:g}", words.size(last["eps"], threat)]
    if threat["norm"] == "words":
        against, ends, eps = "the share of words changed", [words.percent(first["eps"]), ends[1]], None
    label = (
        f"Accuracy against {against}: from {words.percent(first['value'])} at {ends[0]} "
        f"down to at most {words.percent(last['value'])} at {ends[1]}."
    )
    return [
        svg.inline(
            inspection.accuracy_curve(
                curve, norm=threat["norm"], eps=eps, eps_typed=threat.get("eps_typed"), size=size
            ),
            prefix=name,
            label=label,
            css_class=f"chart {name}",
        )
        for name, size in (("wide", (9.6, 3.9)), ("narrow", (4.7, 3.5)))
    ]
