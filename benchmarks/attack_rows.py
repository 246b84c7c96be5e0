"""One row of the attack benchmark: an attack of ours beside the same attack of the peers, at equal budget.

A part of the benchmark (`attacks_minimal.py`, …) is a module with ``contests(samples, seed) -> Iterator[Contest]``;
`attacks.py` runs the contests of all parts, skips those whose key it has measured before, and prints one table.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

TARGET = 0.02  # an attack is exported where no peer is better by more than this part
STUDENT = (0, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5%, by degrees of freedom


@dataclass(frozen=True)
class Row:
    """What one contest found.

    attack, norm, network: who, where. measure: what the values are, lower is better for the attacker: "median norm",
    "median queries" or "robust accuracy". ours, peers: the value of our attack, and of each library that has it (library to
    value; inf where an attack failed on half of the samples). passes: forwards + backwards a sample, on average, that ours
    took, and each peer under its library's name. settings: what makes the budget equal, as in ``{"steps": 100}``.
    seeds: how many the values are means over. spread: half of the 95% interval of each mean, by library; empty for one seed.
    """

    attack: str
    norm: str
    network: str
    measure: str
    samples: int
    seed: int
    ours: float
    peers: dict[str, float]
    passes: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seeds: int = 1
    spread: dict[str, float] = field(default_factory=dict)

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=self.peers.__getitem__) if self.peers else None

    @property
    def excess(self) -> float | None:
        """How far ours is above the best peer, as a part of that peer's value (negative: ours is better); None without peers.

        Robust accuracies are compared as they are, where one sample of difference is allowed (see `within`).
        """
        if self.best_peer is None:
            return None
        best = self.peers[self.best_peer]
        if self.ours == best:
            return 0.0
        if best == float("inf"):  # the peers failed on half of the samples, and ours did not
            return -1.0
        return (self.ours - best) / best if best > 0 else float("inf")

    @property
    def within(self) -> bool | None:
        """Whether ours is within 2% of the best peer (of a robust accuracy: or one sample, where that is more)."""
        if self.best_peer is None or self.excess is None:
            return None
        one = self.measure == "robust accuracy" and self.ours - self.peers[self.best_peer] <= 1 / self.samples + 1e-6
        return self.excess <= TARGET + 1e-9 or one

    @property
    def noise(self) -> bool:
        """Whether the draws alone may be why ours is above the best peer: the interval of the difference has zero in it."""
        if self.best_peer is None or not self.spread:
            return False
        apart = self.ours - self.peers[self.best_peer]
        return 0 < apart <= math.hypot(self.spread["sparring"], self.spread[self.best_peer])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Contest:
    """A row yet to be measured: `key` names it for good (a resumed run skips the keys it has), `run` measures it."""

    key: str
    run: Callable[[], Row]


def half_width(values: list[float]) -> float:
    """Half of the 95% interval of the mean of these values, by Student's t; of ten at most."""
    return STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def joined(rows: list[Row]) -> Row:
    """Rows of one contest under several seeds as one: the means, and how sure they are."""
    if len(rows) == 1:
        return rows[0]
    values = {"sparring": [row.ours for row in rows]}
    values |= {name: [row.peers[name] for row in rows] for name in rows[0].peers}
    means = {name: statistics.fmean(each) for name, each in values.items()}
    spread = {name: half_width(each) for name, each in values.items()}
    return replace(rows[0], ours=means.pop("sparring"), peers=means, seeds=len(rows), spread=spread)


def median(values: list[float]) -> float:
    """The lower median, so that a failed half gives inf only where more than half failed."""
    return statistics.median_low(values)


class Clock:
    """``with Clock() as clock: …`` and then `clock.seconds`."""

    def __enter__(self) -> Clock:
        self._start, self.seconds = time.perf_counter(), 0.0
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
