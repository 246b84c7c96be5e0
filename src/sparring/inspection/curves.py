"""Lines: accuracy by the size of the perturbation, losses by step, norms by how often. Each returns a ``Figure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from sparring.inspection import style

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
Curve = Sequence[Mapping[str, float]]


def norm_name(norm: str) -> str:
    """A norm as a reader writes it.

    >>> norm_name("linf")
    'L∞'
    """
    return _NORMS.get(norm.lower(), norm)


def accuracy_curve(
    curve: Curve,
    *,
    norm: str = "linf",
    eps: float | None = None,
    eps_typed: str | None = None,
    size: tuple[float, float] = (7.4, 3.5),
    ax: Axes | None = None,
) -> Figure:
    """Accuracy against the size of the perturbation, with the interval of each point as a band.

    Args:
        curve: points with the keys ``eps`` (input units), ``value``, ``low`` and ``high`` (shares of 1), by rising eps.
        norm: what eps measures: ``"linf"``, ``"l2"``, ``"l1"``, ``"l0"`` or ``"words"`` (the share of a text's words).
        eps: marked by a vertical line, where given.
        eps_typed: eps as the user wrote it; ``"8/255"`` makes the axis count in 1/255.
        size: inches, of a new figure.
        ax: where to draw; None: a new figure.

    Picture: docs/gallery.md, "Accuracy against eps".

    Raises:
        ValueError: the curve is empty.
    """
    axes = style.panel(ax, *size)
    steps, values = _band(axes, curve, style.ROBUST, "-", "accuracy, at most", "Wilson 95% interval")
    # the ends are what a reader looks for: the first point has no attack in it, the last is the robust accuracy
    axes.plot(steps[:1], values[:1], color=style.CLEAN, marker="o", markersize=7, linestyle="", clip_on=False, zorder=4)
    _eps_axis(axes, steps, norm, eps, eps_typed, crowded=values[-1] > 0.8)
    return style.whole(axes)


def accuracy_curves(
    curves: Mapping[str, Curve],
    *,
    norm: str = "linf",
    eps: float | None = None,
    eps_typed: str | None = None,
    title: str | None = None,
    size: tuple[float, float] = (7.4, 3.9),
    ax: Axes | None = None,
) -> Figure:
    """Accuracy against the size of the perturbation, a line and the band of its interval for each of several networks.

    Args:
        curves: name → points as for `accuracy_curve`: ``{"plain": plain.curve, "robust": robust.curve}`` of two
            `sp.evaluate` results.
        norm, eps, eps_typed, size, ax: as for `accuracy_curve`.
        title: of the panel.

    Picture: docs/gallery.md, "Accuracy against eps".

    Raises:
        ValueError: there is no curve, or an empty one.
    """
    if not curves:
        raise ValueError("accuracy curves need at least one curve, got none")
    axes = style.panel(ax, *size)
    ends = []
    for number, (name, curve) in enumerate(curves.items()):
        color, dashes = style.SERIES[number % len(style.SERIES)], style.DASHES[number % 4]
        ends.append(_band(axes, curve, color, dashes, name))
    _eps_axis(axes, sorted({e for steps, _ in ends for e in steps}), norm, eps, eps_typed)
    axes.set_ylabel("accuracy, at most")
    style.title(axes, title)
    style.legend(axes)
    return style.whole(axes)


def _band(
    axes: Axes, curve: Curve, color: str, dashes: str, name: str, band: str | None = None
) -> tuple[list[float], list[float]]:
    """Draws one curve; its eps and its values."""
    if not curve:
        raise ValueError("an accuracy curve needs at least one point, got none: is the run's `curve` empty?")
    steps = [float(point["eps"]) for point in curve]
    values = [float(point["value"]) for point in curve]
    low, high = [float(point["low"]) for point in curve], [float(point["high"]) for point in curve]
    axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0, label=band)
    marker = "o" if len(steps) <= 40 else ""
    axes.plot(steps, values, color=color, linestyle=dashes, linewidth=2.2, marker=marker, markersize=3.6, label=name)
    return steps, values


def _eps_axis(
    axes: Axes, steps: Sequence[float], norm: str, eps: float | None, eps_typed: str | None, crowded: bool | None = None
) -> None:
    """Shares upwards, eps across; eps is told at the top, where that is crowded at the foot, or (None) in the legend."""
    last = max(steps[-1], eps or 0.0)
    if eps is not None:
        label = _eps_line(axes, eps, eps_typed, in_legend=crowded is None)
        if crowded is not None:
            axes.annotate(
                label,
                (eps, 0.0 if crowded else 1.0),
                xytext=(-6 if eps > last / 2 else 6, 6 if crowded else -2),
                textcoords="offset points",
                ha="right" if eps > last / 2 else "left",
                va="bottom" if crowded else "top",
                color=style.MUTED,
                fontsize=10,
                parse_math=False,
            )
    axes.set_ylim(0, 1)
    axes.set_xlim(0 if steps[0] >= 0 else steps[0], last * 1.02 if last > 0 else 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    _sizes(axes, norm, eps_typed)


def _eps_line(axes: Axes, eps: float, eps_typed: str | None, in_legend: bool) -> str:
    """Draws it; what it is called."""
    label = f"eps = {eps_typed if eps_typed is not None and len(eps_typed) <= 24 else f'{eps:.4g}'}"
    axes.axvline(eps, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), label=label if in_legend else None)
    return label


def _in_255ths(eps_typed: str | None) -> bool:
    return eps_typed is not None and eps_typed.replace(" ", "").endswith("/255")


def _told(size: float, eps_typed: str | None) -> str:
    return f"{size * 255:.3g}/255" if _in_255ths(eps_typed) else f"{size:.3g}"


def _sizes(axes: Axes, norm: str, eps_typed: str | None) -> None:
    """The axis across counts sizes of perturbations, in 1/255 where eps was typed so."""
    name = f"{norm_name(norm)} norm of the perturbation"
    if norm == "words":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_xlabel("share of a text's words that may be changed")
        return
    if _in_255ths(eps_typed):
        limit = axes.get_xlim()[1] * 255
        ticks = [tick for tick in MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, limit) if tick <= limit]
        axes.set_xticks([tick / 255 for tick in ticks], [f"{tick:g}" for tick in ticks])
        name += ", in 1/255"
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=norm.lower() == "l0"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.set_xlabel(name)


def loss_curves(
    curves: Mapping[str, Sequence[float]],
    *,
    reached: Mapping[str, int | None] | None = None,
    ylabel: str = "loss",
    log: bool = False,
    title: str | None = None,
    size: tuple[float, float] = (7.4, 3.9),
    ax: Axes | None = None,
) -> Figure:
    """Losses by step, one line per name, told apart by colour and by dashes: optimisers side by side.

    Args:
        curves: name to one loss per step, the first before any update.
        reached: name to the step at which its target was first reached (``None``: never); marked on the line.
        ylabel: the name of the value.
        log: a logarithmic axis; every loss must then be positive.
        title: a line above the panel.
        size: inches, of a new figure.
        ax: where to draw; None: a new figure.

    Picture: docs/gallery.md, "Optimisers on one image".

    Raises:
        ValueError: no curves, an empty curve, or ``log`` with a loss that is not positive.
    """
    empty = [name for name, losses in curves.items() if len(losses) == 0]
    if not curves or empty:
        raise ValueError(f"loss curves need at least one loss each, got none{f' for {empty[0]!r}' if empty else ''}")
    if log:
        bad = [name for name, losses in curves.items() if min(losses) <= 0]
        if bad:
            raise ValueError(f"a logarithmic axis needs positive losses, {bad[0]!r} has others: use log=False")
    axes = style.panel(ax, *size)
    for number, (name, losses) in enumerate(curves.items()):
        step = (reached or {}).get(name)
        color = style.SERIES[number % len(style.SERIES)]
        label = name if step is None else f"{name}, target at step {step}"
        axes.plot(losses, color=color, linestyle=style.DASHES[number % 4], linewidth=2, label=label)
        if step is not None and 0 <= step < len(losses):
            axes.plot([step], [losses[step]], color=color, marker="o", markersize=7, markeredgecolor=style.PAPER)
    if log:
        axes.set_yscale("log")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(style.whole_ticks(10))
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    style.title(axes, title)
    style.legend(axes)
    return style.whole(axes)


def norm_histogram(
    norms: Mapping[str, Tensor],
    *,
    norm: str = "l2",
    eps: float | None = None,
    eps_typed: str | None = None,
    bins: int = 30,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """How large the perturbations are: for each attack or network, the share of samples by size.

    Args:
        norms: name → sizes (N,) in input units, such as `Adversarial.norm` of a minimal-norm attack, or
            `EvaluationResult.distance`. Samples that nothing fooled (inf, NaN) are counted in the legend, not drawn.
        norm: what the sizes are in. eps, eps_typed: marked, and the axis counts in 1/255, as in `accuracy_curve`.
        bins: of equal width, shared by all.
        ax: where to draw; None: a new figure.

    Picture: docs/gallery.md, "How small a perturbation suffices".

    Raises:
        ValueError: there is no finite size.
    """
    found = {name: torch.as_tensor(sizes).detach().double().cpu().flatten() for name, sizes in norms.items()}
    finite = [sizes[sizes.isfinite()] for sizes in found.values()]
    if not any(len(sizes) for sizes in finite):
        raise ValueError("a histogram of norms needs at least one finite size, got none")
    axes = style.panel(ax, 7.4, 3.9)
    edges = np.linspace(0.0, max(float(torch.cat(finite).max()), eps or 0.0) or 1.0, bins + 1)
    for number, ((name, sizes), drawn) in enumerate(zip(found.items(), finite)):
        color = style.SERIES[number % len(style.SERIES)]
        never = len(sizes) - len(drawn)
        label = f"{name}, median {_told(float(drawn.median()), eps_typed)}" if len(drawn) else name
        heights = np.histogram(drawn.numpy(), edges)[0] / max(len(sizes), 1)
        label += f" ({never} of {len(sizes)} withstood it)" if never else ""
        axes.stairs(heights, edges, fill=True, color=color, alpha=0.16)
        axes.stairs(heights, edges, color=color, linewidth=1.9, linestyle=style.DASHES[number % 4], label=label)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.28)  # room for the legend
    if eps is not None:
        _eps_line(axes, eps, eps_typed, in_legend=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    axes.set_ylabel("share of the samples")
    _sizes(axes, norm, eps_typed)
    style.title(axes, title)
    style.legend(axes)
    return style.whole(axes)
