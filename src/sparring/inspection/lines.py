"""Logits along a line through a sample: between piecewise linear and linear, as networks are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sparring.borrow import borrow
from sparring.inspection import pictures, style
from sparring.inspection.gradients import Names, name_of
from sparring.inspection.landscape import BATCH, loss_gradient
from sparring.objective import check_label_range
from sparring.wrappers import Model


def logits_along(
    model: Model,
    x: Tensor,
    y: int,
    direction: Tensor | None = None,
    *,
    reach: float = 0.25,
    points: int = 101,
    names: Names = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The logits of x + t·direction: the true class's, and those that win at the ends. Goodfellow et al. (2015).

    Args:
        model: maps float x (B, *S) to logits (B, C); seen in eval mode, nothing of it changes.
        x, y: one sample *S without the batch dimension, of any kind, and its label.
        direction: *S; None: sign(d loss/dx) at x, the direction of FGSM, so that t is its eps.
        reach: t goes from −reach to reach, in units of the direction. points: on the line, each a forward.
        names: of the classes. title: of the panel. ax: where to draw; None: a new figure.

    Points are not clipped to the box. Picture: docs/gallery.md, "Logits along the gradient's sign".

    Raises:
        ValueError: a direction of another shape, a reach or points that span no line, or a label that the model doesn't have.
    """
    if direction is not None and direction.shape != x.shape:
        raise ValueError(f"direction of shape {tuple(direction.shape)}: expected that of the sample, {tuple(x.shape)}")
    if not reach > 0 or points < 2:
        raise ValueError(f"reach={reach}, points={points}: expected above 0, and at least 2")
    with torch.inference_mode(False), borrow(model) as borrowed:
        x = x.detach().clone()[None]
        label = torch.tensor([y], device=x.device)
        check_label_range(label, borrowed.look(x).shape[1])
        way = loss_gradient(borrowed, x, label).sign() if direction is None else direction.detach().clone().to(x)[None]
        t = torch.linspace(-reach, reach, points, dtype=torch.float64)
        places = torch.split(t.to(x).view(-1, *[1] * (x.ndim - 1)), BATCH)
        logits = torch.cat([borrowed.look(x + some * way) for some in places]).double().cpu()
    axes = style.panel(ax, 7.4, 3.9)
    logit_lines(axes, t.tolist(), logits.T.tolist(), y, names)
    axes.set_xlabel("t in x + t·sign(d loss / dx)" if direction is None else "t in x + t·direction")
    style.title(axes, title)
    return style.whole(axes)


def logit_lines(
    axes: Axes, t: Sequence[float], logits: Sequence[Sequence[float]], label: int, names: Names = None
) -> None:
    """Draws logits (C, T) at t (T,): in colour the true class and those that win at either end, the others in grey."""
    ends = {int(torch.tensor([line[end] for line in logits]).argmax()) for end in (0, -1)} - {label}
    named = 0
    for number in (label, *(number for number in range(len(logits)) if number != label)):
        line = logits[number]
        name = f"class {number}" if names is None else pictures.short(name_of(number, names))
        if number == label:
            axes.plot(t, line, color=style.CLEAN, linewidth=2.4, label=f"{name}, the true one", zorder=3)
        elif number in ends:
            color, dashes = style.SERIES[1 + named], style.DASHES[1 + named]
            axes.plot(t, line, color=color, linestyle=dashes, linewidth=2.2, label=name, zorder=3)
            named += 1
        else:
            axes.plot(t, line, color=style.GRID, linewidth=1.4)
    axes.axvline(0, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(x=0.01)
    axes.set_ylabel("logit")
    style.legend(axes, loc="best")
