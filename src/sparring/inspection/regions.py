"""Decision regions of networks that see two numbers."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sparring.borrow import borrow
from sparring.inspection import pictures, style
from sparring.inspection.gradients import Names, name_of
from sparring.inspection.landscape import paint
from sparring.wrappers import Model

BATCH = 4096


def decision_regions(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    limits: tuple[float, float, float, float] | None = None,
    points: int = 160,
    names: Names = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Which class a network sees where, for samples of two features, with the samples on top: paler where it is less sure.

    Args:
        model: maps float x (B, 2) to logits (B, C); seen in eval mode, nothing of it changes.
        x, y: samples (N, 2) and labels (N,), drawn as points; −1 marks samples without a label, as small grey dots.
        limits: (left, right, bottom, top) in input units; None: around the samples.
        points: on a side; points² forwards. names: of the classes. title: of the panel.
        ax: where to draw; None: a new figure.

    Picture: docs/gallery.md, "Decision regions".

    Raises:
        ValueError: samples that do not have two features, or points below 2.
    """
    if x.ndim != 2 or x.shape[1] != 2 or len(x) != len(y) or points < 2:
        raise ValueError(
            f"x {tuple(x.shape)}, y {tuple(y.shape)}, points={points}: decision regions are drawn for two features, "
            "expected (N, 2), (N,), and at least 2"
        )
    limits = _limits(x) if limits is None else limits
    with torch.inference_mode(False), borrow(model) as borrowed:
        across, up = (torch.linspace(limits[i], limits[i + 1], points).to(x) for i in (0, 2))
        grid = torch.stack([across.repeat(points), up.repeat_interleave(points)], 1)
        logits = torch.cat([borrowed.look(part) for part in torch.split(grid, BATCH)]).double().cpu()
    chance, seen = logits.softmax(1).view(points, points, -1).max(2)
    axes = style.panel(ax, 5.2, 4.4)
    axes.grid(False)
    paint(axes, seen, chance, range(logits.shape[1]), limits)
    spots, labels = x.detach().double().cpu(), y.detach().cpu()
    bare = spots[labels < 0]
    axes.plot(bare[:, 0], bare[:, 1], linestyle="", marker=".", markersize=3.5, color=style.MUTED, alpha=0.7)
    for number in range(logits.shape[1]):
        of = spots[labels == number]
        color = style.SERIES[number % len(style.SERIES)]
        name = pictures.short(name_of(number, names))
        axes.plot(
            of[:, 0], of[:, 1], linestyle="", marker=style.MARKERS[number % len(style.MARKERS)], markersize=5.5, color=color,
            markeredgecolor=style.PAPER, markeredgewidth=0.7, label=name if names is not None else f"class {name}",
        )  # fmt: skip
    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    axes.xaxis.set_major_locator(style.ticks(6))
    axes.yaxis.set_major_locator(style.ticks(6))
    style.title(axes, title)
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(logits.shape[1], 4), handlelength=1.0)
    return style.whole(axes)


def _limits(x: Tensor) -> tuple[float, float, float, float]:
    low, high = x.detach().double().amin(0), x.detach().double().amax(0)
    room = (high - low).clamp_min(1e-9) * 0.12
    (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
    return left, right, bottom, top
