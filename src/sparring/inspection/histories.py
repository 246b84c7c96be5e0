"""How trainings went, side by side, from what `fit` writes down."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from sparring.inspection import style

History = str | os.PathLike[str] | Sequence[Any] | Any

ACROSS: dict[str, tuple[str, ...]] = {
    "epoch": ("epoch",),
    "seconds": ("seconds",),
    "passes": ("forwards", "backwards"),
}


def training_curves(
    runs: Mapping[str, History], *, across: str = "epoch", title: str | None = None, fig: FigureBase | None = None
) -> Figure:
    """Several trainings beside each other: the loss, and accuracy on held-out samples, clean and under attack.

    Args:
        runs: name → what `sp.fit` gave (or its `history`), the folder that it wrote, the `log.csv` in it, or any CSV or
            list of dicts with some of its columns: epoch, loss, validation_accuracy, validation_robust_accuracy, seconds,
            forwards, backwards.
        across: "epoch"; "seconds" of training so far; "passes": samples through the network so far, both directions.
        title: above all. fig: where to draw; None: a new figure.

    Where nothing was validated, accuracies on the training samples stand in, and the panel says so. Picture:
    docs/gallery.md, "Trainings side by side".

    Raises:
        ValueError: no runs, a run without rows or without a column that is asked for. FileNotFoundError: no such file.
    """
    if not runs:
        raise ValueError("training curves need at least one run, got none")
    if across not in ACROSS:
        raise ValueError(f"across={across!r}: expected one of {', '.join(ACROSS)}")
    read = {name: _rows(name, run) for name, run in runs.items()}
    places = {name: _across(name, rows, across) for name, rows in read.items()}
    figure = style.canvas(fig, 9.8, 4.1)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        style.dress(axes)
        axes.set_xlabel(
            {"passes": "passes of a sample, both directions", "seconds": "seconds of training"}.get(across, across)
        )
        if across == "epoch":
            axes.xaxis.set_major_locator(style.whole_ticks(8))
    on = (
        "validation"
        if any(row.get("validation_accuracy") is not None for rows in read.values() for row in rows)
        else ""
    )
    keys = ("validation_accuracy", "validation_robust_accuracy") if on else ("accuracy", "robust_accuracy")
    for number, (name, rows) in enumerate(read.items()):
        color = style.SERIES[number % len(style.SERIES)]
        marker = style.MARKERS[number % len(style.MARKERS)] if len(rows) <= 30 else ""
        look: dict[str, Any] = {"color": color, "linewidth": 2, "marker": marker, "markersize": 4.4}
        left.plot(*_points(places[name], rows, "loss"), **look, label=name)
        right.plot(*_points(places[name], rows, keys[0]), **look, linestyle=":")
        right.plot(*_points(places[name], rows, keys[1]), **look)
    left.set_ylabel("training loss")
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_ylabel("accuracy on held-out samples" if on else "accuracy on training samples")
    style.legend(left)
    look = {"color": style.MUTED, "linewidth": 2}
    kinds = [Line2D([], [], linestyle=":", label="clean", **look), Line2D([], [], label="under attack", **look)]
    style.legend(right, handles=kinds)
    if title:
        style.title(left, title)
    return style.whole(figure)


def _rows(name: str, run: History) -> list[dict[str, float | None]]:
    """Its rows, numbers only; an empty cell is None."""
    if isinstance(run, (str, os.PathLike)):
        path = Path(run)
        path = path / "log.csv" if path.is_dir() else path
        with path.open(newline="", encoding="utf-8") as file:
            found = [{key: _number(cell) for key, cell in row.items() if key} for row in csv.DictReader(file)]
    else:
        plain: Callable[[Any], Mapping[str, Any]] = lambda row: row if isinstance(row, Mapping) else vars(row)  # noqa: E731
        found = [{key: _number(cell) for key, cell in plain(row).items()} for row in getattr(run, "history", run)]
    if not found or all(row.get("loss") is None for row in found):
        raise ValueError(f"run {name!r} has no rows with a loss: give what sp.fit gave, its folder, or its log.csv")
    return found


def _number(cell: Any) -> float | None:
    if cell is None or cell == "":
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _across(name: str, rows: Sequence[Mapping[str, float | None]], across: str) -> list[float]:
    if across == "epoch":
        return [float(count if row.get("epoch") is None else row["epoch"]) for count, row in enumerate(rows, 1)]  # type: ignore[arg-type]
    total, found = 0.0, []
    for row in rows:
        parts = [row.get(key) for key in ACROSS[across]]
        if None in parts:
            raise ValueError(f"run {name!r} doesn't tell its {' and '.join(ACROSS[across])}: use across='epoch'")
        total += sum(part for part in parts if part is not None)
        found.append(total)
    return found


def _points(
    places: Sequence[float], rows: Sequence[Mapping[str, float | None]], key: str
) -> tuple[list[float], list[float]]:
    """Where the value is known: an epoch that was not validated leaves no gap in the line."""
    known = [(place, value) for place, row in zip(places, rows) if (value := row.get(key)) is not None]
    known = [(place, value) for place, value in known if math.isfinite(value)]
    return [place for place, _ in known], [value for _, value in known]
