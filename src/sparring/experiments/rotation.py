"""An adversarial example that survives being turned: expectation over transformation. Athalye et al. (2018).

A targeted example made for one view of a photograph is lost when the photograph is turned a little. Made for the mean over
random turns, it holds at every angle that it was made for. (The cat that is guacamole at any angle is Athalye's, 2017.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparring import zoo
from sparring.attacks import PGD
from sparring.combined import expectation
from sparring.data import imagenet_classes, photograph, read_image
from sparring.experiments.measure import logits_of
from sparring.experiments.record import Progress, document, write
from sparring.inspection import style
from sparring.inspection.pixels import pixels
from sparring.threat import Threat, parse_eps
from sparring.transforms import rotate, rotated
from sparring.wrappers import Model

POINTS = 61


@dataclass(frozen=True)
class Turned:
    """One image at many angles: the target's probability, the predicted class and its probability at each.

    norm: Linf size of its change. forwards, backwards: what it cost.
    """

    name: str
    image: Tensor
    target: tuple[float, ...]
    prediction: tuple[int, ...]
    confidence: tuple[float, ...]
    norm: float
    forwards: int
    backwards: int


@dataclass(frozen=True)
class RotationResult:
    """The photograph, the plain example and the one made for all angles, each at `angles` degrees."""

    turned: tuple[Turned, ...]
    angles: tuple[float, ...]
    names: Mapping[int, str]
    settings: Mapping[str, Any]
    target: str
    seed: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For each image, over the angles that the turning example was made for."""
        within = [i for i, angle in enumerate(self.angles) if abs(angle) <= self.settings["angle"] + 1e-9]
        straight = min(within, key=lambda i: abs(self.angles[i]))
        goal = self.settings["target"]
        return [
            {
                "image": t.name,
                "upright": t.target[straight],
                "least": min(t.target[i] for i in within),
                "mean": sum(t.target[i] for i in within) / len(within),
                "target at": sum(t.prediction[i] == goal for i in within) / len(within),
                "Linf": t.norm,
                "forwards": t.forwards,
                "backwards": t.backwards,
            }
            for t in self.turned
        ]

    def to_json(self) -> dict[str, Any]:
        curves = [
            {"image": t.name, "target": t.target, "prediction": t.prediction, "confidence": t.confidence}
            for t in self.turned
        ]
        return document(
            "rotation", self.seed, self.settings, target=self.target, rows=self.rows, angles=self.angles, curves=curves
        )

    def figure(self) -> Figure:
        """Each image turned as far as it was made for, with what the model sees, above the target's probability by angle."""
        shown, reach = self._shown(), self.settings["angle"]
        figure = style.new_figure(9.6, 7.2)
        grid = figure.add_gridspec(2, len(self.turned), height_ratios=(1.15, 1))
        below = figure.add_subplot(grid[1, :])
        style.dress(below)
        below.axvspan(-reach, reach, color=style.GRID, alpha=0.45, linewidth=0)
        for column, t in enumerate(self.turned):
            color, dashes = style.SERIES[column], style.DASHES[column]
            axes = figure.add_subplot(grid[0, column])
            view = rotate(t.image[None], self.angles[shown])[0]
            axes.imshow(pixels(view), cmap="gray" if len(view) == 1 else None)
            axes.set_axis_off()
            seen = self.names[t.prediction[shown]]
            axes.set_title(f"{t.name}\n“{seen}” {t.confidence[shown]:.0%}", color=color, fontsize=11, parse_math=False)
            below.plot(self.angles, t.target, color=color, linestyle=dashes, linewidth=2.2, label=t.name)
        below.set_ylim(-0.02, 1.02)
        below.set_xlim(self.angles[0], self.angles[-1])
        below.set_xlabel("turned by (degrees)")
        below.set_ylabel(f"probability of “{self.target}”")
        style.legend(below, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(self.turned))
        return figure

    def _shown(self) -> int:
        return min(range(len(self.angles)), key=lambda i: abs(self.angles[i] - self.settings["angle"]))


def run(
    image: str | os.PathLike[str] | None = None,
    target: int = 924,
    eps: float | str = "8/255",
    angle: float = 22.5,
    samples: int = 10,
    steps: int = 50,
    model: Model | None = None,
    class_names: Sequence[str] | None = None,
    size: int = 224,
    *,
    device: torch.device | str | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RotationResult:
    """Makes one photograph the class `target`, once as it stands and once for all angles up to `angle` degrees.

    Args:
        image: path of a photograph (None: the bundled one); its short side is scaled to 256/224 of `size` and the
            centre cut out.
        eps: Linf size of the change, pixels in [0, 1]; a number, or text such as "8/255".
        samples: random turns at each step. steps: steps of both attacks, PGD from the photograph with a cosine step.
        model: takes images (B, 3, size, size) in [0, 1], normalisation inside; None: EfficientNet-Lite0 with its
            ImageNet weights.
        class_names: of the model's classes; None: ImageNet's, where it has 1,000.
        out: a folder for rotation.png, rotation.svg and numbers.json.

    Raises: ValueError for a target, an angle or a number that can't be used, FileNotFoundError for the photograph,
    ModuleNotFoundError where the default network's weights are missing.
    """
    turning = rotated(angle)
    threat = Threat("linf", parse_eps(eps), typed=str(eps))
    network = zoo.build("efficientnet-lite0") if model is None else model
    if isinstance(network, nn.Module):
        network = network.eval() if device is None else network.eval().to(device)
    path = photograph() if image is None else image
    x = read_image(path, size, resize=round(size * 256 / 224))[None].to(device or "cpu")
    logits = logits_of(network, x)
    classes, label = logits.shape[1], int(logits.argmax(1))
    if not 0 <= target < classes:
        raise ValueError(f"target={target}: the model has {classes} classes, 0 to {classes - 1}")
    if label == target:
        raise ValueError(f"target={target}: the photograph is classified as that already; choose another class")
    known = imagenet_classes() if class_names is None and classes == 1000 else class_names
    attack = PGD(threat, steps=steps, random_start=False, schedule="cosine", keep="last")
    there = torch.tensor([label], device=x.device), torch.tensor([target], device=x.device)
    angles = torch.linspace(-2 * angle, 2 * angle, POINTS)
    turned = []
    sources = {
        "photograph": None,
        "plain example": network,
        f"made for ±{angle:g}°": expectation(network, samples, turning, combine="loss"),
    }
    for number, (name, source) in enumerate(sources.items()):
        if progress is not None:
            progress(name, (0, 0.02, 0.1)[number])
        made = None if source is None else attack(source, x, *there, seed=seed)
        cost = (0, 0) if made is None else (made.forwards, made.backwards)
        turned.append(_turn(network, name, x, x if made is None else made.x, angles, target, threat, *cost))
    settings = {
        "image": os.fspath(path) if image is not None else "bundled photograph",
        "network": "efficientnet-lite0" if model is None else type(network).__name__,
        "target": target,
        "eps": threat.typed,
        "angle": angle,
        "samples": samples,
        "steps": steps,
        "size": size,
    }
    names = {
        i: str(i) if known is None else known[i] for i in {label, target, *(p for t in turned for p in t.prediction)}
    }
    result = RotationResult(tuple(turned), tuple(angles.tolist()), names, settings, names[target], seed)
    if out is not None:
        write(result, "rotation", out)
    if progress is not None:
        progress("rotation", 1.0)
    return result


def _turn(
    model: Model, name: str, original: Tensor, x: Tensor, angles: Tensor, target: int, threat: Threat, *cost: int
) -> Turned:
    chances = torch.cat([logits_of(model, rotate(x, float(angle))).softmax(1) for angle in angles])
    sure, prediction = chances.max(1)
    norm = float(threat.size(original, x))
    curve = tuple(chances[:, target].tolist())
    return Turned(name, x[0].cpu(), curve, tuple(prediction.tolist()), tuple(sure.tolist()), norm, *cost)
