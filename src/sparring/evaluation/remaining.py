"""How many failures are left to find? From how the finds thinned out while the effort grew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparring.evaluation.records import DONE, Records

DRAWS = 4000


@dataclass(frozen=True)
class Remaining:
    """late, before: finds in the last doubling of the effort, and in the doubling before it.

    effort: the most passes that a standing sample has cost. estimate: how many samples one more doubling would find, and so
    how many are left at least; low, high: its 90% interval.
    """

    late: int
    before: int
    effort: int
    estimate: float
    low: int
    high: int


def remaining(records: Records) -> Remaining | None:
    """What one more doubling would find, by the removal method; None where nothing stands, or nothing was attacked.

    As in fishing a pond out (Moran, 1951; Zippin, 1956): if the last doubling of the effort found a part r of what the
    doubling before it did, then the next one finds r · late, and no more than the last did. All three are Poisson; the
    interval comes from Gamma draws of the first two (Jeffreys' prior) and Poisson draws of the third, with a seed of its own.
    """
    table = records.table
    done = table["correct"] & (table["state"] == DONE)
    effort = table["passes"].sum(axis=(1, 2), dtype=np.int64)
    standing, fallen = done & table["robust"], done & ~table["robust"]
    full = int(effort[standing].max(initial=0))
    if not full:
        return None
    late = int((effort[fallen] > full / 2).sum())
    before = int(((effort[fallen] > full / 4) & (effort[fallen] <= full / 2)).sum())
    draw, most = np.random.default_rng(0), int(standing.sum())
    last, first = draw.gamma(late + 0.5, size=DRAWS), draw.gamma(before + 0.5, size=DRAWS)
    found = draw.poisson(last * np.minimum(1, last / first)).clip(0, most)
    low, high = (int(np.quantile(found, q, method="nearest")) for q in (0.05, 0.95))
    estimate = late * min(1.0, late / max(before, 1))
    return Remaining(late, before, full, min(float(most), estimate), low, high)
