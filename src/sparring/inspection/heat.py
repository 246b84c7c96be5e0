"""Shares as shades: one heat map beside another, on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle

from sparring.inspection import style


def heat_maps(
    values: Mapping[str, Sequence[Sequence[float]]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    rows: str = "",
    columns: str = "",
    fig: FigureBase | None = None,
) -> Figure:
    """A panel for each of the named matrices of shares (0 to 1; NaN: none), each cell with its percentage.

    Cells whose row and column have the same name are framed. rows, columns: what the axes are called. fig: where to draw;
    None: a new figure. `sp.transfer_matrix(…).figure()` is drawn by it. Picture: docs/gallery.md, "Who fools whom".

    Raises:
        ValueError: there is no matrix.
    """
    if not values:
        raise ValueError("heat maps need at least one matrix, got none")
    longest = max(len(name) for name in row_names)
    width, height = 0.95 * len(column_names) + 0.5, 0.62 * len(row_names) + 1.5
    figure = style.canvas(fig, 0.11 * longest + 0.5 + width * len(values), height)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    slanted = max(len(name) for name in column_names) > 10
    for axes, (title, matrix) in zip(panels, values.items(), strict=True):
        style.dress(axes)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.imshow(matrix, cmap=style.SHARE, vmin=0, vmax=1, aspect="auto")
        style.title(axes, title)
        axes.set_xticks(range(len(column_names)), list(column_names), parse_math=False)
        axes.set_yticks(range(len(row_names)), list(row_names), parse_math=False)
        if slanted:
            axes.tick_params(axis="x", labelrotation=30)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
        axes.set_xlabel(columns)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                text = "–" if math.isnan(value) else f"{value:.0%}"
                ink = style.PAPER if value > 0.55 else style.INK
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=11)
                if row_names[i] == column_names[j]:
                    axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=style.INK, lw=1.4))
    panels[0].set_ylabel(rows)
    return style.whole(figure)
