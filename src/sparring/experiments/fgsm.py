"""The fast gradient sign method and its variants, beside the table of the paper that introduced it; and a network that
masks its gradient because it was trained on single steps.

What is measured. *Error* is the share of all test images that the network classifies wrongly after the attack, those
that it gets wrong to begin with included. *Confidence* is the mean probability of the predicted class over the
misclassified images alone. Goodfellow et al. (2015) do not say that they clip, so "FGSM, unclipped" leaves [0, 1] and is
what stands beside their figures; all other attacks stay in the box. The networks are smaller and trained for minutes;
their CIFAR-10 images were preprocessed to a standard deviation of about 0.5, ours are in [0, 1] (about 0.25), so that
the same eps .1 is a larger change here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from sparring.attacks import FGSM, IFGSM, MIFGSM, PGD, RFGSM
from sparring.experiments.measure import Errors, craft, errors, logits_of
from sparring.experiments.networks import CONV_MAXOUT, MAXOUT, SOFTMAX, fgsm_trained, open_pair, trained
from sparring.experiments.record import Progress, document, dress_across, part, write
from sparring.inspection import style
from sparring.threat import Linf

PAPER: dict[tuple[str, str], tuple[float, float]] = {
    ("mnist", "softmax"): (0.999, 0.793),
    ("mnist", "maxout"): (0.894, 0.976),
    ("cifar10", "conv-maxout"): (0.8715, 0.966),
}
"""Error and mean confidence of Goodfellow et al. (2015), section 4, at eps .25 (MNIST) and .1 (CIFAR-10)."""

UNCLIPPED, CLEAN, WHITE_BOX, TRANSFERRED = "FGSM, unclipped", "no attack", "FGSM", "FGSM, transferred"

ATTACKS = 8
"""How many rows a network gets at most."""


@dataclass(frozen=True)
class Row:
    """One network under one attack. error and its 95% Wilson interval, and confidence: see the module."""

    data: str
    network: str
    attack: str
    eps: float
    errors: Errors

    def to_json(self) -> dict[str, Any]:
        rate = self.errors.rate
        row: dict[str, Any] = {
            "data": self.data,
            "network": self.network,
            "attack": self.attack,
            "eps": self.eps,
            "samples": rate.total,
            "error": rate.value,
            "low": rate.low,
            "high": rate.high,
            "confidence": self.errors.confidence,
            "paper error": None,
            "paper confidence": None,
        }
        if self.attack == UNCLIPPED:
            row["paper error"], row["paper confidence"] = PAPER.get((self.data, self.network), (None, None))
        return row


@dataclass(frozen=True)
class FGSMResult:
    """Every network under every attack, and how the networks were trained."""

    measured: tuple[Row, ...]
    settings: Mapping[str, Any]
    seed: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row.to_json() for row in self.measured]

    def to_json(self) -> dict[str, Any]:
        return document("fgsm", self.seed, self.settings, rows=self.rows)

    def figure(self) -> Figure:
        """A panel a network: a dot an attack, filled for the error, hollow for the confidence, ticks for the paper."""
        networks = list(dict.fromkeys((row.data, row.network) for row in self.measured))
        groups = [[row for row in self.measured if (row.data, row.network) == network] for network in networks]
        columns = min(2, len(groups))
        lines = -(-len(groups) // columns)
        figure = style.new_figure(5.6 * columns, 0.6 + lines * (0.9 + 0.26 * max(len(group) for group in groups)))
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, group in zip(panels, groups):
            _panel(axes, group)
        for axes in panels[len(groups) :]:
            axes.set_axis_off()
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=10, labelcolor=style.INK
        )
        return figure


def _panel(axes: Axes, group: Sequence[Row]) -> None:
    dress_across(axes)
    heights = range(len(group))[::-1]
    for height, row in zip(heights, group):
        rate, confidence = row.errors.rate, row.errors.confidence
        dot: dict[str, Any] = {"linestyle": "", "markersize": 7.5, "clip_on": False}
        first = height == len(group) - 1
        axes.plot([rate.low, rate.high], [height] * 2, color=style.CLEAN, linewidth=2, clip_on=False)
        axes.plot(
            rate.value, height, color=style.CLEAN, marker="o", label="error, 95% interval" if first else None, **dot
        )
        if confidence is not None:
            label = "confidence of the wrong answers" if first else None
            axes.plot(confidence, height, color=style.ROBUST, marker="D", fillstyle="none", label=label, **dot)
        paper = row.to_json()["paper error"], row.to_json()["paper confidence"]
        for value, color in zip(paper, (style.CLEAN, style.ROBUST)):
            if value is not None:
                axes.plot(value, height, color=color, marker="|", linestyle="", markersize=17, markeredgewidth=2.4)
    # drawn once for the legend, whether or not the first panel has a figure of the paper
    axes.plot([], [], color=style.MUTED, marker="|", linestyle="", markersize=13, label="Goodfellow et al., 2015")
    axes.set_yticks(list(heights), [row.attack for row in group], color=style.INK)
    axes.set_ylim(-0.6, len(group) - 0.4)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    head = group[0]
    axes.set_title(f"{head.network}, {head.data}, eps {head.eps:g}", loc="left", color=style.INK, fontsize=11.5, pad=8)


def run(
    datasets: Sequence[str] = ("mnist", "fashion-mnist", "cifar10"),
    samples: int | None = None,
    strong_samples: int = 1000,
    steps: int = 20,
    masking: bool = True,
    *,
    device: torch.device | str | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> FGSMResult:
    """Trains the networks (kept for the next call), attacks them, and writes table and figure.

    Args:
        datasets: names or paths that `sparring.data.open` knows, of square images with a train and a test part; grey ones
            get softmax regression and maxout at eps .25, colour ones a convolutional maxout network at eps .1.
        samples: of the test set, for the single-step attacks; None: all. strong_samples: for those of `steps` steps.
        masking: train a maxout network on FGSM examples of the first data set, and attack it white-box, by transfer
            from the plainly trained one, after a random step, and by PGD.
        device: where to train and attack; None: the CPU.
        out: a folder for fgsm.png, fgsm.svg and numbers.json. seed: of the attacks' random signs and starts.

    Raises: FileNotFoundError for a data set that is not there, ValueError for settings that cannot be run.
    """
    if not datasets or strong_samples < 1 or steps < 1 or (samples is not None and samples < 1):
        raise ValueError(
            f"datasets={tuple(datasets)}, samples={samples}, strong_samples={strong_samples}, steps={steps}: "
            "expected at least one data set, one sample and one step"
        )
    rows: list[Row] = []
    recipes: dict[str, Any] = {}
    bench = _Bench(rows, seed, samples, strong_samples, steps)
    for number, name in enumerate(datasets):
        x, y, test, labels, classes = _opened(name, device)
        eps = 0.25 if x.shape[1] == 1 else 0.1
        networks = {"softmax": SOFTMAX, "maxout": MAXOUT} if x.shape[1] == 1 else {"conv-maxout": CONV_MAXOUT}
        *_, (last, recipe) = networks.items()
        if masking and number == 0:
            networks[f"{last}, FGSM-trained"] = fgsm_trained(recipe, eps)
        source: nn.Module | None = None
        for index, (title, recipe) in enumerate(networks.items()):
            start, length, called = number + index / len(networks), 1 / len(networks), f"{name}, {title}"
            tell = part(progress, called, start, 0.7 * length, len(datasets))
            model, settings = trained(recipe, x, y, classes, progress=tell)
            recipes[called] = settings
            bench.tell = part(progress, called, start + 0.7 * length, 0.3 * length, len(datasets))
            if recipe.fgsm is None or source is None:
                bench.undefended(model, (name, title), eps, test, labels)
                source = model
            else:
                bench.masked(model, source, (name, title), eps, test, labels)
    used = {
        "datasets": list(datasets),
        "samples": samples,
        "strong_samples": strong_samples,
        "steps": steps,
        "recipes": recipes,
    }
    result = FGSMResult(tuple(rows), used, seed)
    if out is not None:
        write(result, "fgsm", out)
    if progress is not None:
        progress("fgsm", 1.0)
    return result


@dataclass
class _Bench:
    """Attacks networks and notes what happens."""

    rows: list[Row]
    seed: int
    samples: int | None
    strong_samples: int
    steps: int
    tell: Progress | None = None

    def note(self, title: tuple[str, str], attack: str, eps: float, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.rows.append(Row(*title, attack, eps, errors(model, x, y)))
        if self.tell is not None:
            mine = sum((row.data, row.network) == title for row in self.rows)
            self.tell(f"{attack} done", mine / ATTACKS)

    def undefended(self, model: nn.Module, title: tuple[str, str], eps: float, x: Tensor, y: Tensor) -> None:
        """All single steps on the whole test set, all iterated attacks on its first part."""
        x, y = x[: self.samples], y[: self.samples]
        self.note(title, CLEAN, eps, model, x, y)
        box = Linf(eps)
        least = logits_of(model, x).scatter(1, y[:, None], torch.inf).argmin(1)
        single: list[tuple[str, FGSM | RFGSM, Tensor | None]] = [
            (UNCLIPPED, FGSM(Linf(eps, bounds=None)), None),
            (WHITE_BOX, FGSM(box), None),
            ("FGSM, least likely class", FGSM(box), least),
            ("R+FGSM", RFGSM(box), None),
        ]
        for name, step, targets in single:
            self.note(title, name, eps, model, craft(step, model, x, y, targets, self.seed), y)
        self.iterated(model, title, eps, x, y)

    def iterated(self, model: nn.Module, title: tuple[str, str], eps: float, x: Tensor, y: Tensor) -> None:
        few, labels, box = x[: self.strong_samples], y[: self.strong_samples], Linf(eps)
        attacks = (IFGSM(box, steps=self.steps), MIFGSM(box, steps=self.steps), PGD(box, steps=self.steps))
        for name, attack in zip(("I-FGSM", "MI-FGSM", "PGD"), attacks):
            found = craft(attack, model, few, labels, seed=self.seed)
            self.note(title, f"{name}, {self.steps} steps", eps, model, found, labels)

    def masked(
        self, model: nn.Module, source: nn.Module, title: tuple[str, str], eps: float, x: Tensor, y: Tensor
    ) -> None:
        """White-box against transferred single steps, and what a random step before them and iterating them uncover."""
        x, y = x[: self.samples], y[: self.samples]
        step, after_noise = FGSM(Linf(eps)), RFGSM(Linf(eps))
        self.note(title, CLEAN, eps, model, x, y)
        self.note(title, WHITE_BOX, eps, model, craft(step, model, x, y), y)
        self.note(title, TRANSFERRED, eps, model, craft(step, source, x, y), y)
        self.note(title, "R+FGSM", eps, model, craft(after_noise, model, x, y, seed=self.seed), y)
        self.iterated(model, title, eps, x, y)


def _opened(name: str, device: torch.device | str | None) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """x, y, test x, test y, number of classes."""
    train_part, test_part = open_pair(name)
    x, y = train_part.tensors()
    test, labels = test_part.tensors()
    place = device or "cpu"
    return x.to(place), y.to(place), test.to(place), labels.to(place), int(max(y.max(), labels.max())) + 1
