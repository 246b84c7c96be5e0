"""The figures: each function returns a matplotlib ``Figure`` of its own and leaves pyplot alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from sparring.inspection import pixels as px
from sparring.inspection import style

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def norm_name(norm: str) -> str:
    """A norm as a reader writes it.

    >>> norm_name("linf")
    'L∞'
    """
    return _NORMS.get(norm.lower(), norm)


def accuracy_curve(
    curve: Sequence[Mapping[str, float]],
    *,
    norm: str = "linf",
    eps: float | None = None,
    eps_typed: str | None = None,
    size: tuple[float, float] = (7.4, 3.5),
) -> Figure:
    """Accuracy against the size of the perturbation, with the interval of each point as a band.

    Args:
        curve: points with the keys ``eps`` (input units), ``value``, ``low`` and ``high`` (shares of 1), by rising eps.
        norm: what eps measures: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
        eps: marked by a vertical line, where given.
        eps_typed: eps as the user wrote it; ``"8/255"`` makes the axis count in 1/255.
        size: inches.

    Raises:
        ValueError: the curve is empty.
    """
    if not curve:
        raise ValueError("an accuracy curve needs at least one point, got none: is the run's `curve` empty?")
    figure = style.new_figure(*size)
    axes = figure.add_subplot()
    style.dress(axes)
    steps = [float(point["eps"]) for point in curve]
    values = [float(point["value"]) for point in curve]
    low, high = [float(point["low"]) for point in curve], [float(point["high"]) for point in curve]
    axes.fill_between(steps, low, high, color=style.ROBUST, alpha=0.18, linewidth=0, label="Wilson 95% interval")
    marker = "o" if len(steps) <= 40 else ""
    axes.plot(
        steps, values, color=style.ROBUST, linewidth=2.2, marker=marker, markersize=3.6, label="accuracy, at most"
    )
    # the ends are what a reader looks for: the first point has no attack in it, the last is the robust accuracy
    axes.plot(steps[:1], values[:1], color=style.CLEAN, marker="o", markersize=7, linestyle="", clip_on=False, zorder=4)

    last = max(steps[-1], eps or 0.0)
    if eps is not None:
        axes.axvline(eps, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        label = eps_typed if eps_typed is not None and len(eps_typed) <= 24 else f"{eps:.4g}"
        crowded = values[-1] > 0.8
        axes.annotate(
            f"eps = {label}",
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
    name = f"{norm_name(norm)} norm of the perturbation"
    if eps_typed is not None and eps_typed.replace(" ", "").endswith("/255"):
        limit = axes.get_xlim()[1] * 255
        ticks = [tick for tick in MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, limit) if tick <= limit]
        axes.set_xticks([tick / 255 for tick in ticks], [f"{tick:g}" for tick in ticks])
        name += ", in 1/255"
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=norm.lower() == "l0"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.set_xlabel(name)
    return figure


def triptych(
    original: Tensor,
    adversarial: Tensor,
    *,
    before: tuple[str, float] | None = None,
    after: tuple[str, float] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    factor: float | None = None,
    note: str | None = None,
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

    Raises:
        ValueError: the shapes differ, or can be drawn neither as a picture nor as lines.
    """
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
    factor = px.amplification(original, adversarial, bounds) if factor is None else factor
    height = 1.0
    if kind == "image":
        rows, columns = px.pixels(original, bounds).shape[:2]
        height = min(max(rows / columns, 0.35), 2.0)
    figure = style.new_figure(9.6, 3.05 * height + 0.95)
    panels: Sequence[Axes] = figure.subplots(1, 3)
    if kind == "image":
        change = px.amplified(original, adversarial, factor, bounds)
        for axes, picture in zip(panels, (original, change, adversarial)):
            shown = px.pixels(picture, bounds)
            smooth = "nearest" if max(shown.shape[:2]) <= 96 else "antialiased"
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
            axes.set_axis_off()
    else:
        _lines(panels, original, adversarial, factor, bounds)
    times = "perturbation" if factor == 1 else f"perturbation × {factor:g}"
    for axes, title, below in zip(
        panels, ("original", times, "adversarial"), (_confidence(before), note, _confidence(after))
    ):
        axes.set_title(title, color=style.MUTED, fontsize=11, pad=7)
        if below:
            axes.text(
                0.5,
                -0.045 if kind == "image" else -0.16,
                below,
                transform=axes.transAxes,
                ha="center",
                va="top",
                color=style.MUTED if below == note else style.INK,
                fontsize=11 if below == note else 12.5,
                parse_math=False,
            )
    return figure


def _confidence(seen: tuple[str, float] | None) -> str | None:
    if seen is None:
        return None
    name = seen[0] if len(seen[0]) <= 26 else seen[0][:25].rstrip() + "…"
    return f"{name}  {seen[1]:.1%}"


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


def loss_curves(
    curves: Mapping[str, Sequence[float]],
    *,
    reached: Mapping[str, int | None] | None = None,
    ylabel: str = "loss",
    log: bool = False,
    title: str | None = None,
    size: tuple[float, float] = (7.4, 3.9),
) -> Figure:
    """Losses by step, one line per name, told apart by colour and by dashes.

    Args:
        curves: name to one loss per step, the first before any update.
        reached: name to the step at which its target was first reached (``None``: never); marked on the line.
        ylabel: the name of the value.
        log: a logarithmic axis; every loss must then be positive.
        title: a line above the figure.
        size: inches.

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
    figure = style.new_figure(*size)
    axes = figure.add_subplot()
    style.dress(axes)
    for number, (name, losses) in enumerate(curves.items()):
        step = (reached or {}).get(name)
        color = style.SERIES[number % len(style.SERIES)]
        label = name if step is None else f"{name}, target at step {step}"
        label = label.replace("$", r"\$")
        axes.plot(losses, color=color, linestyle=style.DASHES[number % 4], linewidth=2, label=label)
        if step is not None and 0 <= step < len(losses):
            axes.plot([step], [losses[step]], color=color, marker="o", markersize=7, markeredgecolor=style.PAPER)
    if log:
        axes.set_yscale("log")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, loc="left", color=style.INK, fontsize=12, pad=10)
    style.legend(axes)
    return figure
