"""The sentences and the numbers of the report, as plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sparring.report import texts

Document = Mapping[str, Any]

# strftime's names follow the reader's locale, and the report is written in English
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def percent(share: float | None) -> str:
    """A share as a percentage; only all of it reads as 100%, and only none of it as 0%.

    >>> percent(0.9123), percent(0.99996), percent(1.0), percent(0.0)
    ('91.2%', '99.996%', '100%', '0%')
    """
    if share is None:
        return "–"
    value = 100 * float(share)
    if value in (0, 100):
        return f"{value:.0f}%"
    for digits in (1, 2, 3, 4):
        text = f"{value:.{digits}f}"
        if float(text) not in (0, 100):
            break
    return text + "%"


def interval(accuracy: Mapping[str, Any]) -> str:
    """The interval of an accuracy as text: ``39.3–45.4%``."""
    return f"{percent(accuracy['low'])[:-1]}–{percent(accuracy['high'])}"


def number(count: float | None) -> str:
    """A count with separators.

    >>> number(1234567), number(None)
    ('1,234,567', '–')
    """
    return "–" if count is None else f"{int(count):,}"


def rough(count: float) -> str:
    """A large count to three digits, in words.

    >>> rough(999), rough(48_210), rough(1_234_567), rough(3_000_000_000)
    ('999', '48,200', '1.23 million', '3 billion')
    """
    if count < 1_000:
        return f"{count:.3g}"
    count = float(f"{count:.3g}")
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them.

    >>> duration(0.42), duration(12.3), duration(75), duration(7321)
    ('0.4 s', '12.3 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def moment(created: str) -> str:
    """An ISO 8601 time as a person writes it; any other text stays as it is.

    >>> moment("2026-11-21T10:12:33+00:00"), moment("yesterday")
    ('21 November 2026, 10:12 UTC', 'yesterday')
    """
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time.day} {_MONTHS[time.month - 1]} {time.year}, {time:%H:%M}{zone}"


def nouns(document: Document) -> tuple[str, str]:
    """What a sample of this data is called: singular and plural."""
    if document.get("task") == "text":
        return "text", "texts"
    shape = document["data"].get("shape") or []
    image = len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) > 1
    return ("image", "images") if image else ("sample", "samples")


def size(value: float | None, threat: Mapping[str, Any]) -> str:
    """A norm, counted as the user typed eps: in 1/255 where eps was.

    >>> size(0.0157, {"norm": "linf", "eps_typed": "8/255"}), size(0.25, {"norm": "l2", "eps_typed": "0.5"})
    ('4/255', '0.25')
    """
    if value is None:
        return "–"
    if threat["norm"] == "words":
        return f"{percent(value)} of the words"
    if str(threat.get("eps_typed") or "").replace(" ", "").endswith("/255"):
        return f"{float(f'{value * 255:.2g}'):g}/255"
    return f"{value:.3g}"


def verdict(document: Document) -> str:
    """The result in one sentence, the robust accuracy as the upper bound that it is."""
    one, many = nouns(document)
    clean, robust = document["clean_accuracy"], document["robust_accuracy"]
    total, right, left = int(robust["total"]), clean["value"], int(robust["count"])
    if total == 0:
        return f"No {one} has been through the attack yet."
    if total == 1:
        if clean["count"] == 0:
            return f"The network gets the one {one} wrong without any attack."
        return f"The network gets the one {one} right, and the attack {'did not fool' if left else 'fooled'} it."
    right_text = "all" if clean["count"] == clean["total"] else percent(right)
    start = f"Of {number(total)} {many} the network classifies {right_text} correctly; after the attack "
    if clean["count"] == 0:
        return f"Of {number(total)} {many} the network classifies none correctly: nothing is left to attack."
    if left == 0:
        return start + "none remains."
    return start + f"at most {percent(robust['value'])} remain."


def threat(document: Document) -> str:
    """What the attacker was allowed to do, in words."""
    given = document["threat"]
    if document.get("task") == "text":
        return texts.threat(document)
    norm, eps = str(given["norm"]).lower(), given["eps"]
    one, _ = nouns(document)
    entry = "pixel value" if one == "image" else "input value"
    typed = str(given.get("eps_typed") or f"{eps:.4g}")
    exact = f" ({eps:.4g})" if eps is not None and math.isfinite(eps) and not _is_number(typed) else ""
    if eps is not None and math.isinf(eps):
        limit = f"The attacker may change every {entry} without limit"
    elif norm == "linf":
        limit = f"The attacker may change every {entry} by at most {typed}{exact}"
    elif norm == "l2":
        limit = f"The attacker may change each {one} by at most {typed}{exact} in Euclidean length (L2)"
    elif norm == "l1":
        limit = f"The attacker may change each {one} by {typed}{exact} in all, the sum over its {entry}s (L1)"
    elif norm == "l0":
        limit = f"The attacker may change at most {typed}{exact} {entry}s of each {one}, by any amount (L0)"
    else:
        limit = f"The attacker may change each {one} by at most {typed}{exact} in {norm}"
    if given.get("masked"):
        limit += ", where the mask allows it"
    bounds = given.get("bounds")
    return limit + (f", inside [{bounds[0]:g}, {bounds[1]:g}]." if bounds else ".")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def cost(document: Document) -> str:
    """What the evaluation cost, in passes of one sample through the network."""
    one, _ = nouns(document)
    passes = document["passes"]
    forwards, backwards = int(passes["forwards"]), int(passes["backwards"])
    total = int(document["robust_accuracy"]["total"])
    each = f", {rough((forwards + backwards) / total)} per {one}" if total > 1 else ""
    device = document["environment"].get("device")
    where = f" on {device}" if device else ""
    plan = document.get("plan") or {}
    raised = ""
    if plan.get("raised"):
        _, many = nouns(document)
        raised = (
            f" The budget was raised for all: on a pilot of {plan['samples']} {many}, long climbs and searches without "
            "gradients got further than gradients alone."
        )
    return (
        f"{rough(forwards + backwards)} passes of one {one} through the network{each} "
        f"({rough(forwards)} forward, {rough(backwards)} backward), in {duration(document.get('seconds'))}{where}.{raised}"
    )


def planned(document: Document) -> int | None:
    """How many samples the whole run would take, where the document tells."""
    data, settings = document["data"], document.get("settings") or {}
    counts = [data.get("available"), settings.get("max_samples")]
    known = [int(count) for count in counts if count is not None]
    return min(known) if known else None


def halfway(document: Document) -> str:
    """Where the curve has lost half of what it starts with, if it gets there."""
    curve = document["curve"]
    if len(curve) < 2 or not curve[0]["value"]:
        return ""
    half, given = curve[0]["value"] / 2, document["threat"]["norm"]
    for point in curve[1:]:
        if point["value"] <= half:
            reached = size(point["eps"], document["threat"])
            means = f"With {reached} changed" if given == "words" else f"By a perturbation of size {reached}"
            return f"{means}, at least half of the correct answers are lost."
    if given == "words":
        return (
            "Up to the largest share, more than half of the correct answers held against the substitutions tried here."
        )
    return "Up to eps, more than half of the correct answers held against the attacks tried here."
