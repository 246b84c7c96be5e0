"""Samples side by side with what was done to them. Each returns a ``Figure``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from sparring.inspection import pixels as px
from sparring.inspection import style

Seen = tuple[str, float]
"""A class as a reader knows it, and its probability."""


def show(axes: Axes, image: Any, **how: Any) -> None:
    """A picture without axes: small ones with their pixels' edges, large ones smoothed."""
    smooth = "nearest" if max(image.shape[:2]) <= 96 else "antialiased"
    axes.imshow(image, interpolation=smooth, **how)
    axes.set_axis_off()


def show_sample(axes: Axes, image: Tensor, bounds: px.Bounds) -> None:
    show(axes, px.pixels(image, bounds), cmap="gray", vmin=0, vmax=255)


def caption(axes: Axes, text: str | None, *, below: float = -0.045, quiet: bool = False) -> None:
    """A line under a panel, in the colour of what matters or of what is said beside it."""
    if text:
        color, size = (style.MUTED, 11.0) if quiet else (style.INK, 12.5)
        where: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "top", "parse_math": False}
        axes.text(0.5, below, text, color=color, fontsize=size, **where)


def heading(axes: Axes, text: str) -> None:
    axes.set_title(text, color=style.MUTED, fontsize=11, pad=7, parse_math=False)


def short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def confidence(seen: Seen | None) -> str | None:
    return None if seen is None else f"{short(seen[0])}  {seen[1]:.1%}"


def need_images(x: Tensor, what: str) -> None:
    """ValueError, in one line, where samples x (B, *S) have no pixels to draw."""
    if px.layout(x.shape[1:]) != "image":
        raise ValueError(
            f"{what} is drawn on pictures: samples of shape {tuple(x.shape[1:])} are none, expected (C, H, W) or (H, W)"
        )


def shape_of(image: Tensor) -> float:
    """Height over width of a picture, within what a panel can take."""
    rows, columns = (int(size) for size in px.pixels(image).shape[:2])
    return min(max(rows / columns, 0.35), 2.0)


def triptych(
    original: Tensor,
    adversarial: Tensor,
    *,
    before: Seen | None = None,
    after: Seen | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    factor: float | None = None,
    note: str | None = None,
    fig: FigureBase | None = None,
) -> Figure:
    """Original, perturbation and adversarial example side by side.

    Args:
        original: one sample: (C, H, W) or (H, W) is drawn as a picture, (L,) or (C, L) as lines; values in ``bounds``.
        adversarial: the same shape.
        before: the class that the model saw in ``original``, and its probability.
        after: the same for ``adversarial``.
        bounds: the box that the samples live in.
        factor: what the perturbation is multiplied by before it is drawn around mid-grey; by default as much as fits.
        note: a line under the perturbation, such as ``"L∞ norm 8/255"``.
        fig: where to draw; None: a new figure.

    Picture: docs/gallery.md, "The perturbation, amplified".

    Raises:
        ValueError: the shapes differ, or can be drawn neither as a picture nor as lines.
    """
    kind = _kind(original, adversarial)
    factor = px.amplification(original, adversarial, bounds) if factor is None else factor
    height = shape_of(original) if kind == "image" else 1.0
    figure = style.canvas(fig, 9.6, 3.05 * height + 0.95)
    panels: Sequence[Axes] = figure.subplots(1, 3)
    if kind == "image":
        change = px.amplified(original, adversarial, factor, bounds)
        for axes, picture in zip(panels, (original, change, adversarial)):
            show_sample(axes, picture, bounds)
    else:
        _lines(panels, original, adversarial, factor, bounds)
    for axes, title in zip(panels, ("original", _times(factor), "adversarial")):
        heading(axes, title)
    below = -0.045 if kind == "image" else -0.16
    caption(panels[0], confidence(before), below=below)
    caption(panels[1], note, below=below, quiet=True)
    caption(panels[2], confidence(after), below=below)
    return style.whole(figure)


def gallery(
    originals: Tensor,
    adversarials: Tensor,
    *,
    before: Sequence[Seen] | None = None,
    after: Sequence[Seen] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    fig: FigureBase | None = None,
) -> Figure:
    """Several samples, a column each: the original, the perturbation (all with one factor), the adversarial example.

    Args:
        originals, adversarials: (N, C, H, W) or (N, H, W), values in ``bounds``.
        before, after: what the model saw in each, and with which probability; classes that changed are coloured.
        fig: where to draw; None: a new figure.

    Picture: docs/gallery.md, "A gallery of examples".

    Raises:
        ValueError: the shapes differ, there is no sample, or the samples are no pictures.
    """
    if originals.shape != adversarials.shape or not len(originals):
        raise ValueError(
            f"originals {tuple(originals.shape)} and adversarials {tuple(adversarials.shape)}: expected one shape, and "
            "at least one sample"
        )
    need_images(originals, "a gallery")
    factor = px.amplification(originals, adversarials, bounds)
    columns = len(originals)
    side = 1.62
    figure = style.canvas(fig, side * columns + 0.75, 3 * side * shape_of(originals[0]) + 1.05)
    panels = figure.subplots(3, columns, squeeze=False)
    change = px.amplified(originals, adversarials, factor, bounds)
    for row, pictures in enumerate((originals, change, adversarials)):
        for column in range(columns):
            show_sample(panels[row, column], pictures[column], bounds)
        name = ("original", _times(factor).replace(" ×", "\n×"), "adversarial")[row]
        panels[row, 0].text(
            -0.09, 0.5, name, transform=panels[row, 0].transAxes, rotation=90, ha="right", va="center",
            multialignment="center", color=style.MUTED, fontsize=10,
        )  # fmt: skip
    for row, said in ((0, before), (2, after)):
        for column, seen in enumerate(said or ()):
            text = f"{short(seen[0], 15)}\n{seen[1]:.0%}"
            changed = row == 2 and before is not None and before[column][0] != seen[0]
            color = style.ROBUST if changed else style.INK
            panels[row, column].set_title(text, color=color, fontsize=9.5, pad=5, parse_math=False)
    return style.whole(figure)


def perturbation(
    original: Tensor,
    adversarial: Tensor,
    *,
    factor: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Figure:
    """What was added to a sample, multiplied until it shows, around mid-grey.

    Args:
        original, adversarial: (C, H, W) or (H, W), values in ``bounds``.
        factor: what it is multiplied by; None: as much as fits.
        ax: where to draw; None: a new figure.

    Picture: docs/gallery.md, "The perturbation, amplified".

    Raises:
        ValueError: the shapes differ, or are no picture's.
    """
    if _kind(original, adversarial) != "image":
        need_images(original[None], "a perturbation")
    factor = px.amplification(original, adversarial, bounds) if factor is None else factor
    axes = style.panel(ax, 3.6, 3.6 * shape_of(original) + 0.4)
    show_sample(axes, px.amplified(original, adversarial, factor, bounds), bounds)
    heading(axes, _times(factor))
    return style.whole(axes)


def _times(factor: float) -> str:
    return "perturbation" if factor == 1 else f"perturbation × {factor:g}"


def _kind(original: Tensor, adversarial: Tensor) -> str:
    """How the two are drawn. ValueError where they can't be."""
    if original.shape != adversarial.shape:
        raise ValueError(
            f"original {tuple(original.shape)} and adversarial {tuple(adversarial.shape)} must have one shape: "
            "give a single sample of each, without the batch dimension"
        )
    kind = px.layout(original.shape)
    if kind == "none":
        raise ValueError(
            f"cannot draw a sample of shape {tuple(original.shape)}: give (C, H, W), (H, W), (C, L) or (L,)"
        )
    return kind


def _lines(
    panels: Sequence[Axes], original: Tensor, adversarial: Tensor, factor: float, bounds: tuple[float, float]
) -> None:
    change = (adversarial.detach().double() - original.detach().double()) * factor
    middle = (bounds[0] + bounds[1]) / 2
    for axes, sample in zip(panels, (original, change + middle, adversarial)):
        style.dress(axes)
        for number, row in enumerate(px.signal(sample)):
            axes.plot(row, color=style.SERIES[number % len(style.SERIES)], linewidth=1.2)
        axes.set_ylim(*bounds)
