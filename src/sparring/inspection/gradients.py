"""What a logit depends on: its gradient at the input, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from sparring.borrow import borrow
from sparring.inspection import pictures, style
from sparring.wrappers import Model

Names = Sequence[str] | None


def logit_gradients(
    model: Model, x: Tensor, classes: Tensor | None = None, *, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, C), and the gradients of chosen logits with respect to x, each sample's own. Nothing of the model changes.

    Args:
        model: maps float x (B, *S) to logits (B, C); seen in eval mode.
        x: (B, *S), also one made in inference mode.
        classes: int64 (B,) or (B, k), of each sample; None: the class it is predicted to be.
        autocast: the mixed precision to run the model in.

    Returns:
        logits, and gradients (B, *S) for classes (B,), (B, k, *S) for (B, k). One forward, k backwards a sample (and one
        more forward where classes is None).

    Raises:
        ValueError: a class that the model doesn't have, or another number of samples than in x.

    >>> from torch import nn
    >>> model = nn.Linear(3, 2)
    >>> logits, gradients = logit_gradients(model, torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))
    >>> torch.equal(gradients, model.weight.detach()[[0, 1, 1, 0]])
    True
    """
    with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False), borrow(model, autocast) as borrowed:
        x = x.detach().clone()
        chosen = borrowed.look(x).argmax(1) if classes is None else classes.detach().clone().to(x.device)
        if chosen.ndim not in (1, 2) or len(chosen) != len(x):
            raise ValueError(
                f"classes of shape {tuple(chosen.shape)}: expected one or more of each of {len(x)} samples"
            )
        columns = chosen if chosen.ndim == 2 else chosen[:, None]

        def of(logits: Tensor) -> Tensor:
            if len(columns) and (int(columns.min()) < 0 or int(columns.max()) >= logits.shape[1]):
                raise ValueError(f"classes {columns.tolist()}: the model has {logits.shape[1]}, from 0")
            return logits.gather(1, columns)  # each sample's own: a column's sum would mix in what others are

        logits, _, gradients = borrowed.probe(x, of)
    return logits, gradients if chosen.ndim == 2 else gradients[:, 0]


def signed(gradient: Tensor) -> Tensor:
    """A gradient (C, H, W) or (H, W) as (H, W): the sum over channels, what an equal change of all of them does."""
    return gradient.detach().double().cpu().reshape(-1, *gradient.shape[-2:]).sum(0)


def absolute(gradient: Tensor) -> Tensor:
    """A gradient (C, H, W) or (H, W) as (H, W): the largest magnitude over channels (Simonyan et al., 2014)."""
    return gradient.detach().double().cpu().reshape(-1, *gradient.shape[-2:]).abs().amax(0)


def saliency(
    model: Model,
    x: Tensor,
    label: int | None = None,
    *,
    names: Names = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    fig: FigureBase | None = None,
) -> Figure:
    """What one logit depends on: the image, d logit/dx with its sign, and its magnitude. Simonyan et al. (2014).

    Args:
        model: maps float x (B, *S) to logits (B, C); seen in eval mode, nothing of it changes.
        x: one image (C, H, W) or (H, W), without the batch dimension, values in ``bounds``.
        label: whose logit; None: of the class it is predicted to be.
        names: of the classes.
        fig: where to draw; None: a new figure.

    Of colour images the signed panel shows the sum over channels, the absolute one the largest. Scales are in logits per
    input unit. Picture: docs/gallery.md, "Saliency".

    Raises:
        ValueError: x is no image, or there is no such class.
    """
    pictures.need_images(x[None], "saliency")
    logits, gradients = logit_gradients(model, x[None], None if label is None else torch.tensor([label]))
    gradient = gradients[0]
    chance = logits[0].double().softmax(0)
    shown = int(logits[0].argmax()) if label is None else label
    height = pictures.shape_of(x)
    figure = style.canvas(fig, 10.2, 2.75 * height + 0.95)
    panels: Sequence[Axes] = figure.subplots(1, 3)
    pictures.show_sample(panels[0], x, bounds)
    pictures.heading(panels[0], "image")
    pictures.caption(panels[0], pictures.confidence((name_of(shown, names), float(chance[shown]))))
    heat(panels[1], signed(gradient), f"d logit “{pictures.short(name_of(shown, names), 18)}” / dx", scale=True)
    heat(panels[2], absolute(gradient), "its magnitude", scale=True, both=False)
    return style.whole(figure)


def confused_logits(
    image: Tensor,
    gradients: Tensor,
    classes: tuple[int, int],
    logits: tuple[float, float],
    *,
    label: int | None = None,
    factor: float = 2.0,
    names: Names = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    fig: FigureBase | None = None,
) -> Figure:
    """Two classes that a network can't decide between: the image and the gradient of both logits; below, both at work.

    2 × 3 panels: the image, d logit_a/dx, d logit_b/dx; the labels, image + factor · d logit_a/dx, and the same for b.

    Args:
        image: (C, H, W) or (H, W), values in ``bounds``.
        gradients: (2, C, H, W) or (2, H, W), of the two logits, as `logit_gradients` gives them.
        classes, logits: the two classes and their logits. label: the true class, where it is known.
        factor: of the gradient, when it is added to the image. Sums beyond ``bounds`` are shown at their ends.
        names: of the classes.
        fig: where to draw; None: a new figure.

    Picture: docs/gallery.md, "Confused logits".

    Raises:
        ValueError: the image is none, or the gradients have another shape.
    """
    pictures.need_images(image[None], "a confused sample")
    if gradients.shape != (2, *image.shape):
        raise ValueError(
            f"gradients of shape {tuple(gradients.shape)}: expected {(2, *image.shape)}, one for each class"
        )
    height = pictures.shape_of(image)
    figure = style.canvas(fig, 9.4, 2 * 2.6 * height + 1.3)
    panels = figure.subplots(2, 3)
    pictures.show_sample(panels[0, 0], image, bounds)
    pictures.heading(panels[0, 0], "image")
    limit = float(torch.stack([signed(gradient) for gradient in gradients]).abs().max())
    for column, (number, gradient) in enumerate(zip(classes, gradients), start=1):
        name = pictures.short(name_of(number, names), 16)
        heat(panels[0, column], signed(gradient), f"d logit “{name}” / dx", limit=limit, scale=column == 2)
        moved = image.detach().double().cpu() + factor * gradient.detach().double().cpu()
        pictures.show_sample(panels[1, column], moved, bounds)
        pictures.heading(panels[1, column], f"image + {factor:g} × the above")  # names may be long
    panels[1, 0].set_axis_off()
    said = [("true label", "not known" if label is None else pictures.short(name_of(label, names), 20))]
    said += [
        (f"logit {value:.2f}", pictures.short(name_of(number, names), 20)) for number, value in zip(classes, logits)
    ]
    for row, (what, name) in enumerate(said):
        top = 0.86 - 0.3 * row
        place = {"transform": panels[1, 0].transAxes, "ha": "center", "va": "center", "parse_math": False}
        panels[1, 0].text(0.5, top, what, color=style.MUTED, fontsize=10, **place)
        panels[1, 0].text(0.5, top - 0.11, name, color=style.INK, fontsize=13, **place)
    return style.whole(figure)


def heat(
    axes: Axes, values: Tensor, heading: str, *, limit: float | None = None, both: bool = True, scale: bool = False
) -> None:
    """Values (H, W) as colours: both signs around white, or amounts from nothing on; scale: with a bar beside it."""
    limit = (float(values.abs().max()) if limit is None else limit) or 1.0
    colours = style.SIGNED if both else style.AMOUNT
    smooth = "nearest" if max(values.shape) <= 96 else "antialiased"
    drawn = axes.imshow(values.numpy(), cmap=colours, vmin=-limit if both else 0.0, vmax=limit, interpolation=smooth)
    axes.set_axis_off()
    pictures.heading(axes, heading)
    if scale:
        bar = style.whole(axes).colorbar(drawn, ax=axes, shrink=0.82, aspect=18, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=style.MUTED, labelsize=9, length=0)
        bar.locator = style.ticks(5)
        bar.update_ticks()


def name_of(number: int, names: Names) -> str:
    return str(number) if names is None else str(names[number])
