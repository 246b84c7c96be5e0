"""The map of the GTSRB case as a table, and as a figure."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from machine import table

Found = dict[tuple[str, int], list[dict[str, Any]]]
MAP = {
    "64th/0.01/inference": ("1/64", ".01", "inference (the case)"),
    "64th/0.1/inference": ("1/64", ".1", "inference"),
    "right/0.01/inference": ("right", ".01", "inference"),
    "right/0.1/inference": ("right", ".1", "inference"),
    "64th/0.01/clean": ("1/64", ".01", "clean training"),
    "right/0.01/clean": ("right", ".01", "clean training"),
    "64th/0.01/auto": ("1/64", ".01", '`bn="auto"`'),
    "right/0.01/auto": ("right", ".01", '`bn="auto"`'),
    "64th/0.01/batch": ("1/64", ".01", '`bn="batch"`'),
    "64th/0.01/eval": ("1/64", ".01", '`bn="eval"`'),
    "64th/0.01/inference/recalibrated": ("1/64", ".01", "inference, recalibrated first"),
    "64th/0.5/inference": ("1/64", ".5", "inference (a published cure)"),
    "64th/0.01/inference/batch=16": ("1/64", ".01", "inference, batch 16 (another)"),
    "64th/0.01/inference/keras": ("1/64", ".01", "inference, Keras"),
    "64th/0.01/auto/keras": ("1/64", ".01", '`bn="auto"`, Keras'),
}
KEYS = {
    "clean": "train clean",
    "adversarial": "train adversarial",
    "batch": "held out, batch",
    "eval": "held out, eval",
    "recalibrated": "eval, recalibrated",
}


def show(found: Found) -> None:
    """Each cell's accuracies at its end, in percent, mean ± standard deviation over its seeds: training ones of the last
    samples between two looks, held-out ones of all signs held out. Cells that are not on the map in a table of their own."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for (name, _), records in sorted(found.items()):
        cells.setdefault(name, []).append(records[-1])
    head = ["inputs", "momentum", "statistics", *KEYS.values(), "seeds"]
    rows = [[*MAP[name], *_values(cells[name])] for name in MAP if name in cells]
    table("German traffic signs: accuracy in percent", head, rows)
    others = [
        [name, f"{min(r['samples'] for r in last):,}", *_values(last)]
        for name, last in cells.items()
        if name not in MAP
    ]
    if others:
        table("Other cells", ["cell", "samples", *KEYS.values(), "seeds"], others)


def _values(last: list[dict[str, Any]]) -> list[str]:
    columns = [[100 * record[key] for record in last if record.get(key) is not None] for key in KEYS]
    return [*map(_spread, columns), str(len(last))]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


DRAWN = {
    "64th/0.01/inference": ("C3", "-", "inputs at 1/64, momentum .01, all in inference mode: the case"),
    "64th/0.1/inference": ("C1", "-", "… momentum .1"),
    "right/0.01/inference": ("C0", "-", "inputs as in pretraining, momentum .01"),
    "right/0.1/inference": ("C9", "-", "… momentum .1"),
    "64th/0.01/inference/recalibrated": ("C3", ":", "the case, statistics taken anew before the first batch"),
    "64th/0.01/auto": ("C2", "-", 'the case with bn="auto"'),
    "64th/0.01/clean": ("0.6", "--", "1/64, clean training"),
    "right/0.01/clean": ("0.2", "--", "as in pretraining, clean training"),
}


def draw(found: Found, path: Path) -> None:
    """Held-out accuracy while training, with batch and with running statistics; thin lines: more seeds."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, key, title in zip(axes, ("batch", "eval"), ("with batch statistics", "in eval mode"), strict=True):
        for name, (colour, style, label) in DRAWN.items():
            for (cell, seed), records in sorted(found.items()):
                if cell == name:
                    points = [(r["samples"], 100 * r[key]) for r in records]
                    ax.plot(*zip(*points, strict=True), style, color=colour, lw=1.8 if seed == 0 else 0.8,
                            label=label if seed == 0 else None)  # fmt: skip
                    if key == "eval" and "recalibrated" in records[-1] and seed == 0:
                        ax.plot([records[-1]["samples"]], [100 * records[-1]["recalibrated"]], "o", color=colour, ms=6)
        ax.set(title=f"Held-out signs, {title}", xlabel="training samples")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="accuracy, %", ylim=(0, 60))  # room for the legend
    axes[1].annotate("dots: after sp.recalibrate", (0.03, 0.95), xycoords="axes fraction", color="0.4", fontsize=8)
    axes[0].legend(frameon=False, fontsize=7.5, loc="upper left")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
