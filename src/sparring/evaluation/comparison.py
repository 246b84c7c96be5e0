"""Two evaluations of the same samples, sample against sample: which model (or attack) is better, and may it be chance?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from sparring.evaluation.files import replacing
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.statistics import Z95, Proportion


@dataclass(frozen=True)
class Paired:
    """How often two verdicts about the same samples hold: in both, in the first only, in the second only, in neither.

    >>> Paired(101, 121, 59, 33)
    +19.7 points [+11.5, +27.7], p = 4.4e-06 (121 samples only in the first, 59 only in the second)
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def a(self) -> Proportion:
        return Proportion(self.both + self.only_a, self.total)

    @property
    def b(self) -> Proportion:
        return Proportion(self.both + self.only_b, self.total)

    @property
    def difference(self) -> float:
        """The share of the first less that of the second."""
        return (self.only_a - self.only_b) / self.total

    @property
    def p_value(self) -> float:
        """Exact McNemar test (1947), two-sided: the chance of samples that differ to be split as unevenly as these or more,
        were each as likely to differ in one way as in the other."""
        most = self.only_a + self.only_b
        term = cumulated = 1
        for k in range(min(self.only_a, self.only_b)):
            term = term * (most - k) // (k + 1)
            cumulated += term
        return float(min(1.0, 2 * cumulated / 2**most))

    @property
    def interval(self) -> tuple[float, float]:
        """95% score interval of Tango (1998) for the difference of two paired proportions."""
        # where nothing but one kind is seen, the statistic is 0/0 at the very end
        low = -1.0 if self.only_b == self.total else _root(lambda d: self._score(d) - Z95, -1.0, self.difference)
        high = 1.0 if self.only_a == self.total else _root(lambda d: self._score(d) + Z95, self.difference, 1.0)
        return low, high

    def _score(self, difference: float) -> float:
        """How many standard errors the difference seen is above this one; the errors are those that this one entails."""
        n, b, c, d = self.total, self.only_a, self.only_b, difference
        # the likeliest share of `only_b` under this difference solves 2n q² + B q − c d (1 − d) = 0 … (Tango's eq. 3)
        linear = -b - c + (2 * n - b + c) * d
        share = (math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d))) - linear) / (4 * n)
        variance = n * (2 * share + d * (1 - d))
        above = b - c - n * d
        if variance <= 0:
            return 0.0 if above == 0 else math.copysign(math.inf, above)
        return above / math.sqrt(variance)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], p = {self.p_value:.2g} "
            f"({self.only_a} samples only in the first, {self.only_b} only in the second)"
        )

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "a": self.a.to_dict(), "b": self.b.to_dict(), "difference": self.difference, "low": low, "high": high,
            "p_value": self.p_value, "both": self.both, "only_a": self.only_a, "only_b": self.only_b,
            "neither": self.neither,
        }  # fmt: skip


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Comparison:
    """clean, robust: the two results' verdicts, sample against sample. names: the models'. threat: its description.

    discordant: one dict a sample of which only one result claims that it is robust: `index`, `label`, `robust_in` ("a" or
    "b"), and of the other its `prediction` (of the clean sample, where that is wrong already) and the `attack` that fooled it
    (None: clean).
    """

    names: tuple[str, str]
    threat: dict[str, Any]
    clean: Paired
    robust: Paired
    discordant: list[dict[str, Any]]
    results: tuple[EvaluationResult, EvaluationResult] = field(repr=False, compare=False)

    def save(self, path: str | Path, names: Sequence[str] | None = None) -> Path:
        """Write both results side by side as one HTML page; its path. names: what they are called there."""
        from sparring import report

        path = Path(path)
        called = self.names if names is None else names
        documents, pictures = [r.document for r in self.results], [r.picture for r in self.results]
        links = [_link(result, path) for result in self.results]
        html = report.beside(called, documents, pictures, self.to_dict(), links)
        with replacing(path) as file:
            file.write(html)
        return path

    def __repr__(self) -> str:
        return (
            f"Comparison({self.names[0]} with {self.names[1]} on {self.robust.total} samples: robust at most "
            f"{self.robust.a.value:.1%} and {self.robust.b.value:.1%}, {self.robust!r}; clean {self.clean.a.value:.1%} and "
            f"{self.clean.b.value:.1%}, {self.clean!r})"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "a": self.names[0],
            "b": self.names[1],
            "threat": self.threat,
            "clean_accuracy": self.clean.to_dict(),
            "robust_accuracy": self.robust.to_dict(),
            "discordant": self.discordant,
        }


def compare(a: EvaluationResult | str | Path, b: EvaluationResult | str | Path) -> Comparison:
    """Compare two finished results (or their folders) of the same samples under the same threat.

    Two models, or one model under two attacks. The samples are paired, so that a difference shows far sooner than from the
    two accuracies' own intervals. ValueError, in one line, where the samples, their data, or the threats differ.
    """
    first, second = (part if isinstance(part, EvaluationResult) else EvaluationResult.load(part) for part in (a, b))
    one, other = (_table(result) for result in (first, second))
    for number, result in enumerate((first, second)):
        if not result.finished:
            raise ValueError(f"{_name(result, number)} was ended by a time limit: let it come to its end first")
    about, theirs = first.document["threat"], second.document["threat"]
    for name in ("norm", "eps", "bounds", "masked"):
        if about[name] != theirs[name]:
            raise ValueError(
                f"the results are of different threats ({name} {about[name]!r} and {theirs[name]!r}): nothing to compare"
            )
    if len(one) != len(other) or not np.array_equal(one["index"], other["index"]):
        alone = len(np.setxor1d(one["index"], other["index"]))
        raise ValueError(
            f"the results hold {len(one)} and {len(other)} samples, {alone} of them in one only: expected the same samples "
            "(the same data, max_samples and seed)"
        )
    differ = np.flatnonzero(one["digest"] != other["digest"])
    if len(differ):
        raise ValueError(
            f"the data differ in {len(differ)} of {len(one)} samples (first: sample {int(one['index'][differ[0]])}): "
            "only the same inputs and labels can be compared"
        )
    return Comparison(
        (_name(first, 0), _name(second, 1)),
        about,
        _paired(one["correct"], other["correct"]),
        _paired(one["robust"], other["robust"]),
        list(_discordant(first, second, one, other)),
        (first, second),
    )


def _table(result: EvaluationResult) -> np.ndarray[Any, Any]:
    table = result._records.table
    return table[np.argsort(table["index"], kind="stable")]


def _name(result: EvaluationResult, number: int) -> str:
    name = str(result.document["model"]["name"] or f"result {'ab'[number]}")
    return name if result.folder is None else f"{name} ({result.folder})"


def _link(result: EvaluationResult, page: Path) -> str | None:
    """Where its own report lies, as seen from the page."""
    if result.folder is None or not (result.folder / "report.html").exists():
        return None
    return quote(Path(os.path.relpath(result.folder / "report.html", page.parent)).as_posix())


def _paired(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Paired:
    counts = (one & other, one & ~other, ~one & other, ~one & ~other)
    return Paired(*(int(count.sum()) for count in counts))


def _discordant(
    first: EvaluationResult, second: EvaluationResult, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]
) -> Any:
    for place in np.flatnonzero(one["robust"] != other["robust"]).tolist():
        in_a = bool(one["robust"][place])
        loser, row = (second, other[place]) if in_a else (first, one[place])
        attack = int(row["attack"])
        yield {
            "index": int(row["index"]),
            "label": int(row["label"]),
            "robust_in": "a" if in_a else "b",
            "prediction": int(row["prediction"] if attack >= 0 else row["clean_prediction"]),
            "attack": loser.attacks[attack]["name"] if attack >= 0 else None,
        }
