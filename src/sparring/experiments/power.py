"""Power iteration, first on a matrix that one can read, then on the Hessian of a network that nobody ever forms.

1. A·x, divided by its length, again and again: x turns to the dominant eigenvector of A, whose eigenvalue is the length
   of A·x in the end. What is left of the other eigenvectors shrinks by their eigenvalue's share of the largest each time.
2. The same with the Hessian H of KL(p(x) ‖ p(x + r)) at r = 0, of an image: 784 × 784 numbers for 28×28 pixels. Power
   iteration only ever needs H·d, which a second backward gives exactly, and the finite difference ∇KL(p(x) ‖ p(x + ξ·d)) / ξ
   for one forward and one backward. This direction is what virtual adversarial training trains against.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparring.borrow import borrow
from sparring.experiments.networks import Recipe, open_pair, trained
from sparring.experiments.record import Progress, document, write
from sparring.inspection import style
from sparring.noise import Noise
from sparring.training import virtual_perturbation

MATRIX = ((2.0, 1.0), (1.0, 3.0))
NEAR, LONGEST = 0.01, 100  # degrees, steps
NETWORK = Recipe("small-cnn", epochs=3, lr=2e-3)
PAPER = 1e-6  # the papers' ξ


@dataclass(frozen=True)
class Turn:
    """x after so many steps, of length 1; length: of A·x before; angle: to the dominant eigenvector, in degrees."""

    x: tuple[float, ...]
    length: float | None
    angle: float

    def line(self, step: int) -> str:
        """As in `step=1 length=2.2360679775 x=(0.8944271910, 0.4472135955) angle=31.7175`."""
        length = "" if self.length is None else f"length={self.length:.10f} "
        return f"step={step} {length}x=({', '.join(f'{value:.10f}' for value in self.x)}) angle={self.angle:.4f}"


@dataclass(frozen=True)
class Network:
    """Angles in degrees to the dominant eigenvector after 0, 1, … iterations, one way to get H·d.

    median, low, high: over the images, with the quartiles.
    """

    way: str
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class PowerResult:
    """The turns of the matrix's x, and the angles of a network's directions.

    ratio: the median over the images of the second largest eigenvalue of H by the largest. caught: the median share of the
    steepest growth of KL, λ₁ · eps² / 2, that the direction of one iteration has.
    """

    turns: tuple[Turn, ...]
    eigenvalues: tuple[float, ...]
    networks: tuple[Network, ...]
    ratio: float
    caught: float
    settings: Mapping[str, Any]
    seed: int

    @property
    def lines(self) -> list[str]:
        return [turn.line(step) for step, turn in enumerate(self.turns)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The network's table: an iteration a row."""
        return [
            {"iterations": i, **{f"{n.way}, degrees": round(n.median[i], 3) for n in self.networks}}
            for i in range(len(self.networks[0].median))
        ]

    def to_json(self) -> dict[str, Any]:
        return document(
            "power",
            self.seed,
            self.settings,
            trace=[vars(turn) for turn in self.turns],
            eigenvalues=self.eigenvalues,
            network=[vars(network) for network in self.networks],
            ratio=self.ratio,
            caught=self.caught,
        )

    def figure(self) -> Figure:
        """The first two numbers of x as it turns; the angle by step, of the matrix and of the network."""
        figure = style.new_figure(13.2, 4.3)
        left, middle, right = figure.subplots(1, 3, width_ratios=(0.8, 1, 1.15))
        _turning(left, self.turns)
        steps = range(len(self.turns))
        style.dress(middle)
        middle.plot(steps, [turn.angle for turn in self.turns], color=style.CLEAN, marker="o", markersize=4.5)
        _angles(middle, "steps", "On the matrix")
        style.dress(right)
        for number, network in enumerate(self.networks):
            color, counts = style.SERIES[number], range(len(network.median))
            dashes = style.DASHES[number % len(style.DASHES)]
            right.fill_between(counts, network.low, network.high, color=color, alpha=0.12, linewidth=0)
            right.plot(
                counts, network.median, color=color, linestyle=dashes, marker="o", markersize=4, label=network.way
            )
        _angles(right, "iterations", "On a network's Hessian, never formed")
        style.legend(right, loc="best")
        return figure


def _angles(axes: Axes, what: str, title: str) -> None:
    axes.set_yscale("log")
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel(what)
    axes.set_ylabel("angle to the eigenvector, degrees")
    axes.xaxis.set_major_locator(style.whole_ticks(8))
    style.title(axes, title)


def _turning(axes: Axes, turns: Sequence[Turn]) -> None:
    style.dress(axes)
    axes.set_aspect("equal", adjustable="datalim")  # as high as its neighbours
    for number, turn in enumerate(turns):
        last = number + 1 == len(turns)
        fade = 1.0 if last else 0.25 + 0.5 * number / len(turns)
        color = style.ROBUST if last else style.CLEAN
        axes.annotate(
            "",
            (turn.x[0], turn.x[1]),
            (0, 0),
            arrowprops={"arrowstyle": "->", "color": color, "alpha": fade, "lw": 1.6},
        )
    # fixed limits would be overruled by the equal scales, with a warning
    axes.update_datalim([(-1.1, -1.1), (1.1, 1.1)])
    axes.autoscale_view()
    axes.set_xlabel("first number of x")
    axes.set_ylabel("second number of x")
    for name, color in (("x, step by step", style.CLEAN), ("where it ends", style.ROBUST)):
        axes.plot([], [], color=color, linewidth=1.6, label=name)
    style.legend(axes, loc="upper left")
    style.title(axes, "x turns to the eigenvector")


def run(
    matrix: Sequence[Sequence[float]] = MATRIX,
    data: str = "fashion-mnist",
    samples: int = 64,
    iterations: int = 8,
    xi: float | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PowerResult:
    """Walks through power iteration on `matrix`, then on a trained network's Hessian at test images.

    Args:
        matrix: square and symmetric, 2×2 or larger.
        data: images that `sparring.data.open` knows, with a train and a test part; the network is kept for the next call.
        samples: test images. iterations: of power iteration on the network.
        xi: the length of the finite difference, in input units; None: as `virtual_perturbation` chooses it.
        out: a folder for power.png, power.svg and numbers.json. seed: of the random starts.

    Raises: ValueError for a matrix that has no dominant eigenvector to find, or settings that cannot be run.
    """
    if samples < 1 or iterations < 1:
        raise ValueError(f"samples={samples}, iterations={iterations}: expected at least one of each")
    turns, eigenvalues = iterate(matrix, seed=seed)
    train_part, test_part = open_pair(data)
    x, y = train_part.tensors()
    model, recipe = trained(NETWORK, x, y, int(y.max()) + 1, progress=progress)
    images = test_part.tensors(samples)[0]
    vectors, values, factor = dominant(model, images)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("exact H·d", {"exact": True}),
        ("finite difference", {"xi": xi}),
        (f"finite difference, ξ = {PAPER:g}", {"xi": PAPER}),
    ]
    networks = []
    for number, (way, options) in enumerate(ways):
        found = directions(model, images, iterations, seed, **options)
        angles = torch.stack([angle(d, vectors) for d in found])
        quarters = torch.quantile(angles, torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64), dim=1)
        networks.append(Network(way, *(tuple(row.tolist()) for row in quarters)))
        if number == 1:
            caught = float(((factor @ found[1][:, :, None]).square().sum((1, 2)) / values[:, 0]).median())
        if progress is not None:
            progress(way, (number + 1) / len(ways))
    used = {
        "matrix": [list(row) for row in matrix], "data": data, "samples": samples, "iterations": iterations, "xi": xi,
        "network": recipe,
    }  # fmt: skip
    ratio = float((values[:, 1] / values[:, 0]).median())
    result = PowerResult(tuple(turns), eigenvalues, tuple(networks), ratio, caught, used, seed)
    if out is not None:
        write(result, "power", out)
    return result


def iterate(matrix: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[list[Turn], tuple[float, ...]]:
    """x from a random start until it is within 0.01 degrees of the dominant eigenvector, 100 steps at most; and the eigenvalues,
    the largest size first.

    >>> turns, eigenvalues = iterate([[3.0, 0.0], [0.0, 1.0]])
    >>> eigenvalues, turns[-1].angle < 0.01, round(turns[-1].length, 6)
    ((3.0, 1.0), True, 3.0)
    """
    rows = [len(row) for row in matrix]
    if len(rows) < 2 or set(rows) != {len(rows)}:
        raise ValueError(f"matrix of rows of {rows} numbers: expected a square one, 2×2 or larger")
    a = torch.tensor([list(row) for row in matrix], dtype=torch.float64)
    if not torch.allclose(a, a.T):
        raise ValueError("matrix: expected a symmetric one, as every Hessian is")
    values, vectors = torch.linalg.eigh(a)
    order = values.abs().argsort(descending=True)
    values, vectors = values[order], vectors[:, order]
    if values[0] == 0 or bool(torch.isclose(values[0].abs(), values[1].abs(), rtol=1e-6, atol=0.0)):
        raise ValueError(
            f"matrix with the eigenvalues {values.tolist()}: none is larger than all others, so x turns to none"
        )
    x = Noise(seed, torch.tensor([0])).normal((len(a),), "start")[0].double()
    x = x / x.norm()
    turns, length = [], None
    while True:
        turns.append(Turn(tuple(x.tolist()), length, float(angle(x[None], vectors[:, 0][None]))))
        if turns[-1].angle <= NEAR or len(turns) > LONGEST:
            return turns, tuple(values.tolist())
        product = a @ x
        length = float(product.norm())
        x = product / length


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Degrees (N,) between lines along a and b (N, n), 0 to 90; by the sine where it is small, so that digits are left."""
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    cosine = (a * b).sum(1)
    return torch.atan2((a - cosine[:, None] * b).norm(dim=1), cosine.abs()) * 180 / math.pi


def dominant(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each image of x (N, *S): the eigenvector (N, n) of the largest eigenvalue of H, all eigenvalues that are not zero,
    (N, C), the largest first, and F (N, C, n) with H = Fᵀ · F; in float64.

    H = Jᵀ (diag(p) − p pᵀ) J, J the logits' Jacobian (C × n): its second derivatives drop out where p does not differ. One
    backward a class gives J, and a C × C matrix the eigenvalues.
    """
    exact = copy.deepcopy(model).double().eval()
    with borrow(exact) as borrowed:
        logits, _, jacobian = borrowed.probe(x.double(), lambda logits: logits)
    p, j = logits.softmax(1), jacobian.flatten(2)
    inner, outer = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    factor = (outer * inner.clamp_min(0).sqrt()[:, None, :]).transpose(1, 2) @ j
    values, vectors = torch.linalg.eigh(factor @ factor.transpose(1, 2))
    found = (vectors[:, None, :, -1] @ factor).squeeze(1)
    return found / found.norm(dim=1, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny), values.flip(1), factor


def directions(model: nn.Module, x: Tensor, iterations: int, seed: int, **options: Any) -> list[Tensor]:
    """Unit vectors (N, n) after 0, 1, … iterations, in float64."""
    numbers = torch.arange(len(x))
    start = Noise(seed, numbers).normal(x.shape[1:], "virtual").flatten(1).double()
    found = [start / start.norm(dim=1, keepdim=True)]
    for count in range(1, iterations + 1):
        d = virtual_perturbation(model, x, 1.0, iterations=count, seed=seed, indices=numbers, **options)
        found.append(d.flatten(1).double())
    return found
