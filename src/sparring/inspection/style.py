"""The one look that every figure of the project shares: colours, fonts, and how a figure is made and saved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

INK = "#1c2430"
MUTED = "#5b6573"
GRID = "#d9dee5"
PAPER = "#ffffff"
CLEAN = "#0b62a4"
ROBUST = "#c4460b"
SERIES = (CLEAN, ROBUST, "#007a5e", "#a3468a", "#8a6d00", "#2f9bd1", "#4b5563")
"""Okabe and Ito's hues (2008), told apart with any colour vision, darkened to a contrast of 3:1 on white."""

DASHES: tuple[str, ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

SIGNED = LinearSegmentedColormap.from_list("signed", ["#08487a", "#5d9bc7", "#f7f7f5", "#e0855a", "#8f3104"])
"""Below zero blue, above it orange: a pair that every colour vision tells apart."""
SHARE = LinearSegmentedColormap.from_list("share", ["#f4f6f9", ROBUST])
AMOUNT = LinearSegmentedColormap.from_list("amount", ["#f4f6f9", "#e9a27c", ROBUST, "#3d1300"])
"""From nothing to much, in growing darkness, so that it also reads in grey."""

_PNG_DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches that belongs to no global registry: it goes when its last name goes."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure


def canvas(fig: FigureBase | None, width: float, height: float) -> FigureBase:
    """Where several panels go: the figure, or the part of one, that was given, else a new one of this size in inches."""
    return new_figure(width, height) if fig is None else fig


def panel(ax: Axes | None, width: float, height: float) -> Axes:
    """Where one panel goes: the axes that were given, else those of a new figure of this size in inches; dressed."""
    axes = new_figure(width, height).add_subplot() if ax is None else ax
    dress(axes)
    return axes


def whole(part: Axes | FigureBase) -> Figure:
    """The figure that axes, or a part of a figure, stand in."""
    found: Any = part
    while not isinstance(found, Figure):
        found = found.figure
    return found


def ticks(most: int) -> MaxNLocator:
    """Round numbers, so many at most."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def whole_ticks(most: int) -> MaxNLocator:
    """Round whole numbers, so many at most."""
    return MaxNLocator(most, steps=[1, 2, 5, 10], integer=True)


def title(axes: Axes, text: str | None) -> None:
    """A panel's title, on the left; None: none. Dollar signs stay dollar signs."""
    if text:
        axes.set_title(text, loc="left", color=INK, fontsize=11.5, pad=10, parse_math=False)


def dress(axes: Axes) -> None:
    """Thin lines, no box, ticks in the muted colour: whatever the reader's own matplotlib settings are."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, pad=6, which="both")
    axes.grid(True, axis="y", color=GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(MUTED)
        axis.label.set_fontsize(10.5)


def legend(axes: Axes, **where: Any) -> None:
    """A legend without a frame, in the colour of the text; dollar signs stay dollar signs."""
    drawn = axes.legend(**{"frameon": False, "fontsize": 10, "labelcolor": INK, "handlelength": 2.4, **where})
    for text in drawn.get_texts():
        text.set_parse_math(False)


@contextmanager
def settings(*, svg_text: bool = False, salt: str = "sparring") -> Iterator[None]:
    """Settings while a figure is written: no time stamps, no random ids, so the same figure gives the same file."""
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none" if svg_text else "path",
            "svg.hashsalt": salt,
            "font.family": ["sans-serif"],
            "font.sans-serif": ["DejaVu Sans"],
        }
    ):
        yield


def rendered(figure: Figure, dpi: int = 110) -> npt.NDArray[np.uint8]:
    """The figure's pixels (H, W, 3)."""
    before = figure.dpi
    try:
        with settings():
            drawing: Any = FigureCanvasAgg(figure)
            figure.set_dpi(dpi)
            drawing.draw()
            return np.asarray(drawing.buffer_rgba())[..., :3].copy()
    finally:
        figure.set_dpi(before)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` as PNG or SVG, by the suffix of ``path``; a reader never sees a half-written file.

    Missing folders are made. Returns the path.

    Raises:
        ValueError: the suffix is neither ``.png`` nor ``.svg``.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"cannot save a figure as {path.name!r}: give a path that ends in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata: dict[str, str | None] = {"Date": None} if kind == "svg" else {"Software": None}
    try:
        with settings():
            figure.savefig(partial, format=kind, dpi=_PNG_DPI, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
