"""Two results side by side, on one page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sparring import inspection
from sparring.report import svg, view, words
from sparring.report.page import page
from sparring.report.view import Document, Picture

FAILURES = 3


def beside(
    names: Sequence[str],
    documents: Sequence[Document],
    pictures: Sequence[Picture],
    compared: Mapping[str, Any],
    links: Sequence[str | None] = (None, None),
) -> str:
    """Two result documents of the same samples as one HTML file, like the report of each.

    Args:
        names: what the two are called on the page.
        documents, pictures: as for `render`.
        compared: `Comparison.to_dict()` of the two.
        links: to their own reports, as seen from the page.
    """
    clean, robust = compared["clean_accuracy"], compared["robust_accuracy"]
    first, second = documents
    one, many = words.nouns(first)
    sides = [
        {
            "name": name,
            "clean": document["clean_accuracy"],
            "robust": document["robust_accuracy"],
            "cost": words.cost(document),
            "codes": [warning["code"] for warning in document["warnings"]],
            "cards": view.cards(document, picture)[:FAILURES],
            "link": link,
        }
        for name, document, picture, link in zip(names, documents, pictures, links, strict=True)
    ]
    return page(
        "beside.html.j2",
        sides=sides,
        verdict=_verdict(names, robust, many),
        chance=_chance(robust, many),
        created=max(first["created"], second["created"]),
        data=first["data"].get("name"),
        threat=words.threat(first),
        total=first["robust_accuracy"]["total"],
        one=one,
        many=many,
        charts=_charts(names, documents),
        rows=[_row("Clean accuracy", clean), _row("Robust accuracy, at most", robust)],
    )


def _verdict(names: Sequence[str], robust: Mapping[str, Any], many: str) -> str:
    a, b = (words.percent(robust[side]["value"]) for side in "ab")
    return f"{names[0]} is right on at most {a} of the attacked {many}, {names[1]} on at most {b}."


def _chance(robust: Mapping[str, Any], many: str) -> str:
    differ = robust["only_a"] + robust["only_b"]
    if not differ:
        return f"They withstand the same {many}."
    first, second = (words.number(robust[key]) for key in ("only_a", "only_b"))
    split = f"On {words.number(differ)} {many} they differ, {first} to {second}: "
    if robust["p_value"] >= 0.05:
        return f"{split}that may be chance (p = {robust['p_value']:.2g})."
    return f"{split}that is no chance (p = {robust['p_value']:.2g})."


def _row(name: str, paired: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "a": paired["a"]["value"], "b": paired["b"]["value"], "difference": f"{100 * paired['difference']:+.1f}",
        "interval": f"{100 * paired['low']:+.1f} to {100 * paired['high']:+.1f}", "only_a": paired["only_a"],
        "only_b": paired["only_b"], "p": f"{paired['p_value']:.2g}",
    }  # fmt: skip


def _charts(names: Sequence[str], documents: Sequence[Document]) -> list[Markup]:
    """Both curves in one drawing, for a wide page and for a phone."""
    threat = documents[0]["threat"]
    if any(len(document["curve"]) < 2 for document in documents) or threat["norm"] == "words":
        return []
    eps = threat["eps"] if threat["eps"] is not None and math.isfinite(threat["eps"]) else None
    curves = {name: document["curve"] for name, document in zip(names, documents, strict=True)}
    label = "Accuracy against the size of the perturbation of " + " and ".join(names)
    return [
        svg.inline(
            inspection.accuracy_curves(curves, norm=threat["norm"], eps=eps, eps_typed=threat.get("eps_typed"), size=size),
            prefix=f"both-{name}",
            label=label,
            css_class=f"chart {name}",
        )
        for name, size in (("wide", (9.6, 3.9)), ("narrow", (4.7, 3.5)))
    ]  # fmt: skip
