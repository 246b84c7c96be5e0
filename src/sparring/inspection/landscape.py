"""The loss, and the classes, around one sample: on the plane of an adversarial and a random direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from sparring.borrow import Borrowed, borrow
from sparring.inspection import pictures, style
from sparring.inspection.gradients import Names, name_of
from sparring.noise import Noise
from sparring.objective import check_label_range, cross_entropy, margin
from sparring.wrappers import Model

BATCH = 256


def loss_surface(
    model: Model,
    x: Tensor,
    y: int,
    eps: float,
    *,
    adversarial: Tensor | None = None,
    reach: float = 2.0,
    points: int = 31,
    seed: int = 0,
    highest: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Cross-entropy around a sample, x + a·d + b·r: d an adversarial direction, r random signs. After Tramèr et al. (2018).

    A smooth slope says that gradients lead the way; a cliff beside a plain, or a surface like a crumpled sheet, that they
    are masked. The square is the L∞ ball, the dark line the edge of the true class.

    Args:
        model: maps float x (B, *S) to logits (B, C); seen in eval mode, nothing of it changes.
        x, y: one sample *S without the batch dimension, of any kind, and its label.
        eps: of the ball, in input units.
        adversarial: *S, an example; d then leads to it, and a = eps is where it lies. None: d = sign(d loss/dx) at x.
        reach: how far to look, in eps. points: on a side; points² forwards. seed: of the random signs.
        highest: the loss at the end of the colours; None: the largest seen. title: of the panel.
        ax: where to draw; None: a new figure.

    Points are not clipped to the box. Picture: docs/gallery.md, "The loss around a sample".

    Raises:
        ValueError: eps, reach or points that span no plane, or a label that the model doesn't have.
    """
    plane = Plane.around(model, x, y, eps, adversarial, reach, points, seed)
    true = torch.full((points * points,), y)
    loss = cross_entropy(plane.logits.flatten(0, 1), true).view(points, points).double()
    axes = style.panel(ax, 5.6, 4.5)
    top = float(loss.max()) if highest is None else highest
    places = plane.places.numpy()
    drawn = axes.pcolormesh(
        places, places, loss.numpy(), cmap=style.AMOUNT, vmin=0.0, vmax=top or 1.0, shading="gouraud", rasterized=True
    )
    axes.contour(places, places, loss.numpy(), levels=style.ticks(8).tick_values(0.0, top or 1.0)[1:], colors=style.PAPER,
                 linewidths=0.6, alpha=0.75)  # fmt: skip
    ahead = margin(plane.logits.flatten(0, 1), true).view(points, points).double()
    if float(ahead.min()) < 0 < float(ahead.max()):
        axes.contour(places, places, ahead.numpy(), levels=[0.0], colors=style.INK, linewidths=1.6)
    _dress(axes, plane, title)
    bar = style.whole(axes).colorbar(drawn, ax=axes, shrink=0.9, aspect=22, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=style.MUTED, labelsize=9.5, length=0)
    bar.set_label("cross-entropy (nats)", color=style.MUTED, fontsize=10)
    return style.whole(axes)


def decision_plane(
    model: Model,
    x: Tensor,
    y: int,
    eps: float,
    *,
    adversarial: Tensor | None = None,
    reach: float = 2.0,
    points: int = 101,
    seed: int = 0,
    names: Names = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Which class a network sees around a sample, on the plane of `loss_surface`: the paler, the less sure.

    Args: as for `loss_surface`; names: of the classes. Picture: docs/gallery.md, "The classes around a sample".

    Raises:
        ValueError: as `loss_surface`.
    """
    plane = Plane.around(model, x, y, eps, adversarial, reach, points, seed)
    axes = style.panel(ax, 5.6, 4.5)
    chance, seen = plane.logits.double().softmax(2).max(2)
    order = [
        y,
        *(c for c in seen.flatten().bincount().argsort(descending=True).tolist() if c != y and (seen == c).any()),
    ]
    paint(axes, seen, chance, order, extent=(-plane.reach, plane.reach, -plane.reach, plane.reach))
    handles = [Patch(facecolor=tint(order.index(number), 1.0), label=pictures.short(name_of(number, names)))
               for number in order[:6]]  # fmt: skip
    _dress(axes, plane, title)
    style.legend(axes, handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1.2, borderaxespad=0)
    return style.whole(axes)


def tint(number: int, strength: float) -> tuple[float, float, float]:
    """The colour of the number-th class, mixed with paper; strength 0 to 1."""
    color = style.SERIES[number % len(style.SERIES)]
    share = 0.12 + 0.58 * strength
    red, green, blue = (1 - share * (1 - int(color[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return red, green, blue


def paint(
    axes: Axes, seen: Tensor, chance: Tensor, order: Sequence[int], extent: tuple[float, float, float, float]
) -> None:
    """Regions (H, W) of classes, row 0 at the foot; how sure the network is tells how strong the colour is."""
    low = 1 / max(len(order), 2)
    strength = ((chance - low) / (1 - low)).clamp(0, 1)
    place = torch.zeros(max(order) + 1, dtype=torch.long)
    place[torch.tensor(list(order))] = torch.arange(len(order)) % len(style.SERIES)
    full = torch.tensor([tint(number, 1.0) for number in range(len(style.SERIES))], dtype=torch.float64)
    pale = torch.tensor([tint(number, 0.0) for number in range(len(style.SERIES))], dtype=torch.float64)
    colours = pale[place[seen]] + strength[..., None] * (full - pale)[place[seen]]
    axes.imshow(colours.numpy(), origin="lower", extent=extent, interpolation="nearest", aspect="auto", rasterized=True)


@dataclass(frozen=True)
class Plane:
    """Logits (P, P, C) on x + a·d + b·r: b by row, a by column, both at `places` (P,), in eps, from −reach to reach."""

    logits: Tensor
    places: Tensor
    reach: float
    typed: str

    @classmethod
    def around(
        cls,
        model: Model,
        x: Tensor,
        y: int,
        eps: float,
        adversarial: Tensor | None,
        reach: float,
        points: int,
        seed: int,
    ) -> Plane:
        if not eps > 0 or not reach > 0 or points < 2:
            raise ValueError(f"eps={eps}, reach={reach}, points={points}: expected above 0, above 0, and at least 2")
        with torch.inference_mode(False), borrow(model) as borrowed:
            x = x.detach().clone()[None]
            label = torch.tensor([y], device=x.device)
            check_label_range(label, borrowed.look(x).shape[1])
            if adversarial is None:
                ahead = eps * loss_gradient(borrowed, x, label).sign()
            else:
                ahead = adversarial.detach().clone().to(x)[None] - x
            aside = eps * Noise(seed, torch.zeros(1, dtype=torch.long)).sign(tuple(x.shape[1:]), "plane", like=x)
            places = torch.linspace(-reach, reach, points, dtype=torch.float64)
            a = places.to(x).repeat(points).view(-1, *[1] * (x.ndim - 1))
            b = places.to(x).repeat_interleave(points).view(-1, *[1] * (x.ndim - 1))
            rows = [
                borrowed.look(x + some * ahead + other * aside).cpu()
                for some, other in zip(torch.split(a, BATCH), torch.split(b, BATCH))
            ]
        return cls(
            torch.cat(rows).view(points, points, -1),
            places,
            reach,
            "adversarial" if adversarial is not None else "sign",
        )


def loss_gradient(borrowed: Borrowed, x: Tensor, y: Tensor) -> Tensor:
    """Of each sample's cross-entropy, with respect to x."""
    return borrowed.probe(x, lambda logits: cross_entropy(logits, y))[2]


def _dress(axes: Axes, plane: Plane, title: str | None) -> None:
    axes.grid(False)
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor=style.INK, linewidth=1.1, linestyle=(0, (4, 3))))
    axes.plot([0], [0], marker="o", markersize=6, color=style.INK, markeredgecolor=style.PAPER)
    if plane.typed == "adversarial":
        axes.plot([1], [0], marker="X", markersize=8, color=style.INK, markeredgecolor=style.PAPER)
    axes.set_xlim(-plane.reach, plane.reach)
    axes.set_ylim(-plane.reach, plane.reach)
    axes.xaxis.set_major_locator(style.ticks(5))
    axes.yaxis.set_major_locator(style.ticks(5))
    towards = "to the adversarial example" if plane.typed == "adversarial" else "along sign(d loss / dx)"
    axes.set_xlabel(f"eps {towards}")
    axes.set_ylabel("eps along random signs")
    style.title(axes, title)
