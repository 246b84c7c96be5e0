"""The tables and the figure of `training.py`, from its file of results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from machine import table
from sparring.inspection.style import CLEAN, MUTED, ROBUST, dress, new_figure, save

REFERENCE = "PGD-10"
Row = dict[str, Any]
Schedule = tuple[int, float, int]  # epochs, learning rate, samples a batch


def bits(row: Row) -> np.ndarray:
    """(N,) 0 or 1: who stands."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(row["stands"]), np.uint8))


def interval(mine: list[np.ndarray], theirs: list[np.ndarray], draws: int = 2000) -> tuple[float, float, float]:
    """Mean difference in points between two methods over seeds, with a 95% interval: paired bootstrap over test images."""
    difference = np.mean(mine, 0).astype(float) - np.mean(theirs, 0).astype(float)
    values, counts = np.unique(difference, return_counts=True)  # few, so a draw of images is one of how many have which
    drawn = np.random.default_rng(0).multinomial(len(difference), counts / len(difference), size=draws)
    samples = drawn @ values / len(difference)
    low, high = np.quantile(samples, [0.025, 0.975])
    return 100 * float(difference.mean()), 100 * float(low), 100 * float(high)


def gap(mine: list[tuple[Row, Row]], theirs: list[tuple[Row, Row]]) -> str:
    """The difference over the seeds that both have, and its interval."""
    both = {row["seed"] for row, _ in mine} & {row["seed"] for row, _ in theirs}
    ours, others = ([bits(verdict) for row, verdict in pairs if row["seed"] in both] for pairs in (mine, theirs))
    return "{:+.1f} ({:+.1f}, {:+.1f})".format(*interval(ours, others))


def spread(values: Iterable[float], scale: float = 1.0, digits: int = 1) -> str:
    found = [scale * value for value in values]
    width = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{width}"


def schedule_of(row: Row) -> Schedule:
    return row["epochs"], row["lr"], row["batch"]


def groups(rows: list[Row]) -> dict[tuple[str, Schedule], list[tuple[Row, Row]]]:
    """(method, schedule) → the seeds' (training, verdict)."""
    verdicts = {(row["method"], schedule_of(row), row["seed"]): row for row in rows if row["kind"] == "verdict"}
    found: dict[tuple[str, Schedule], list[tuple[Row, Row]]] = {}
    for row in rows:
        key = (row.get("method"), schedule_of(row)) if row["kind"] == "run" else None
        if key and (verdict := verdicts.get((*key, row["seed"]))):
            found.setdefault(key, []).append((row, verdict))
    return found


def chosen(rows: list[Row], method: str) -> Schedule:
    """Of the first seed's runs that of best robust accuracy on held-out images; of those within half a point, the fastest."""
    trials = [row for row in rows if row["kind"] == "run" and row["method"] == method and row["seed"] == 0]
    if not trials:
        raise SystemExit(f"{method} was not searched for yet: run `search` first")
    top = max(row["robust"] for row in trials)
    return schedule_of(min((row for row in trials if row["robust"] >= top - 0.005), key=lambda row: row["seconds"]))


def takes(rows: list[Row], method: str, schedule: Schedule) -> float:
    """Seconds of a training: the fastest turn of `pace`, or, where that was not run, the mean of those that were trained."""
    for kind, pick in (("pace", min), ("run", statistics.mean)):
        found = [
            row["seconds"]
            for row in rows
            if row["kind"] == kind and row["method"] == method and schedule_of(row) == schedule
        ]
        if found:
            return float(pick(found))
    raise SystemExit(f"{method} was not trained at {schedule}")


def reached(pairs: list[tuple[Row, Row]], goal: float, seconds: float) -> str:
    """Seconds, of so many for the whole training, until accuracy under PGD-20 on held-out images first reached `goal`: the mean
    over those seeds that did."""
    curves = [[robust for _, _, robust in row["curve"]] for row, _ in pairs]
    times = [
        next((seconds * (i + 1) / len(curve) for i, robust in enumerate(curve) if robust >= goal), None)
        for curve in curves
    ]
    found = [t for t in times if t is not None]
    if not found:
        return "never"
    return f"{statistics.mean(found):.0f}" + (f" ({len(found)} of {len(times)})" if len(found) < len(times) else "")


def write(rows: list[Row], name: str, figure: Path | None, equal: Schedule, order: list[str]) -> None:
    """Prints the tables, methods in this order; draws the Pareto curve."""
    rows = [row for row in rows if row.get("data") in (name, None)]
    for row in rows:
        if row["kind"] == "machine":
            print({k: row[k] for k in ("what", "cpu", "torch", "sparring", "threads", "load")})
    found = groups(rows)
    methods = sorted({method for method, _ in found}, key=order.index)
    points = []
    for title, schedule in (
        ("Equal epochs", lambda m: equal),
        ("Each with its best schedule", lambda m: chosen(rows, m)),
    ):
        reference = found.get((REFERENCE, schedule(REFERENCE)))
        if reference is None:
            continue
        seconds = takes(rows, REFERENCE, schedule(REFERENCE))
        goal = statistics.mean(row["curve"][-1][2] for row, _ in reference) - 0.005
        lines = []
        for method in methods:
            pairs = found.get((method, schedule(method)))
            if not pairs:
                continue
            own = takes(rows, method, schedule(method))
            share = f"1/{seconds / own:.1f}" if own < seconds else f"{own / seconds:.1f}"
            lines.append([
                method, "{} · {:g} · {}".format(*schedule(method)),
                spread((v["test_clean"] for _, v in pairs), 100), spread((v["test_robust"] for _, v in pairs), 100),
                "" if method == REFERENCE else gap(pairs, reference), f"{own:.0f}", "" if method == REFERENCE else share,
                f"{statistics.mean(r['passes'] for r, _ in pairs):.3g}", reached(pairs, goal, own), str(len(pairs)),
                ", ".join(sorted({w for _, v in pairs for w in v["warnings"]})),
            ])  # fmt: skip
            points.append((method, own, 100 * statistics.mean(v["test_robust"] for _, v in pairs), title))
        head = [
            "method",
            "epochs · rate · batch",
            "clean",
            "robust",
            f"minus {REFERENCE}",
            "seconds",
            f"of {REFERENCE}'s",
            "passes",
            "to the goal",
        ]
        table(f"{title} ({name}; goal: {goal:.3f} under PGD-20, held out)", [*head, "seeds", "warns"], lines)
    if figure is not None:
        draw(points, name, figure)


def draw(points: list[tuple[str, float, float, str]], name: str, path: Path) -> None:
    """Robust accuracy against seconds, and the staircase that nothing is above and left of."""
    top = max(robust for _, _, robust, _ in points)
    points = [point for point in points if point[2] > 0.8 * top]  # ordinary training would squeeze the rest together
    figure = new_figure(8, 5.5)
    axes = figure.subplots()
    dress(axes)
    for title, look in (
        ("its best schedule", {"marker": "o", "color": CLEAN}),
        ("equal epochs", {"marker": "x", "color": MUTED}),
    ):
        own = title.startswith("its")
        here = [(seconds, robust) for _, seconds, robust, kind in points if kind.startswith("Each") == own]
        axes.plot(*zip(*here), linestyle="", markersize=5, label=title, **look)
    axes.margins(x=0.08, y=0.1)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    front: list[tuple[float, float]] = []
    for _, seconds, robust, _ in sorted(points, key=lambda point: point[1]):
        if not front or robust > front[-1][1]:
            front.append((seconds, robust))
    axes.step(*zip(*front), where="post", color=ROBUST, linewidth=1, zorder=1)
    axes.set(
        xscale="log",
        xlabel="processor seconds of training",
        ylabel="robust accuracy, %",
        title=f"{name}: what a method takes and brings",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")  # 20 and 100, not powers of ten
    axes.xaxis.set_minor_locator(NullLocator())
    FigureCanvasAgg(figure).draw()  # where things come to lie is known only then
    label(axes, [(m, s, r) for m, s, r, title in points if title.startswith("Each")], [(s, r) for _, s, r, _ in points])
    save(figure, path)


def label(axes: Axes, names: list[tuple[str, float, float]], points: list[tuple[float, float]]) -> None:
    """Writes each name beside its point, at the nearest of some places where it covers no point and no other name."""
    renderer = cast("FigureCanvasAgg", axes.figure.canvas).get_renderer()
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(points)]
    frame = axes.get_window_extent(renderer)
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
    places = [(x, y, side) for far in range(5, 60, 6) for y in (far, -far) for x, side in ((7, "left"), (-7, "right"))]
    for name, seconds, robust in sorted(names, key=lambda entry: -entry[2]):
        for x, y, side in places:
            text = axes.annotate(
                name, (seconds, robust), (x, y), textcoords="offset points", fontsize=7, ha=side, va="center",
                arrowprops=line if abs(y) > 6 else None,
            )  # fmt: skip
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            if not any(box.overlaps(other) for other in taken) and frame.x0 < box.x0 and box.x1 < frame.x1:
                taken.append(box)
                break
            text.remove()
