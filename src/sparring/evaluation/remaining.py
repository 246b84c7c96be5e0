"""How many failures are left to find? From how the finds thinned out while the effort grew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparring.evaluation.records import DONE, Records

DRAWS = 4000


@dataclass(frozen=True)
class Remaining:
    """late, before: finds in the last doubling of the effort, and in the doubling before it.

    effort: the most passes that a standing sample has cost. estimate: how many of those that stand would fall if the
    effort went on doubling; low, high: its 90% interval; all of them at most.
    """

    late: int
    before: int
    effort: int
    estimate: float
    low: float
    high: float


def remaining(records: Records) -> Remaining | None:
    """What is left, judged by the removal method; None where nothing stands, or nothing was attacked.

    As in fishing a pond out (Moran, 1951; Zippin, 1956): if each doubling of the effort finds a part r of what the one
    before found, then the next ones find late · (r + r² + …). Both finds are Poisson, so that the interval comes from
    Gamma draws (Jeffreys' prior), with a seed of its own. A lower r cannot be told from small numbers: with few finds the
    interval is wide and says so.
    """
    table = records.table
    done = table["correct"] & (table["state"] == DONE)
    effort = table["passes"].sum(axis=(1, 2), dtype=np.int64)
    standing, fallen = done & table["robust"], done & ~table["robust"]
    if not standing.any():
        return None
    full = int(effort[standing].max())
    if not full:
        return None
    late = int((effort[fallen] > full / 2).sum())
    before = int(((effort[fallen] > full / 4) & (effort[fallen] <= full / 2)).sum())
    most = int(standing.sum())
    draw = np.random.default_rng(0)
    last, first = draw.gamma(late + 0.5, size=DRAWS), draw.gamma(before + 0.5, size=DRAWS)
    left = np.where(last < first, last * last / np.maximum(first - last, 1e-9), np.inf).clip(0, most)
    low, high = (float(np.quantile(left, q)) for q in (0.05, 0.95))
    estimate = late * late / (before - late) if late < before else float(most if late else 0)
    return Remaining(late, before, full, min(float(most), estimate), low, high)
