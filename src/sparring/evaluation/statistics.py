"""Intervals for proportions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """count of total, with its 95% Wilson (1927) interval.

    >>> Proportion(90, 100)
    90.0% [82.6%, 94.5%] (90 of 100)
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else math.nan

    def _wilson(self, sign: int) -> float:
        if not self.total:
            return math.nan
        n, p, z = self.total, self.value, Z95
        centre = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return min(1.0, max(0.0, (centre + sign * half) / (1 + z * z / n)))

    @property
    def low(self) -> float:
        return 0.0 if self.count == 0 and self.total else self._wilson(-1)

    @property
    def high(self) -> float:
        return 1.0 if self.count == self.total and self.total else self._wilson(1)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] ({self.count} of {self.total})"

    def to_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "low": self.low, "high": self.high, **asdict(self)}
