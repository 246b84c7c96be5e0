"""What would make this 5 an 8? Gradient ascent on a logit until the network says so, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from sparring.borrow import borrow
from sparring.inspection import pictures, style
from sparring.inspection.animation import write_gif
from sparring.inspection.gradients import Names, name_of
from sparring.objective import Objective, resolve
from sparring.wrappers import Model

SHOWN = 5  # frames in the figure


@dataclass(frozen=True, eq=False)
class ClassAscent:
    """The way from one class to another.

    frames: (T + 1, *S), the image before, and after each of T steps. probabilities: (T + 1, C) of each frame.
    label: the class that the first frame is predicted to be. target: the class that was climbed to.
    bounds: the box that the frames stay in. names: of the classes, or None.
    """

    frames: Tensor
    probabilities: Tensor
    label: int
    target: int
    bounds: tuple[float, float]
    names: Names = None

    @property
    def before(self) -> Tensor:
        """(C,) the probabilities of the image as it was."""
        return self.probabilities[0]

    @property
    def after(self) -> Tensor:
        """(C,) the probabilities at the end."""
        return self.probabilities[-1]

    @property
    def steps(self) -> int:
        return len(self.frames) - 1

    @property
    def reached(self) -> bool:
        """Whether the network says the target at the end."""
        return int(self.after.argmax()) == self.target

    def __repr__(self) -> str:
        a, b = (name_of(number, self.names) for number in (self.label, self.target))
        chance = f"p({b}) {float(self.before[self.target]):.1%} → {float(self.after[self.target]):.1%}"
        return f"ClassAscent({a} → {b}, {self.steps} steps, {chance}{'' if self.reached else ', not reached'})"

    def figure(self, fig: FigureBase | None = None) -> Figure:
        """Some of the frames with what the network says of them; below, the probabilities of both classes by step.

        Picture: docs/gallery.md, "A sandal that becomes a bag".

        Raises:
            ValueError: the frames are no pictures.
        """
        pictures.need_images(self.frames, "a class ascent")
        numbers = sorted({round(i * self.steps / (SHOWN - 1)) for i in range(SHOWN)})
        side = pictures.shape_of(self.frames[0])
        figure = style.canvas(fig, 9.6, 1.75 * side + 3.2)
        grid = figure.add_gridspec(2, len(numbers), height_ratios=(1.75 * side, 2.3))
        for column, number in enumerate(numbers):
            axes = figure.add_subplot(grid[0, column])
            pictures.show_sample(axes, self.frames[number], self.bounds)
            seen = int(self.probabilities[number].argmax())
            pictures.heading(axes, f"step {number}")
            name = pictures.short(name_of(seen, self.names), 14)
            pictures.caption(axes, f"{name}  {float(self.probabilities[number, seen]):.0%}")
        below = figure.add_subplot(grid[1, :])
        style.dress(below)
        for place, number in enumerate(dict.fromkeys((self.label, self.target))):
            color, dashes = style.SERIES[place], style.DASHES[place]
            name = pictures.short(name_of(number, self.names))
            line = self.probabilities[:, number].tolist()
            below.plot(line, color=color, linestyle=dashes, linewidth=2.2, label=name)
        below.set_ylim(-0.02, 1.02)
        below.margins(x=0.01)
        below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        below.xaxis.set_major_locator(style.whole_ticks(8))
        below.set_xlabel("step")
        below.set_ylabel("probability")
        style.legend(below)
        return style.whole(figure)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """`.gif`: the frames, each beside its probabilities, as an animation. `.png` or `.svg`: the `figure`.

        Written whole or not at all. Raises ValueError for another suffix, or frames that are no pictures.
        """
        path = Path(path)
        if path.suffix.lower() != ".gif":
            return style.save(self.figure(), path)
        pictures.need_images(self.frames, "a class ascent")
        return write_gif(self, path)


def ascend_class(
    model: Model,
    x: Tensor,
    target: int,
    *,
    step: float | None = None,
    steps: int = 200,
    confidence: float = 0.0,
    objective: str | Objective = "logit",
    bounds: tuple[float, float] = (0.0, 1.0),
    names: Names = None,
) -> ClassAscent:
    """Steps an image along d logit_target/dx until the network says the target: what would make this 5 an 8?

    Every step has the same length, x ← x + step · √n · g/‖g‖₂ (n entries), clipped to ``bounds``; so a network of small
    gradients, such as an untrained one, takes as long steps as any other.

    Args:
        model: maps float x (B, *S) to logits (B, C); seen in eval mode, nothing of it changes.
        x: one sample *S, without the batch dimension; a picture (C, H, W) or (H, W) where a figure is wanted.
        target: the class to climb to.
        step: root mean square change of an entry in one step, in input units; None: 1% of the box.
        steps: so many at most. The ascent also ends where the gradient is zero (a dead ReLU).
        confidence: go on until the target's probability is at least this, 0 to 1.
        objective: what is climbed, with the target given: "logit", or another of `sparring.objective.OBJECTIVES`.
        bounds: the box (low, high). names: of the classes, for the pictures.

    Costs a forward and a backward a step. After Simonyan et al. (2014), who climb a class's score from an empty image.

    Raises:
        ValueError: a class that the model doesn't have, steps below 1, a confidence above 1, or a step that is not positive.
    """
    step = 0.01 * (bounds[1] - bounds[0]) if step is None else step
    if steps < 1 or not step > 0 or not 0 <= confidence <= 1:
        raise ValueError(
            f"steps={steps}, step={step}, confidence={confidence}: expected at least 1, above 0, and 0 to 1"
        )
    climbed = resolve(objective)
    frames, probabilities = [x.detach().clone()], []
    with torch.inference_mode(False), borrow(model) as borrowed:
        goal = torch.tensor([target], device=x.device)
        here = x.detach().clone()[None]
        length = step * here.numel() ** 0.5
        label = borrowed.look(here).argmax(1)
        if not 0 <= target < (borrowed.classes or 0):
            raise ValueError(f"target={target}: the model has {borrowed.classes} classes, from 0")
        while True:
            logits, _, gradient = borrowed.probe(here, lambda logits: climbed(logits, label, goal, None))
            probabilities.append(logits[0].double().softmax(0).cpu())
            chance = float(probabilities[-1][target])
            size = float(gradient.double().norm())
            done = int(logits.argmax(1)) == target and chance >= confidence
            if done or len(frames) > steps or size == 0.0:
                break
            here = (here + (gradient.double() * (length / size)).to(here.dtype)).clamp(*bounds)
            frames.append(here[0])
    return ClassAscent(torch.stack(frames), torch.stack(probabilities), int(label), target, bounds, names)


def ranked(ascent: ClassAscent, most: int) -> Sequence[int]:
    """The classes worth showing: where it began, the target, and those that were likeliest on the way."""
    likely = ascent.probabilities.amax(0).argsort(descending=True).tolist()
    return list(dict.fromkeys([ascent.label, ascent.target, *likely]))[:most]
