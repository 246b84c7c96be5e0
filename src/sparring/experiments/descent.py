"""Gradient descent on f(x) = x² + 2, step by step, by any optimiser of torch.optim.

The first thing that one sees of optimisation: x is drawn from the integers 1 to 10, and each step goes down the slope
2x until f is within 0.01 of its minimum, 2, or 100 values have been seen.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from sparring.attacks.optimizer import optimizer_class
from sparring.experiments.record import Progress, check_settings, document, write
from sparring.inspection import style

MINIMUM, NEAR, LONGEST = 2.0, 0.01, 100
COMPARED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("SGD", "SGD", {}),
    ("SGD, momentum 0.9", "SGD", {"momentum": 0.9}),
    ("RMSprop", "RMSprop", {}),
    ("Adam", "Adam", {}),
)


@dataclass(frozen=True)
class Trace:
    """Where one optimiser went: x and f(x) at every step, the start first."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    @property
    def reached(self) -> bool:
        """Whether the last value is within 0.01 of the minimum."""
        return abs(self.y[-1] - MINIMUM) <= NEAR

    @property
    def lines(self) -> list[str]:
        """The printed trace, batches counted from 1: `batch=1 x=6.0000000000 y=38.0000000000`."""
        return [f"batch={i} x={x:.10f} y={y:.10f}" for i, (x, y) in enumerate(zip(self.x, self.y), start=1)]


@dataclass(frozen=True)
class DescentResult:
    """The trace that was asked for, and those of the usual four optimisers from the same start at the same rate."""

    trace: Trace
    compared: tuple[Trace, ...]
    settings: Mapping[str, Any]
    seed: int

    @property
    def lines(self) -> list[str]:
        return self.trace.lines

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The trace that was asked for, then those of the comparison that differ from it."""
        return (self.trace, *(other for other in self.compared if other.x != self.trace.x))

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {"optimizer": t.name, "values seen": len(t.x), "reached": t.reached, "x": t.x[-1], "y": t.y[-1]}
            for t in self.traces
        ]

    def to_json(self) -> dict[str, Any]:
        traces = [{"optimizer": t.name, "reached": t.reached, "x": t.x, "y": t.y} for t in self.traces]
        return document("descent", self.seed, self.settings, rows=self.rows, traces=traces)

    def figure(self) -> Figure:
        """The parabola with each optimiser's steps, above f(x) − 2 by step."""
        traces = self.traces
        figure = style.new_figure(2.7 * max(len(traces), 3), 6.6)
        grid = figure.add_gridspec(2, len(traces), height_ratios=(1.15, 1), wspace=0.04)
        reach = 1.12 * max(abs(self.trace.x[0]), 1.0)
        curve = np.linspace(-reach, reach, 201)
        below = figure.add_subplot(grid[1, :])
        style.dress(below)
        for column, trace in enumerate(traces):
            color, dashes = style.SERIES[column % len(style.SERIES)], style.DASHES[column % len(style.DASHES)]
            axes = figure.add_subplot(grid[0, column])
            style.dress(axes)
            axes.plot(curve, curve**2 + MINIMUM, color=style.MUTED, linewidth=1)
            axes.plot(trace.x, trace.y, color=color, linewidth=0.9, marker="o", markersize=4.2, alpha=0.85)
            axes.set_xlim(-reach, reach)
            axes.set_ylim(0, reach**2 + MINIMUM)
            if column:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel("f(x) = x² + 2")
            axes.set_xlabel("x")
            gap = abs(trace.y[-1] - MINIMUM)
            seen = f"within {NEAR:g} at batch {len(trace.x)}" if trace.reached else f"{gap:.3g} away at {len(trace.x)}"
            axes.set_title(trace.name, loc="left", color=color, fontsize=11, fontweight="bold", pad=20)
            axes.text(0, 1.03, seen, transform=axes.transAxes, color=style.MUTED, fontsize=9.5)
            # a step onto the minimum has no place on a log axis, and one to infinity on no axis
            gaps = [min(max(y - MINIMUM, 1e-4), 1e12) for y in trace.y if not math.isnan(y)]
            steps = range(1, len(gaps) + 1)
            below.plot(steps, gaps, color=color, linestyle=dashes, linewidth=2, label=trace.name)
            below.plot(len(gaps), gaps[-1], color=color, marker="o", markersize=7, markeredgecolor=style.PAPER)
        below.axhline(NEAR, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        below.set_yscale("log")
        below.tick_params(which="minor", length=0)
        below.set_xlabel("batch")
        below.set_ylabel("f(x) − 2")
        style.legend(below, loc="upper right", ncols=min(len(traces), 3))
        return figure


def run(
    start: float | None = None,
    lr: float = 0.1,
    optimizer: str = "SGD",
    momentum: float | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DescentResult:
    """Descends from `start` (None: an integer from 1 to 10 drawn with `seed`) and compares the usual optimisers.

    Args:
        optimizer: any class of torch.optim by name; `momentum` and `options` are settings of it (`{"nesterov": True}`).
        out: a folder for descent.png, descent.svg and numbers.json.

    Raises: ValueError for an optimiser, a setting or a rate that torch.optim does not know.

    >>> run(start=6).lines[-1]
    'batch=20 x=0.0864691128 y=2.0074769075'
    """
    chosen = optimizer_class(optimizer)
    settings = {**(options or {}), **({} if momentum is None else {"momentum": momentum})}
    check_settings(chosen, settings)
    first = float(random.Random(seed).randint(1, 10) if start is None else start)
    name = ", ".join([chosen.__name__, *(f"{key} {value}" for key, value in settings.items())])
    trace = descend(first, chosen, lr=lr, name=name, **settings)
    compared = tuple(
        descend(first, optimizer_class(kind), lr=lr, name=label, **extra) for label, kind, extra in COMPARED
    )
    used = {"start": first, "lr": lr, "optimizer": chosen.__name__, **settings}
    result = DescentResult(trace, compared, used, seed)
    if out is not None:
        write(result, "descent", out)
    if progress is not None:
        progress("descent", 1.0)
    return result


def descend(start: float, optimizer: type[torch.optim.Optimizer], *, name: str | None = None, **settings: Any) -> Trace:
    """The values seen on the way down, in float64; ends within 0.01 of the minimum or after 100 values."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    try:
        updater = optimizer([x], **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{optimizer.__name__} cannot start with {settings}: {error}") from error

    def value() -> torch.Tensor:
        updater.zero_grad()
        y = x**2 + MINIMUM
        y.backward()  # type: ignore[no-untyped-call]
        return y

    seen: list[tuple[float, float]] = []
    while len(seen) < LONGEST:
        seen.append((x.item(), x.item() * x.item() + MINIMUM))
        if not abs(seen[-1][1] - MINIMUM) > NEAR:
            break
        try:
            updater.step(value)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise ValueError(f"{optimizer.__name__} cannot descend on a single number: {error}") from error
    return Trace(name or optimizer.__name__, tuple(x for x, _ in seen), tuple(y for _, y in seen))
