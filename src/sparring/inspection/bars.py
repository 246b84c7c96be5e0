"""Values of layers, one below the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure, FigureBase

from sparring.inspection import pictures, style


def layer_bars(
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    limit: float | None = None,
    fig: FigureBase | None = None,
) -> Figure:
    """A panel for each of the named rows of values, a bar for each layer, the first layer on top.

    Args:
        names: of the layers. values: title → one number a layer; not finite: a bar to the end, and said so.
        limit: marked by a line; bars that reach it are drawn in the colour of alarm.
        fig: where to draw; None: a new figure.

    Picture: docs/gallery.md, "BatchNorm's drift".

    Raises:
        ValueError: no layers, or another number of values.
    """
    if not names or any(len(row) != len(names) for row in values.values()) or not values:
        raise ValueError(f"layer bars need at least one layer, and as many values: got {len(names)} names")
    figure = style.canvas(fig, 9.4, 0.27 * len(names) + 1.25)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    places = list(range(len(names)))[::-1]
    for axes, (title, row) in zip(panels, values.items()):
        style.dress(axes)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x", color=style.GRID, linewidth=0.8)
        top = max([value for value in row if math.isfinite(value)] + [limit or 0.0]) * 1.06 or 1.0
        colors = [style.ROBUST if limit is not None and not value < limit else style.CLEAN for value in row]
        axes.barh(places, [min(value, top) if value == value else top for value in row], color=colors, height=0.62)
        for place, value in zip(places, row):
            if not math.isfinite(value):
                axes.text(top * 0.98, place, f"{value}", ha="right", va="center", color=style.PAPER, fontsize=9)
        if limit is not None:
            axes.axvline(limit, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, top)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.xaxis.set_major_locator(style.ticks(6))
        axes.set_yticks(places, [pictures.short(name, 34) for name in names], color=style.INK, parse_math=False)
        style.title(axes, title)
    return style.whole(figure)
