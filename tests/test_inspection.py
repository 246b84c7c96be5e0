"""The figures: what is drawn is what was given, and nothing global is left behind."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from sparring import inspection
from sparring.inspection import pixels as px

CURVE = [{"eps": k / 255, "value": 0.9 - 0.1 * k, "low": 0.85 - 0.1 * k, "high": 0.95 - 0.1 * k} for k in range(9)]


def test_figures_leave_pyplot_and_settings_alone(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    figure = inspection.accuracy_curve(CURVE, eps=8 / 255, eps_typed="8/255")
    inspection.save(figure, tmp_path / "curve.svg")
    assert dict(matplotlib.rcParams) == settings
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None


def test_the_curve_shows_the_values_it_got_and_counts_in_255ths() -> None:
    figure = inspection.accuracy_curve(CURVE, eps=8 / 255, eps_typed="8/255")
    (axes,) = figure.axes
    line = axes.lines[0]
    assert np.asarray(line.get_ydata()).tolist() == [point["value"] for point in CURVE]
    assert np.asarray(line.get_xdata()).tolist() == [point["eps"] for point in CURVE]
    assert "8" in [label.get_text() for label in axes.get_xticklabels()]
    assert "1/255" in axes.get_xlabel()
    assert any(text.get_text() == "eps = 8/255" for text in axes.texts)


def test_an_empty_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        inspection.accuracy_curve([])


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 28, 28), "image"),
        ((3, 20, 45), "image"),
        ((28, 28), "image"),
        ((100,), "line"),
        ((1,), "line"),
        ((12, 1000), "line"),
        ((2, 1, 50), "line"),
        ((2, 50, 1), "line"),
        ((), "none"),
        ((3, 4, 8, 8), "none"),
        ((3, 0, 8), "none"),
    ],
)
def test_layout_and_triptych_of_every_shape(shape: tuple[int, ...], kind: str) -> None:
    assert px.layout(shape) == kind
    sample = torch.rand(shape)
    if kind == "none":
        with pytest.raises(ValueError, match="cannot draw"):
            inspection.triptych(sample, sample)
        return
    figure = inspection.triptych(sample, (sample + 0.01).clamp(0, 1), before=("a $x", 0.9), after=("b" * 80, 0.51))
    figure.draw_without_rendering()
    assert all(len(axes.images if kind == "image" else axes.lines) > 0 for axes in figure.axes)


def test_amplification_fills_the_box_and_no_more() -> None:
    original = torch.full((1, 4, 4), 0.5)
    for size in (1e-6, 8 / 255, 0.1, 0.3, 1.0):
        adversarial = original + torch.linspace(-size, size, 16).view(1, 4, 4)
        factor = px.amplification(original, adversarial)
        assert 0.45 < factor * size <= 0.5 + 1e-6, (size, factor)
        shown = px.amplified(original, adversarial, factor)
        expected = 0.5 + factor * (adversarial.double() - original.double())
        assert torch.allclose(shown, expected.clamp(0, 1))
    assert px.amplification(original, original) == 1.0


def test_pixels_follow_the_box() -> None:
    image = torch.tensor([[[-1.0, 0.0], [1.0, 5.0]]])
    assert px.pixels(image, (-1.0, 1.0)).tolist() == [[0, 128], [255, 255]]
    assert px.pixels(torch.rand(3, 5, 7)).shape == (5, 7, 3)
    assert px.pixels(torch.rand(4, 5, 7)).shape == (5, 7, 3)
    assert px.pixels(torch.rand(2, 5, 7)).shape == (5, 7)


def test_the_triptych_shows_what_the_network_saw() -> None:
    sample = torch.rand(3, 8, 8)
    figure = inspection.triptych(sample, sample, before=("panda", 0.577), after=("gibbon", 0.993), factor=3)
    left, middle, right = figure.axes
    assert left.texts[0].get_text() == "panda  57.7%"
    assert right.texts[0].get_text() == "gibbon  99.3%"
    assert "3" in middle.get_title()
    with pytest.raises(ValueError, match="one shape"):
        inspection.triptych(sample, sample[:1])


def test_loss_curves_mark_the_step_that_reached_the_target() -> None:
    figure = inspection.loss_curves({"SGD": [3.0, 2.0, 1.0], "Adam": [3.0, 0.5]}, reached={"Adam": 1, "SGD": None})
    (axes,) = figure.axes
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in marked] == [
        ([1], [0.5])
    ]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["SGD", "Adam, target at step 1"]
    with pytest.raises(ValueError, match="'SGD'"):
        inspection.loss_curves({"SGD": []})
    with pytest.raises(ValueError, match="positive"):
        inspection.loss_curves({"SGD": [1.0, 0.0]}, log=True)


def test_save_is_atomic_repeatable_and_goes_by_suffix(tmp_path: Path) -> None:
    figure = inspection.accuracy_curve(CURVE)
    path = inspection.save(figure, tmp_path / "new" / "curve.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
    vector = inspection.save(inspection.accuracy_curve(CURVE), tmp_path / "curve.svg")
    first = vector.read_bytes()
    assert inspection.save(inspection.accuracy_curve(CURVE), vector).read_bytes() == first
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        inspection.save(figure, tmp_path / "curve.gif")

    def fails(*_: object, **__: object) -> None:
        raise OSError("no space left")

    figure.savefig = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no space"):
        inspection.save(figure, vector)
    assert vector.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.svg", "new"]
