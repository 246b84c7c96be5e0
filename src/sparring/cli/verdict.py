"""The verdict of an evaluation, as a person reads it, and as continuous integration does."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from sparring.cli.app import DONE, FAILED, Outcome
from sparring.cli.console import say, speaks, table
from sparring.cli.settings import Settings
from sparring.cli.values import NORM_NAMES, Number, as_float

if TYPE_CHECKING:
    from sparring.evaluation import EvaluationResult

VERDICT = Parameter(group=Group("Verdict", sort_key=6))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class VerdictSettings(Settings):
    """What continuous integration wants."""

    fail_under: Annotated[Number | None, VERDICT] = None
    """Exit with 1 when the robust accuracy is below this (0 to 1)."""
    junit: Annotated[Path | None, VERDICT] = None
    """Write the verdict to this file as JUnit XML: a case for each accuracy and each warning."""


def limit_of(settings: VerdictSettings) -> float | None:
    """The accuracy of --fail-under; ValueError where it is none."""
    if settings.fail_under is None:
        return None
    value = as_float(settings.fail_under)
    if not 0 <= value <= 1:
        raise ValueError(f"--fail-under {settings.fail_under}: expected an accuracy from 0 to 1, such as 0.4")
    return value


def shard_of(typed: str | None, settings: VerdictSettings) -> tuple[int, int] | None:
    """``--shard 1/4`` as (1, 4); ValueError where it is something else, or something is asked that only a whole result has."""
    if typed is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", typed)
    shard = (int(found[1]), int(found[2])) if found else (1, 0)
    if shard[0] >= shard[1]:
        raise ValueError(f"--shard {typed}: expected I/N with I from 0 to N-1, such as 0/4")
    for name, value in (("--fail-under", settings.fail_under), ("--junit", settings.junit)):
        if value is not None and shard[1] > 1:
            raise ValueError(f"{name} judges a whole result, not a shard: give it to sparring merge")
    return shard


def conclude(
    result: "EvaluationResult", settings: VerdictSettings, out: Path, shard: tuple[int, int] | None = None
) -> Outcome:
    """Tell the verdict, write it for continuous integration, and say whether it is good enough; of a shard, what it found."""
    from sparring.evaluation import junit_xml
    from sparring.evaluation.files import replacing

    if shard is not None and "shard" in result.document["settings"]:
        accuracies(result)
        say(f"Shard {shard[0]} of {shard[1]} is done. When all are: sparring merge {out}", style="bold")
        return Outcome({**result.document, "folder": str(out)})
    limit = limit_of(settings)
    tell(result, out)
    if settings.junit is not None and speaks():
        with replacing(settings.junit) as file:
            file.write(junit_xml(result.document, limit))
    robust = result.robust_accuracy.value
    failed = limit is not None and robust < limit
    if failed:
        say(f"Failed: robust accuracy {robust:.1%} is below --fail-under {limit:.1%}", style="bold red")
    return Outcome({**result.document, "folder": str(out)}, FAILED if failed else DONE)


def accuracies(result: "EvaluationResult") -> None:
    """The two accuracies, with their intervals, as a small table."""
    named = {"clean accuracy": result.clean_accuracy, "robust accuracy, at most": result.robust_accuracy}
    table(
        [
            {
                "": name,
                "value": f"{p.value:.1%}",
                "95% interval": f"{p.low:.1%} to {p.high:.1%}",
                "samples": f"{p.count}/{p.total}",
            }
            for name, p in named.items()
        ]
    )


def _one_after_the_other(result: "EvaluationResult") -> list[dict[str, object]]:
    """What each attack does to the samples that those before it leave; without those that no sample came to."""
    from sparring.evaluation.labels import labels

    return [
        {
            "attack": label,
            "tried on": row["attacked"],
            "fooled": row["fooled"],
            "robust after it": f"{row['robust_accuracy']['value']:.1%}",
            "forwards": row["forwards"],
            "backwards": row["backwards"],
        }
        for label, row in zip(labels(result.attacks), result.attacks, strict=True)
        if row["attacked"] or len(result.attacks) == 1
    ]


def _each_alone(result: "EvaluationResult") -> list[dict[str, object]]:
    """What each attack on texts does, whatever the others do."""
    from sparring.evaluation.labels import labels

    return [
        {
            "attack": label,
            "tried on": row["attacked"],
            "fooled": row["alone"]["fooled"],
            "robust under it": f"{row['alone']['robust_accuracy']['value']:.1%}",
            "words changed": None if row["alone"]["changed"] is None else f"{row['alone']['changed']:.1%}",
            "queries a text": f"{row['alone']['queries']:.0f}",
            "seconds": row["seconds"],
        }
        for label, row in zip(labels(result.attacks), result.attacks, strict=True)
    ]


def tell(result: "EvaluationResult", out: Path) -> None:
    """The verdict: a small table, a sentence that says what the number is, and where the report lies."""
    from sparring.evaluation.warnings import loose_curve

    robust, threat = result.robust_accuracy, result.document["threat"]
    accuracies(result)
    texts = result.document.get("task") == "text"
    rows = _each_alone(result) if texts else _one_after_the_other(result)
    if rows:
        table(rows)
    left_out = len(result.attacks) - len(rows)
    if left_out and not texts:
        say(f"Not shown: {left_out} attack{'' if left_out == 1 else 's'} that no sample came to.", style="dim")
    changes = (
        f"changes of {threat['eps_typed']}"
        if texts
        else f"{NORM_NAMES[threat['norm']]} changes up to {threat['eps_typed']}"
    )
    say(
        f"At most {robust.value:.1%} of {robust.total} {'texts' if texts else 'samples'} withstand {changes}: an upper bound, "
        "since a stronger attack can only lower it.",
        style="bold",
    )
    if not result.finished:
        say("Time ran out: this is what is known so far; the same command without --time-limit goes on.")
    for warning in result.warnings:
        say(f"Warning ({warning.code}): {warning.seen or warning.message}", style="yellow")
        for name, text in (("Why it matters", warning.why), ("What to do", warning.todo)):
            if text:
                say(f"  {name}: {text}")
    if note := loose_curve(result.document["warnings"]):
        say(f"Accuracy against eps: {note}")
    say(f"Report: {out / 'report.html'}")
