"""How `linear` draws its four panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from sparring.experiments.record import dress_across
from sparring.inspection import style
from sparring.inspection.lines import logit_lines

if TYPE_CHECKING:
    from sparring.experiments.linear import Growth, Line, Transfer


def growth_panel(axes: Axes, growth: Sequence[Growth], eps: float) -> None:
    style.dress(axes)
    for number, network in enumerate(dict.fromkeys(g.network for g in growth)):
        rows, color = [g for g in growth if g.network == network], style.SERIES[number]
        n = [g.inputs for g in rows]
        axes.plot(n, [g.predicted for g in rows], color=color, linewidth=1.6, label=f"{network}, eps·m·n")
        dots: dict[str, Any] = {"linestyle": "", "color": color, "markersize": 7.5}
        axes.plot(n, [g.measured for g in rows], marker="o", label=f"{network}, measured", **dots)
        axes.plot(n, [g.at_random for g in rows], marker="x", label=f"{network}, random signs", **dots)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(which="minor", length=0)
    axes.minorticks_off()
    sizes = sorted({(g.inputs, g.side) for g in growth})
    axes.set_xticks([n for n, _ in sizes], [f"{n}\n{side}×{side}" for n, side in sizes])
    axes.set_xlabel("inputs n")
    axes.set_ylabel("growth of the score")
    style.title(axes, f"The score grows with the dimension (eps {eps:g})")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 25)  # room for the legend
    style.legend(axes, loc="upper left", ncols=2, columnspacing=1.2, handletextpad=0.5, borderaxespad=0.1)


def logits_panel(axes: Axes, line: Line) -> None:
    style.dress(axes)
    logit_lines(axes, line.t, line.logits, line.label)
    axes.set_xticks((-1, -0.5, 0, 0.5, 1))
    axes.set_xlabel("t in x + t·sign(gradient of the loss)")
    style.title(axes, "Logits of one image along the sign direction")


def error_panel(axes: Axes, line: Line) -> None:
    style.dress(axes)
    axes.plot(line.t, line.error, color=style.ROBUST, linewidth=2.4)
    axes.axvline(0, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xticks((-1, -0.5, 0, 0.5, 1))
    axes.set_xlabel("t in x + t·sign(gradient of the loss)")
    axes.set_ylabel("error")
    style.title(axes, "Error of the maxout network along it")


def transfer_panel(axes: Axes, transfer: Sequence[Transfer]) -> None:
    """A line a pair of networks and an eps, a dot an attack."""
    dress_across(axes)
    groups = list(dict.fromkeys((t.eps, t.crafted_on, t.shown_to) for t in transfer))
    attacks = list(dict.fromkeys(t.attack for t in transfer))
    for height, group in enumerate(reversed(groups)):
        for t in transfer:
            if (t.eps, t.crafted_on, t.shown_to) == group:
                number = attacks.index(t.attack)
                y = height + 0.2 * ((len(attacks) - 1) / 2 - number)
                color, marker = style.SERIES[number], "oDs^v"[number % 5]
                axes.plot([t.both.low, t.both.high], [y, y], color=color, linewidth=2)
                label = t.attack if height == 0 else None
                axes.plot(t.both.value, y, color=color, marker=marker, markersize=7, linestyle="", label=label)
    names = [f"{a}\n→ {b}, eps {eps:g}" for eps, a, b in reversed(groups)]
    axes.set_yticks(range(len(groups)), names, color=style.INK)
    axes.set_ylim(-0.6, len(groups) + 0.1)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("fool the target, of those that fool the source")
    style.title(axes, "Transfer, single-step and iterated")
    style.legend(axes, loc="upper left", ncols=len(attacks), columnspacing=1.2, handletextpad=0.2)
