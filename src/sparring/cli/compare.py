"""``sparring compare``: two results, sample against sample."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from sparring.cli.app import Outcome
from sparring.cli.console import say, table
from sparring.cli.settings import Settings

if TYPE_CHECKING:
    from sparring.evaluation.comparison import Paired

RESULTS = Parameter(group=Group("Results", sort_key=0))


@Parameter(name="*")
@dataclass(frozen=True)
class Folders:
    """The last base of a settings class, so that its fields come first: only then can they be given by position."""

    run_a: Annotated[Path, RESULTS]
    """Folder of the first result."""
    run_b: Annotated[Path, RESULTS]
    """Folder of the second, of the same samples under the same threat."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompareSettings(Settings, Folders):
    """Settings of ``sparring compare``."""

    most: Annotated[int, RESULTS] = 10
    """How many samples on which the two differ are listed; --json has them all."""
    page: Annotated[Path | None, RESULTS] = None
    """File, such as both.html, that shows the two side by side in any browser."""


def compare(settings: CompareSettings) -> Outcome:
    """Two results, sample against sample: how far apart are they, and may the difference be chance?"""
    from sparring import evaluation

    found = evaluation.compare(settings.run_a, settings.run_b)
    say(f"A: {found.names[0]}")
    say(f"B: {found.names[1]}")
    table([_row("clean accuracy", found.clean), _row("robust accuracy, at most", found.robust)])
    shown = found.discordant[: max(0, settings.most)]
    if shown:
        rows = [
            {
                "sample": row["index"],
                "label": row["label"],
                "robust only in": row["robust_in"].upper(),
                "the other says": row["prediction"],
                "fooled by": row["attack"] or "nothing: wrong when clean",
            }
            for row in shown
        ]
        table(rows, title=f"{len(shown)} of the {len(found.discordant)} samples on which robustness differs")
    say(_verdict(found.robust), style="bold")
    if settings.page is not None:
        settings.page.parent.mkdir(parents=True, exist_ok=True)
        say(f"Side by side: {found.save(settings.page)}")
    return Outcome(found.to_dict())


def _row(name: str, paired: "Paired") -> dict[str, str | int]:
    low, high = paired.interval
    return {
        "": name,
        "A": f"{paired.a.value:.1%}",
        "B": f"{paired.b.value:.1%}",
        "A − B, points": f"{100 * paired.difference:+.1f}",
        "95% interval": f"{100 * low:+.1f} to {100 * high:+.1f}",
        "only A": paired.only_a,
        "only B": paired.only_b,
        "p": f"{paired.p_value:.2g}",
    }


def _verdict(paired: "Paired") -> str:
    if paired.p_value >= 0.05:
        differing = paired.only_a + paired.only_b
        line = f"No difference in robustness is shown: on {differing} of {paired.total} samples the two differ"
        if not differing:
            return f"{line}."
        return (
            f"{line}, {paired.only_a} to {paired.only_b}, which may be chance (exact McNemar p = {paired.p_value:.2g})."
        )
    better = "A" if paired.difference > 0 else "B"
    return (
        f"{better} is more robust, by {100 * abs(paired.difference):.1f} points against these attacks "
        f"(exact McNemar p = {paired.p_value:.2g})."
    )
