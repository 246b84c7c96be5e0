"""Every figure looks as it did when somebody last looked at it.

`python tests/test_inspection_images.py` draws the baselines anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.testing.compare import compare_images
from PIL import Image
from torch import Tensor, nn

from sparring import inspection
from sparring.inspection import style

BASELINES = Path(__file__).parent / "baseline"
DPI = 45
TOLERANCE = (
    8.0  # of 255, root mean square: another FreeType shifts letters by less, and what is drawn wrongly shows far more
)

Draw = Callable[..., Any]
FIGURES: dict[str, Draw] = {}


def figure(draw: Draw) -> Draw:
    FIGURES[draw.__name__] = draw
    return draw


def picture(colour: bool = False) -> Tensor:
    """A disc on a slope, (1 or 3, 16, 16) in [0, 1]."""
    a, b = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    disc = ((a - 0.1) ** 2 + b**2 < 0.4).float()
    grey = 0.15 + 0.6 * disc + 0.1 * b
    return torch.stack([grey, grey.flip(1), 1 - grey]) if colour else grey[None]


class Waves(nn.Module):
    """Smooth logits of four classes, by closed formula: the same on any machine."""

    def __init__(self, colour: bool = False) -> None:
        super().__init__()
        entries = torch.arange(768 if colour else 256, dtype=torch.float64)
        rows = [torch.sin(entries * (0.05 + 0.021 * k) + k) / 6 for k in range(4)]
        self.weight = nn.Parameter(torch.stack(rows))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).double() @ self.weight.T
        return (z + 0.6 * torch.tanh(z.roll(1, 1))).to(x.dtype)


@figure
def saliency(**where: Any) -> Any:
    return inspection.saliency(Waves(True), picture(True), 2, names=["ant", "bee", "cat", "dog"], **where)


@figure
def saliency_grey(**where: Any) -> Any:
    return inspection.saliency(Waves(), picture(), **where)


@figure
def confused_logits(**where: Any) -> Any:
    x = picture(True)
    logits, gradients = inspection.logit_gradients(Waves(True), x[None], torch.tensor([[1, 3]]))
    pair = (float(logits[0, 1]), float(logits[0, 3]))
    return inspection.confused_logits(x, gradients[0], (1, 3), pair, label=3, **where)


def ascent() -> inspection.ClassAscent:
    return inspection.ascend_class(Waves(), picture(), 0, confidence=0.9, names=["ant", "bee", "cat", "dog"])


@figure
def ascend_class(**where: Any) -> Any:
    return ascent().figure(**where)


@figure
def triptych(**where: Any) -> Any:
    x = picture(True)
    made = (x + 0.03 * x.roll(3, 2).sub(0.5).sign()).clamp(0, 1)
    return inspection.triptych(x, made, before=("a disc", 0.9), after=("a ring", 0.55), note="L∞ norm 0.03", **where)


AFTER = [("ring", 0.6), ("disc", 0.5), ("a longer name", 1.0)]


@figure
def gallery(**where: Any) -> Any:
    x = torch.stack([picture(True), picture(True).flip(1), 1 - picture(True)])
    made = (x + 0.03 * x.roll(3, 2).sub(0.5).sign()).clamp(0, 1)
    return inspection.gallery(x, made, before=[("disc", 0.9)] * 3, after=AFTER, **where)


@figure
def perturbation(**where: Any) -> Any:
    x = picture()
    return inspection.perturbation(x, (x + 0.05 * x.roll(3, 2).sub(0.5).sign()).clamp(0, 1), **where)


def curve(drop: float) -> list[dict[str, float]]:
    values = [(k / 255, 0.9 * math.exp(-drop * k)) for k in range(9)]
    return [{"eps": e, "value": v, "low": v - 0.04, "high": v + 0.04} for e, v in values]


@figure
def accuracy_curve(**where: Any) -> Any:
    return inspection.accuracy_curve(curve(0.3), eps=8 / 255, eps_typed="8/255", **where)


@figure
def accuracy_curves(**where: Any) -> Any:
    return inspection.accuracy_curves(
        {"plain": curve(0.5), "robust": curve(0.1)}, eps=0.02, title="Two networks", **where
    )


@figure
def loss_curves(**where: Any) -> Any:
    losses = {
        name: [3 * math.exp(-rate * k) for k in range(30)]
        for name, rate in (("SGD", 0.02), ("RMSprop", 0.1), ("Adam", 0.15))
    }
    return inspection.loss_curves(losses, reached={"Adam": 12, "SGD": None}, log=True, title="Optimisers", **where)


@figure
def norm_histogram(**where: Any) -> Any:
    sizes = torch.linspace(0, 1, 60)
    norms = {"plain": sizes**2 * 0.1, "robust": torch.cat([sizes * 0.12, torch.tensor([math.inf] * 6)])}
    return inspection.norm_histogram(norms, norm="linf", eps=8 / 255, eps_typed="8/255", bins=12, **where)


@figure
def loss_surface(**where: Any) -> Any:
    return inspection.loss_surface(Waves(), picture(), 1, 0.05, points=15, title="A surface", **where)


@figure
def decision_plane(**where: Any) -> Any:
    x = picture()
    rows = Waves().weight.detach().float()
    made = x + 0.05 * (rows[2] - rows[1]).sign().view_as(x)
    return inspection.decision_plane(Waves(), x, 1, 0.05, adversarial=made, points=25, reach=4, **where)


@figure
def logits_along(**where: Any) -> Any:
    return inspection.logits_along(Waves(), picture(), 1, reach=0.2, points=21, **where)


class Rings(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        radius = x.norm(dim=1)
        return torch.stack([1.2 - 2 * radius, 2 * radius - 1.2, 1.5 * x[:, 0] - 1.5], 1)


@figure
def decision_regions(**where: Any) -> Any:
    turn = torch.linspace(0, 6, 40)
    points = torch.stack([turn.cos(), turn.sin()], 1) * torch.linspace(0.2, 1.3, 40)[:, None]
    labels = Rings()(points).argmax(1)
    labels[::5] = -1
    return inspection.decision_regions(Rings(), points, labels, points=40, names=["in", "out", "right"], **where)


@figure
def training_curves(**where: Any) -> Any:
    def run(speed: float) -> list[dict[str, float]]:
        return [{"epoch": e, "loss": 2 * math.exp(-speed * e), "validation_accuracy": 1 - math.exp(-speed * e),
                 "validation_robust_accuracy": 0.5 - 0.5 * math.exp(-speed * e)} for e in range(1, 9)]  # fmt: skip

    return inspection.training_curves({"FastFGSM": run(0.2), "PGD": run(0.4)}, **where)


@figure
def heat_maps(**where: Any) -> Any:
    values = {"FGSM": [[0.9, 0.3], [0.2, math.nan]], "PGD": [[1.0, 0.2], [0.1, 0.6]]}
    return inspection.heat_maps(
        values, ["plain", "robust"], ["plain", "robust"], rows="made on", columns="shown to", **where
    )


@figure
def layer_bars(**where: Any) -> Any:
    values = {"shift": [0.1, 0.7, math.inf], "stretch": [0.3, 0.2, 0.05]}
    return inspection.layer_bars(["stem.norm", "body.0.norm", "body.1.norm"], values, limit=0.5, **where)


def write(drawn: Any, path: Path) -> Path:
    Image.fromarray(style.rendered(drawn, DPI)).save(path, optimize=True)
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name: str, tmp_path: Path) -> None:
    expected, actual = BASELINES / f"{name}.png", write(FIGURES[name](), tmp_path / f"{name}.png")
    difference = compare_images(str(expected), str(actual), TOLERANCE)
    assert difference is None, difference


def test_the_comparison_sees_what_is_wrong(tmp_path: Path) -> None:
    """A sign, a class or a factor of two apart is well beyond the tolerance."""
    x = picture()
    wrong = {
        "saliency_grey": inspection.saliency(lambda x: -Waves()(x), x, int(Waves()(x[None]).argmax())),
        "perturbation": inspection.perturbation(x, (x - 0.05 * x.roll(3, 2).sub(0.5).sign()).clamp(0, 1)),
        "loss_surface": inspection.loss_surface(Waves(), x, 2, 0.05, points=15, title="A surface"),
        "ascend_class": inspection.ascend_class(
            Waves(), x, 3, confidence=0.9, names=["ant", "bee", "cat", "dog"]
        ).figure(),
    }
    for name, drawn in wrong.items():
        actual = write(drawn, tmp_path / f"{name}.png")
        assert compare_images(str(BASELINES / f"{name}.png"), str(actual), TOLERANCE) is not None, name


def test_baselines_are_small_and_all_in_use() -> None:
    sizes = {path.stem: path.stat().st_size for path in BASELINES.glob("*.png")}
    assert set(sizes) == set(FIGURES)
    assert max(sizes.values()) <= 30_000
    assert sum(sizes.values()) < 500_000


PANELS = ["perturbation", "accuracy_curve", "accuracy_curves", "loss_curves", "norm_histogram", "loss_surface",
          "decision_plane", "logits_along", "decision_regions"]  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_where_they_are_told(name: str) -> None:
    whole = style.new_figure(9, 5)
    part = whole.subfigures(1, 2)[1]
    if name in PANELS:
        axes = part.add_subplot()
        assert FIGURES[name](ax=axes) is whole
        assert axes.lines or axes.images or axes.collections
    else:
        assert FIGURES[name](fig=part) is whole
        assert len(part.axes) > 1
    assert not whole.subfigs[0].axes


if __name__ == "__main__":
    BASELINES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        path = write(draw(), BASELINES / f"{name}.png")
        with Image.open(path) as image:
            print(name, image.size, path.stat().st_size, np.asarray(image).std().round(1))
