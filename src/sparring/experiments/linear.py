"""The linear explanation of adversarial examples (Goodfellow et al., 2015), measured in three ways.

1. A score w·x grows by eps·‖w‖₁ = eps·m·n under the perturbation eps·sign(w), where n is the number of inputs and m
   the mean |w|: as images get more pixels, a change of the same eps in each adds up to more, while the same change with
   random signs grows with ‖w‖₂ only. For a linear network prediction and measurement agree; for a piecewise-linear one
   (maxout) the gradient at x predicts the growth as far as x stays in its linear piece.
2. Along x + t·sign(∇ loss), t from −1 to 1 and unclipped, the logits of a maxout network are close to straight lines,
   and the error is high over a broad range of t and not at isolated points.
3. Single-step examples and iterated ones, carried to another network: see `Transfer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks import FGSM, IFGSM, PGD
from sparring.borrow import borrow
from sparring.evaluation.statistics import Proportion
from sparring.experiments import linear_figure
from sparring.experiments.measure import BATCH, craft, logits_of
from sparring.experiments.networks import MAXOUT, SOFTMAX, Recipe, open_pair, trained
from sparring.experiments.record import Progress, document, part, write
from sparring.inspection import style
from sparring.noise import Noise
from sparring.objective import cross_entropy
from sparring.threat import Linf

SIDES = (7, 14, 28, 56)
SMALL_MAXOUT = Recipe(
    "maxout", epochs=5, lr=2e-3, max_norm=2.0, arguments={"units": 60, "pieces": 4, "dropout": (0.1, 0.1)}
)
OTHER = Recipe("small-cnn", epochs=4, lr=2e-3)


@dataclass(frozen=True)
class Growth:
    """The true class's score on images of side² pixels, as means over the samples.

    predicted: eps·‖g‖₁, where g is the score's gradient at x (a linear network's weights). measured: the score's growth
    under eps·sign(g); at_random: the root mean square of its change under eps times random signs. mean_weight: m, the
    mean |g|. clean: the standard deviation of the scores of clean images, to compare with.
    """

    network: str
    side: int
    inputs: int
    mean_weight: float
    predicted: float
    measured: float
    at_random: float
    clean: float


@dataclass(frozen=True)
class Line:
    """Along the sign of the loss's gradient, for each t: the error over all samples, and the logits of one of them.

    straightness: over all samples, the median R² of a straight line fitted to the true class's logit for t from 0 to
    1, and (second) for t from −1 to 0.
    """

    t: tuple[float, ...]
    error: tuple[float, ...]
    logits: tuple[tuple[float, ...], ...]
    label: int
    straightness: tuple[float, float]


@dataclass(frozen=True)
class Transfer:
    """Examples crafted against one network, shown to another; only samples that both classify right are attacked.

    source, target: how many fool each. both: of those that fool the source, how many fool the target too, which is
    what Kurakin et al. (2017) call the transfer rate.
    """

    attack: str
    crafted_on: str
    shown_to: str
    eps: float
    source: Proportion
    target: Proportion
    both: Proportion


@dataclass(frozen=True)
class LinearResult:
    """The three parts: growth with the dimension, the line through each image, and transfer."""

    growth: tuple[Growth, ...]
    line: Line
    transfer: tuple[Transfer, ...]
    settings: Mapping[str, Any]
    seed: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The transfer table; `growth_rows` is the other one."""
        return [
            {
                "attack": t.attack,
                "crafted on": t.crafted_on,
                "shown to": t.shown_to,
                "eps": t.eps,
                "samples": t.source.total,
                "source fooled": t.source.value,
                "target fooled": t.target.value,
                "target low": t.target.low,
                "target high": t.target.high,
                "both of source": t.both.value,
                "both low": t.both.low,
                "both high": t.both.high,
            }
            for t in self.transfer
        ]

    @property
    def growth_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "network": g.network,
                "side": g.side,
                "n": g.inputs,
                "m": g.mean_weight,
                "eps·m·n": g.predicted,
                "measured": g.measured,
                "random signs": g.at_random,
                "spread of clean scores": g.clean,
            }
            for g in self.growth
        ]

    def to_json(self) -> dict[str, Any]:
        return document(
            "linear",
            self.seed,
            self.settings,
            rows=self.rows,
            growth=self.growth_rows,
            line=vars(self.line),
        )

    def figure(self) -> Figure:
        """Growth, logits and error along the line, and transfer, in four panels."""
        figure = style.new_figure(11.4, 8.0)
        panels = figure.subplots(2, 2)
        linear_figure.growth_panel(panels[0][0], self.growth, float(self.settings["eps"]))
        linear_figure.logits_panel(panels[0][1], self.line)
        linear_figure.error_panel(panels[1][0], self.line)
        linear_figure.transfer_panel(panels[1][1], self.transfer)
        return figure


def run(
    data: str = "mnist",
    eps: float = 0.1,
    transfer_eps: Sequence[float] = (0.1, 0.2),
    sides: Sequence[int] = SIDES,
    samples: int = 1000,
    points: int = 81,
    *,
    device: torch.device | str | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LinearResult:
    """Trains the networks (kept for the next call), measures the three parts and writes table and figure.

    Args:
        data: square images with a train and a test part, by a name or path that `sparring.data.open` knows.
        eps: of the growth. transfer_eps: of the transfer table. Both in pixel units of [0, 1].
        sides: what the images are resized to (area average down, bilinear up) for the growth.
        samples: of the test set, for each part. points: how many t from −1 to 1.
        out: a folder for linear.png, linear.svg and numbers.json. seed: of random signs and starts.

    Raises: FileNotFoundError for data that is not there, ValueError for settings that cannot be run.
    """
    if samples < 1 or points < 3 or not sides or not transfer_eps or not eps > 0:
        raise ValueError(
            f"eps={eps}, transfer_eps={tuple(transfer_eps)}, sides={tuple(sides)}, samples={samples}, points={points}: "
            "expected eps above 0, at least one side, one transfer eps, one sample and three points"
        )
    train_part, test_part = open_pair(data)
    place = device or "cpu"
    x, y = (tensor.to(place) for tensor in train_part.tensors())
    test, labels = (tensor.to(place) for tensor in test_part.tensors())
    classes, whole = int(max(y.max(), labels.max())) + 1, 2 * len(sides) + 2

    growth: list[Growth] = []
    for recipe in (SOFTMAX, SMALL_MAXOUT):
        for side in sides:
            name = f"{recipe.network} on {side}×{side}"
            tell = part(progress, name, len(growth), 1, whole)
            model, _ = trained(recipe, _resized(x, side), y, classes, progress=tell)
            growth.append(_grow(model, recipe.network, _resized(test[:samples], side), labels[:samples], eps, seed))
    networks = {
        recipe.network: trained(
            recipe, x, y, classes, progress=part(progress, recipe.network, whole - 2 + number, 1, whole)
        )[0]
        for number, recipe in enumerate((MAXOUT, OTHER))
    }
    line = _line(networks[MAXOUT.network], test[:samples], labels[:samples], points)
    transfer = _transfers(networks, test, labels, samples, transfer_eps, seed)
    used = {
        "data": data,
        "eps": eps,
        "transfer_eps": list(transfer_eps),
        "sides": list(sides),
        "samples": samples,
        "points": points,
        "recipes": [recipe.settings() for recipe in (SOFTMAX, SMALL_MAXOUT, MAXOUT, OTHER)],
    }
    result = LinearResult(tuple(growth), line, tuple(transfer), used, seed)
    if out is not None:
        write(result, "linear", out)
    if progress is not None:
        progress("linear", 1.0)
    return result


def _resized(x: Tensor, side: int) -> Tensor:
    if side == x.shape[-1]:
        return x
    if side < x.shape[-1]:
        return F.adaptive_avg_pool2d(x, side)
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def _gradients(model: nn.Module, x: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient by x of each sample's score(rows, their logits) → (B,); x (N, *S) → (N, *S)."""
    found = []
    with borrow(model) as borrowed:
        for rows in torch.split(torch.arange(len(x), device=x.device), BATCH):
            found.append(borrowed.probe(x[rows], partial(score, rows))[2])
    return torch.cat(found)


def _grow(model: nn.Module, network: str, x: Tensor, y: Tensor, eps: float, seed: int) -> Growth:
    def own(logits: Tensor) -> Tensor:
        return logits.gather(1, y[:, None]).squeeze(1)

    gradient = _gradients(model, x, lambda rows, logits: logits.gather(1, y[rows, None]).squeeze(1))
    sizes = gradient.flatten(1).abs()
    noise = Noise(seed, torch.arange(len(x))).sign(x.shape[1:], "random signs", like=x)
    clean = own(logits_of(model, x))
    return Growth(
        network=network,
        side=x.shape[-1],
        inputs=sizes.shape[1],
        mean_weight=float(sizes.mean()),
        predicted=eps * float(sizes.sum(1).mean()),
        measured=float((own(logits_of(model, x + eps * gradient.sign())) - clean).mean()),
        at_random=float((own(logits_of(model, x + eps * noise)) - clean).square().mean().sqrt()),
        clean=float(clean.std()),
    )


def _line(model: nn.Module, x: Tensor, y: Tensor, points: int) -> Line:
    t = torch.linspace(-1, 1, points, dtype=torch.float64)
    direction = _gradients(model, x, lambda rows, logits: cross_entropy(logits, y[rows])).sign()
    logits = torch.stack([logits_of(model, x + float(step) * direction) for step in t])  # (T, N, C)
    own = logits.gather(2, y.expand(points, -1)[:, :, None]).squeeze(2).double()
    right = (logits_of(model, x).argmax(1) == y).nonzero().flatten()
    shown = int(right[0]) if len(right) else 0
    return Line(
        t=tuple(t.tolist()),
        error=tuple((logits.argmax(2) != y).float().mean(1).tolist()),
        logits=tuple(tuple(values) for values in logits[:, shown].T.tolist()),
        label=int(y[shown]),
        straightness=(_straight(t[t >= 0], own[t >= 0]), _straight(t[t <= 0], own[t <= 0])),
    )


def _straight(t: Tensor, values: Tensor) -> float:
    """The median over the columns of values (T, N) of the R² of a line fitted over t (T,)."""
    t = t.double().to(values.device)
    t, values = (t - t.mean())[:, None], values - values.mean(0)
    left = (values - t * (t * values).sum(0) / t.square().sum()).square().sum(0)
    return float((1 - left / values.square().sum(0).clamp_min(1e-12)).median())


def _transfers(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, samples: int, sizes: Sequence[float], seed: int
) -> list[Transfer]:
    known = torch.stack([logits_of(model, x).argmax(1) == y for model in networks.values()]).all(0)
    x, y = x[known][:samples], y[known][:samples]
    if not len(x):
        raise ValueError("no test image is classified right by both networks: nothing to transfer")
    found: list[Transfer] = []
    for eps in sizes:
        box = Linf(eps)
        attacks: dict[str, Any] = {"FGSM": FGSM(box), "I-FGSM-10": IFGSM(box, steps=10), "PGD-40": PGD(box)}
        for source, target in (tuple(networks), tuple(networks)[::-1]):
            for name, attack in attacks.items():
                made = craft(attack, networks[source], x, y, seed=seed)
                one, other = (logits_of(networks[net], made).argmax(1) != y for net in (source, target))
                counts = [int(part.sum()) for part in (one, other, one & other)]
                found.append(
                    Transfer(
                        *(name, source, target, eps),
                        source=Proportion(counts[0], len(y)),
                        target=Proportion(counts[1], len(y)),
                        both=Proportion(counts[2], counts[0]),
                    )
                )
    return found
