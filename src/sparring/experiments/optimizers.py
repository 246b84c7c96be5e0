"""One photograph, one target class, several optimisers: which of them gets there first, and by how large a change?

Targeted cross-entropy descends on the image itself, in two spaces: the *normalised* image z = (x − mean)/std as the
parameter, with no box and no ball, as tutorials do it; and the pixels x in [0, 1]. The gradient by z is std times that
by x, and a step in z moves x by std times as much. So at one learning rate gradient descent in normalised space goes
std² (about 1/20) as far as in pixels, RMSprop and Adam, which divide the gradient by its size, only std. One learning
rate is therefore not one experiment, and each optimiser is also run at its own best rate.
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
from sparring.attacks.optimizer import OptimizerAttack, optimizer_class
from sparring.data import imagenet_classes, photograph, read_image
from sparring.experiments.record import Progress, document, write
from sparring.inspection import style
from sparring.wrappers import Model

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels: the usual normalised space."""
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SPACES = ("normalised", "pixel")


@dataclass(frozen=True)
class Descent:
    """One optimiser's way: the targeted cross-entropy and the predicted class of each iterate, the photograph first.

    first: the first step whose iterate is classified as the target, or None. The rest is about the iterate of the
    lowest loss, among those that reached the target where any did: the target's probability, the norms of the change
    in pixel units (values in [0, 1]), the share of values outside [0, 1], and whether its 8-bit copy is still the
    target.
    """

    space: str
    optimizer: str
    lr: float
    best_rate: bool
    loss: tuple[float, ...]
    prediction: tuple[int, ...]
    first: int | None
    confidence: float
    l2: float
    linf: float
    outside: float
    survives_8_bit: bool


@dataclass(frozen=True)
class OptimizersResult:
    """Every optimiser in both spaces, at one rate and at its own best one."""

    descents: tuple[Descent, ...]
    settings: Mapping[str, Any]
    label: str
    target: str
    seed: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "space": d.space,
                "optimizer": d.optimizer,
                "rate": "own best" if d.best_rate else "same",
                "lr": d.lr,
                "target at step": d.first,
                "final loss": d.loss[-1],
                "confidence": d.confidence,
                "L2": d.l2,
                "Linf": d.linf,
                "outside [0, 1]": d.outside,
                "8-bit copy": d.survives_8_bit,
            }
            for d in self.descents
        ]

    def to_json(self) -> dict[str, Any]:
        return document(
            "optimizers",
            self.seed,
            self.settings,
            label=self.label,
            target=self.target,
            rows=self.rows,
            curves=[vars(d) for d in self.descents],
        )

    def figure(self) -> Figure:
        """Loss by step: a row of panels a space, the same rate on the left and each one's best rate on the right."""
        figure = style.new_figure(10.4, 7.0)
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        names = list(dict.fromkeys(d.optimizer for d in self.descents))
        for row, space in enumerate(SPACES):
            for column, best in enumerate((False, True)):
                axes = panels[row][column]
                style.dress(axes)
                shown = [d for d in self.descents if d.space == space and d.best_rate == best]
                for d in shown:
                    number = names.index(d.optimizer)
                    color, dashes = style.SERIES[number % len(style.SERIES)], style.DASHES[number % len(style.DASHES)]
                    when = "not reached" if d.first is None else f"step {d.first}"
                    name = f"{d.optimizer}, lr {d.lr:g}: {when}" if best else f"{d.optimizer}: {when}"
                    axes.plot(d.loss, color=color, linestyle=dashes, linewidth=2, label=name)
                    if d.first is not None:
                        dot = {"marker": "o", "markersize": 7, "markeredgecolor": style.PAPER}
                        axes.plot(d.first, d.loss[d.first], color=color, **dot)
                axes.set_yscale("log")
                axes.tick_params(which="minor", length=0)
                rate = "each at its best rate" if best else f"learning rate {shown[0].lr:g} for all"
                axes.set_title(f"{space} space, {rate}", loc="left", color=style.INK, fontsize=11.5, pad=10)
                style.legend(axes, loc="upper right", borderaxespad=0.0)
                if row == 1:
                    axes.set_xlabel("step")
                if column == 0:
                    axes.set_ylabel(f"loss of “{self.target}”")
        low, high = panels[0][0].get_ylim()
        panels[0][0].set_ylim(low, high * 40)  # room for the legends
        return figure


def run(
    image: str | os.PathLike[str] | None = None,
    target: int = 288,
    steps: int = 100,
    lr: float = 0.01,
    optimizers: Sequence[str] = ("SGD", "RMSprop", "Adam"),
    rates: Sequence[float] = RATES,
    model: Model | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] = IMAGENET,
    class_names: Sequence[str] | None = None,
    size: int = 224,
    *,
    device: torch.device | str | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> OptimizersResult:
    """Attacks one photograph towards class `target` with each optimiser of torch.optim in both spaces.

    Args:
        image: path of a photograph (None: the bundled one); its short side is scaled to 256/224 of `size` and the
            centre cut out.
        lr: the rate that all share. rates: what each one's best is sought in: the smallest that reaches the target at
            the earliest step any of them does, or else the one with the lowest last loss.
        model: takes images (B, 3, size, size) in [0, 1], normalisation inside; None: EfficientNet-Lite0 with its
            ImageNet weights.
        normalisation: mean and std of each channel, which define the normalised space whatever the model does inside.
        class_names: of the model's classes; None: ImageNet's, where it has 1,000.
        out: a folder for optimizers.png, optimizers.svg and numbers.json.

    Nothing here is random; `seed` is only recorded. Raises: ValueError for a target, rate or optimiser that there is
    not, FileNotFoundError for the photograph, ModuleNotFoundError where the default network's weights are missing.
    """
    if steps < 1 or not rates:
        raise ValueError(f"steps={steps}, rates={tuple(rates)}: expected at least one step and one rate")
    names = [optimizer_class(name).__name__ for name in optimizers]
    network = zoo.build("efficientnet-lite0") if model is None else model
    if isinstance(network, nn.Module):
        network = network.eval() if device is None else network.eval().to(device)
    path = photograph() if image is None else image
    x = read_image(path, size, resize=round(size * 256 / 224))[None].to(device or "cpu")
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for values in normalisation)
    with torch.no_grad():
        logits = network(x)
    classes = logits.shape[1]
    if not 0 <= target < classes:
        raise ValueError(f"target={target}: the model has {classes} classes, 0 to {classes - 1}")
    known = imagenet_classes() if class_names is None and classes == 1000 else class_names
    label = int(logits.argmax(1))
    if label == target:
        raise ValueError(f"target={target}: the photograph is classified as that already; choose another class")

    spaces = {"normalised": _Space(network, mean, std, None), "pixel": _Space(network, 0 * mean, 0 * std + 1, (0, 1))}
    done = 0
    descents = []

    def descend(space: str, optimizer: str, rate: float, best: bool) -> Descent:
        nonlocal done
        if progress is not None:
            progress(f"{optimizer}, {space} space, lr {rate:g}", done / (4 * len(names)))
        done += 1
        return spaces[space].descend(space, optimizer, rate, best, x, label, target, steps)

    for space in SPACES:
        for name in names:
            descents.append(descend(space, name, lr, False))
            best = spaces[space].best_rate(name, rates, x, label, target, steps)
            descents.append(descend(space, name, best, True))
    settings = {
        "image": os.fspath(path) if image is not None else "bundled photograph",
        "network": "efficientnet-lite0" if model is None else type(network).__name__,
        "target": target,
        "steps": steps,
        "lr": lr,
        "rates": list(rates),
        "normalisation": [list(values) for values in normalisation],
        "size": size,
    }
    called = [str(i) if known is None else known[i] for i in (label, target)]
    result = OptimizersResult(tuple(descents), settings, called[0], called[1], seed)
    if out is not None:
        write(result, "optimizers", out)
    if progress is not None:
        progress("optimizers", 1.0)
    return result


@dataclass(frozen=True)
class _Space:
    """Where the parameter lives: z with x = z·std + mean."""

    model: Model
    mean: Tensor
    std: Tensor
    bounds: tuple[float, float] | None

    def network(self, z: Tensor) -> Tensor:
        logits: Tensor = self.model(z * self.std + self.mean)
        return logits

    def attack(self, optimizer: str, lr: float, steps: int, **more: Any) -> OptimizerAttack:
        return OptimizerAttack(None, optimizer, lr, steps, bounds=self.bounds, **more)

    def descend(
        self, space: str, optimizer: str, lr: float, best: bool, x: Tensor, label: int, target: int, steps: int
    ) -> Descent:
        result = self._run(self.attack(optimizer, lr, steps, trace=True), x, label, target)
        assert result.trace is not None
        loss, prediction = (-result.trace.objective[:, 0]).tolist(), result.trace.prediction[:, 0].tolist()
        moved = result.x * self.std + self.mean
        change = (moved - x).flatten()
        with torch.no_grad():
            seen = self.model(torch.cat([moved, (moved.clamp(0, 1) * 255).round() / 255]))
        return Descent(
            space=space,
            optimizer=optimizer,
            lr=lr,
            best_rate=best,
            loss=tuple(loss),
            prediction=tuple(prediction),
            first=prediction.index(target) if target in prediction else None,
            confidence=float(seen[0].softmax(0)[target]),
            l2=float(change.norm()),
            linf=float(change.abs().max()),
            outside=float(((moved < -1e-6) | (moved > 1 + 1e-6)).float().mean()),
            survives_8_bit=int(seen[1].argmax()) == target,
        )

    def best_rate(
        self, optimizer: str, rates: Sequence[float], x: Tensor, label: int, target: int, steps: int
    ) -> float:
        """Short runs of every rate, longer ones only while none reaches the target."""
        lengths = [length for length in (steps // 16, steps // 4) if length > 0]
        for length in [*lengths, steps]:
            found: list[tuple[float, float, float]] = []
            for rate in rates:
                attack = self.attack(optimizer, rate, length, trace=True, stop_when_fooled=True)
                result = self._run(attack, x, label, target)
                assert result.trace is not None
                reached = (result.trace.prediction[:, 0] == target).nonzero().flatten().tolist()
                last = float(-result.trace.objective[-1, 0]) if not reached else 0.0
                found.append((reached[0] if reached else steps + 1, last, rate))
            if min(found)[0] <= steps:
                break
        return min(found)[2]

    def _run(self, attack: OptimizerAttack, x: Tensor, label: int, target: int) -> Any:
        there = torch.tensor([label], device=x.device), torch.tensor([target], device=x.device)
        return attack(self.network, (x - self.mean) / self.std, *there)
