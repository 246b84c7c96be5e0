"""`descent` and `optimizers`: traces to the digit, and the two spaces that an image can be optimised in."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sparring.experiments import descent, optimizers
from sparring.experiments.record import document


def by_hand(x: float, lr: float) -> list[str]:
    """The loop that the walk-through prints."""
    lines, index, y = [], 0, 0.0
    while index < 100 and abs(y - 2) > 0.01:
        index += 1
        y = x**2 + 2
        lines.append(f"batch={index} x={x:.10f} y={y:.10f}")
        x -= 2 * x * lr
    return lines


def test_the_trace_from_six_to_the_digit() -> None:
    lines = descent.run(start=6).lines
    assert lines[0] == "batch=1 x=6.0000000000 y=38.0000000000"
    assert lines[13] == "batch=14 x=0.3298534883 y=2.1088033238"
    assert lines[-1] == "batch=20 x=0.0864691128 y=2.0074769075"
    assert lines == by_hand(6.0, 0.1)


@pytest.mark.parametrize(("start", "lr"), [(10, 0.1), (3, 0.5), (7, 0.01), (4, 1.0), (0.05, 0.1)])
def test_other_traces(start: float, lr: float) -> None:
    result = descent.run(start=start, lr=lr)
    assert result.lines == by_hand(start, lr)
    assert len(result.lines) <= 100


def test_the_random_start() -> None:
    starts = [descent.run(seed=seed).trace.x[0] for seed in range(40)]
    assert set(starts) == set(range(1, 11))
    assert descent.run(seed=5).trace == descent.run(seed=5).trace


def test_any_optimiser() -> None:
    momentum = descent.run(start=6, momentum=0.9).trace
    v, x = 0.0, 6.0
    for seen in momentum.x:
        assert seen == pytest.approx(x, abs=1e-12)
        v = 0.9 * v + 2 * x
        x -= 0.1 * v
    assert descent.run(start=6, optimizer="adam").trace.x[1] == pytest.approx(5.9)
    assert descent.run(start=6, optimizer="LBFGS").trace.reached, "needs a closure"
    nesterov = descent.run(start=6, options={"momentum": 0.9, "nesterov": True}).trace
    assert nesterov.x != momentum.x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sdg"}, "optimizer='sdg': expected"),
        ({"options": {"beta": 0.9}}, "SGD has no setting 'beta': it has momentum, dampening"),
        ({"optimizer": "Adam", "momentum": 0.9}, "Adam has no setting 'momentum'"),
        ({"lr": -1.0}, "SGD cannot start with .*Invalid learning rate"),
        ({"optimizer": "SparseAdam"}, "SparseAdam cannot descend on a single number"),
    ],
)
def test_descent_says_what_is_wrong(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        descent.run(start=6, **settings)
    assert "\n" not in str(raised.value)


def test_descent_that_diverges_still_writes_json(tmp_path: Path) -> None:
    result = descent.run(start=9, lr=1e4, out=tmp_path)
    assert not result.trace.reached
    assert json.loads((tmp_path / "numbers.json").read_text())["traces"][0]["reached"] is False


def test_what_descent_writes(tmp_path: Path) -> None:
    result = descent.run(start=6, optimizer="Adam", options={"betas": (0.5, 0.5)}, out=tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["descent.png", "descent.svg", "numbers.json"]
    numbers = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert numbers == json.loads(json.dumps(result.to_json()))
    assert numbers["versions"]["torch"] == torch.__version__
    assert next(row["optimizer"] for row in numbers["rows"]) == "Adam, betas (0.5, 0.5)"
    with Image.open(tmp_path / "new" / "descent.png") as picture:
        assert picture.width > 1000


def test_figures_need_no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises now
    assert len(descent.run(start=6).figure().axes) == 5


def test_numbers_that_are_not_finite_become_null() -> None:
    assert document("x", 0, {"a": math.inf}, rows=[(1.0, math.nan)])["rows"] == [[1.0, None]]
    assert document("x", 0, {"a": math.inf})["settings"] == {"a": None}


class Scores(nn.Module):
    """Linear scores of images, the first of them the largest for a grey photograph."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3 * 16 * 16, generator=generator) * 0.02)
        self.offset = nn.Parameter(torch.tensor([3.0, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.offset


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.new("RGB", (40, 30), (128, 128, 128)).save(path)
    return path


def test_one_rate_is_std_squared_apart_for_sgd_and_std_for_adam(photo: Path) -> None:
    """In normalised space a rate moves the pixels std² as far (SGD), or std (Adam), as it does in pixel space."""
    std = 0.25
    space = ((0.5, 0.5, 0.5), (std, std, std))

    def losses(optimizer: str, lr: float, where: str) -> tuple[float, ...]:
        result = optimizers.run(photo, 2, 12, lr, [optimizer], [lr], Scores(), space, "abcd", 16)
        (found,) = [d.loss for d in result.descents if d.space == where and not d.best_rate]
        return found

    for optimizer, factor in (("SGD", std**2), ("Adam", std)):
        assert losses(optimizer, 0.02, "normalised") == pytest.approx(
            losses(optimizer, 0.02 * factor, "pixel"), rel=1e-4
        )
        assert losses(optimizer, 0.02, "normalised") != pytest.approx(losses(optimizer, 0.02, "pixel"), rel=1e-2)


def test_optimizers_reports_what_happened(photo: Path, tmp_path: Path) -> None:
    model = Scores()
    result = optimizers.run(
        photo, 2, 40, 0.001, model=model, rates=(1e-4, 0.1, 10.0), class_names="abcd", size=16, out=tmp_path / "out"
    )
    assert (result.label, result.target) == ("a", "c")
    assert len(result.rows) == 12
    for d in result.descents:
        assert len(d.loss) == len(d.prediction) == 41
        assert d.prediction[0] == 0
        assert d.first == (d.prediction.index(2) if 2 in d.prediction else None)
        assert (d.confidence > 0.25) == (d.first is not None) or d.first is None
        if d.space == "pixel":
            assert d.outside == 0
    own = {(d.space, d.optimizer): d for d in result.descents if d.best_rate}
    for d in result.descents:
        best = own[d.space, d.optimizer].first
        assert best is not None
        assert d.first is None or best <= d.first
    assert max(d.outside for d in result.descents) > 0, "nothing keeps the normalised image in the box"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"optimizers.png", "optimizers.svg", "numbers.json"}
    assert not any(p.grad is not None for p in model.parameters())


def test_the_best_rate_is_the_smallest_that_is_as_early_as_any(photo: Path) -> None:
    result = optimizers.run(photo, 2, 30, 0.001, ["Adam"], (1.0, 0.5, 0.2, 1e-5), Scores(), size=16, class_names="abcd")
    chosen = {d.space: d for d in result.descents if d.best_rate}
    for space, d in chosen.items():
        others = [
            optimizers.run(photo, 2, 30, rate, ["Adam"], (rate,), Scores(), size=16, class_names="abcd").descents
            for rate in (0.2, 0.5, 1.0)
        ]
        firsts = {found[0].lr: next(e for e in found if e.space == space).first for found in others}
        earliest = min(first for first in firsts.values() if first is not None)
        assert d.lr == min(rate for rate, first in firsts.items() if first == earliest)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"target": 4}, ValueError, "target=4: the model has 4 classes, 0 to 3"),
        ({"target": 0}, ValueError, "target=0: the photograph is classified as that already"),
        ({"image": "nowhere.jpg"}, FileNotFoundError, "nowhere.jpg"),
        ({"steps": 0}, ValueError, "expected at least one step"),
        ({"optimizers": ["Adamm"]}, ValueError, "optimizer='Adamm'"),
    ],
)
def test_optimizers_says_what_is_wrong(
    photo: Path, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"image": photo, "target": 2, "model": Scores(), "size": 16, **settings}
    with pytest.raises(error, match=message):
        optimizers.run(**given)
