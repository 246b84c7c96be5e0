"""What the pictures are of: gradients of single samples, ascents, planes, histories; nothing of a model changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from networks import convolutional, linear
from sparring import inspection
from sparring.inspection.landscape import Plane


def x(batch: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradients_are_each_samples_own_in_any_batch() -> None:
    """In eval mode, in float64: those of the whole batch are those of its samples alone."""
    model = convolutional().train()
    classes = torch.tensor([0, 2, 1, 1, 0])
    logits, gradients = inspection.logit_gradients(model, x(), classes)
    pairs = inspection.logit_gradients(model, x(), torch.stack([classes, 2 - classes], 1))[1]
    model.eval()
    for i, label in enumerate(classes.tolist()):
        sample = x()[i : i + 1].requires_grad_(True)
        alone = model(sample)
        (expected,) = torch.autograd.grad(alone[0, label], sample)
        assert torch.allclose(gradients[i], expected[0], atol=1e-12)
        assert torch.allclose(pairs[i, 0], expected[0], atol=1e-12)
        assert torch.allclose(logits[i], alone[0], atol=1e-12)
    with torch.inference_mode():  # also of samples that were made in it
        again = inspection.logit_gradients(model, x() + 0, classes)[1]
    assert torch.equal(again, gradients)
    likeliest = inspection.logit_gradients(model, x())[1]
    assert torch.equal(likeliest, inspection.logit_gradients(model, x(), logits.argmax(1))[1])
    with pytest.raises(ValueError, match=r"classes \[\[3\]"):
        inspection.logit_gradients(model, x(), torch.full((5,), 3))
    with pytest.raises(ValueError, match="one or more of each of 5 samples"):
        inspection.logit_gradients(model, x(), torch.tensor([1]))


def test_nothing_of_the_model_changes() -> None:
    model = convolutional().train()
    model[1].eval()  # a frozen layer stays frozen
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    before = ({name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state())
    sample, label = x(1)[0], 1
    inspection.saliency(model, sample)
    inspection.ascend_class(model, sample, 2, steps=3)
    inspection.loss_surface(model, sample, label, 0.1, points=3)
    inspection.decision_plane(model, sample, label, 0.1, points=3)
    inspection.logits_along(model, sample, label, points=3)
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True, True]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]


def test_pictures_need_pixels() -> None:
    vector, model = torch.rand(9, dtype=torch.float64), linear((9,), 3)
    way = inspection.ascend_class(model, vector, 2, steps=2)  # vectors can be climbed with, not drawn
    for draw in (
        lambda: inspection.saliency(model, vector),
        lambda: inspection.perturbation(vector, vector),
        lambda: inspection.gallery(vector[None], vector[None]),
        lambda: inspection.confused_logits(vector, torch.zeros(2, 9), (0, 1), (5.0, 5.0)),
        lambda: way.figure(),
        lambda: way.save("there.gif"),
    ):
        with pytest.raises(
            ValueError, match=r"drawn on pictures: samples of shape \(9,\) are none, expected \(C, H, W\)"
        ):
            draw()
    assert inspection.loss_surface(model, vector, 0, 0.1, points=3)
    assert inspection.logits_along(model, vector, 0, points=3)


def test_an_ascent_takes_even_steps_until_the_network_says_so() -> None:
    model = linear((1, 6, 6), 3)
    start = torch.full((1, 6, 6), 0.5, dtype=torch.float64)
    target = int(model(start[None]).argmin())
    way = inspection.ascend_class(model, start, target, step=0.02, bounds=(-9, 9), names="abc")
    moves = way.frames.diff(dim=0).flatten(1)
    assert torch.allclose(moves.norm(dim=1), torch.tensor(0.02 * 6, dtype=torch.float64))
    weight = model[1].weight.detach()[target]
    assert torch.allclose(moves[0], weight / weight.norm() * 0.12)
    assert torch.allclose(way.probabilities, model(way.frames).softmax(1), atol=1e-12)
    says = way.probabilities.argmax(1) == target
    assert says.tolist() == [False] * way.steps + [True]
    assert way.reached
    assert (way.label, way.target) == (int(way.before.argmax()), target)
    assert repr(way).startswith(f"ClassAscent({'abc'[way.label]} → {'abc'[target]}, {way.steps} steps")
    sure = inspection.ascend_class(model, start, target, step=0.02, bounds=(-9, 9), confidence=0.9)
    assert sure.steps > way.steps
    assert sure.probabilities[-2, target] < 0.9 <= sure.after[target]
    box = inspection.ascend_class(model, start, target, step=0.5, bounds=(0.4, 0.6), steps=4)
    assert float(box.frames.min()) >= 0.4
    assert float(box.frames.max()) <= 0.6
    short = inspection.ascend_class(model, start, target, step=1e-6, steps=3)
    assert (short.steps, short.reached) == (3, False)
    margin = inspection.ascend_class(model, start, target, objective="margin", step=0.02, bounds=(-9, 9))
    assert margin.steps <= way.steps, "away from the rivals, too"
    dead = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU()).double()
    nn.init.constant_(dead[1].bias, -99.0)
    assert inspection.ascend_class(dead, start, 2).steps == 0
    for wrong in (
        {"target": 3},
        {"target": 1, "steps": 0},
        {"target": 1, "confidence": 1.5},
        {"target": 1, "step": 0.0},
    ):
        with pytest.raises(ValueError, match=r"expected at least 1|has 3 classes"):
            inspection.ascend_class(model, start, **wrong)  # type: ignore[arg-type]


def test_the_animation_has_a_frame_a_step(tmp_path: Path) -> None:
    model = linear((1, 6, 6), 3)
    way = inspection.ascend_class(
        model, torch.full((1, 6, 6), 0.5, dtype=torch.float64), 2, step=0.1, steps=5, confidence=1.0
    )
    path = way.save(tmp_path / "new" / "way.gif")
    with Image.open(path) as animation:
        assert animation.n_frames == way.steps + 1
        assert animation.info["loop"] == 0
        assert animation.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert animation.info["duration"] == 900
        first = np.asarray(animation.convert("RGB")).astype(int)
        animation.seek(way.steps)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - first).max() > 50
    assert [file.name for file in path.parent.iterdir()] == ["way.gif"]
    assert way.save(tmp_path / "way.png").is_file()
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        way.save(tmp_path / "way.bmp")


def test_planes_are_where_they_say() -> None:
    model, sample = convolutional().eval(), x(1)[0]
    plane = Plane.around(model, sample, 1, 0.05, None, 2.0, 5, seed=3)
    assert plane.places.tolist() == [-2, -1, 0, 1, 2]
    assert torch.allclose(plane.logits[2, 2], model(sample[None])[0], atol=1e-12)
    fgsm = sp.FGSM(sp.Linf(0.05, bounds=None))(model, sample[None], torch.tensor([1])).x
    assert torch.allclose(plane.logits[2, 3], model(fgsm)[0], atol=1e-10)
    towards = Plane.around(model, sample, 1, 0.05, fgsm[0] + 0.01, 1.0, 3, seed=3)
    assert torch.allclose(towards.logits[1, 2], model(fgsm + 0.01)[0], atol=1e-10)
    assert torch.equal(Plane.around(model, sample, 1, 0.05, None, 2.0, 5, seed=3).logits, plane.logits)
    other = Plane.around(model, sample, 1, 0.05, None, 2.0, 5, seed=4)
    assert torch.allclose(other.logits[2], plane.logits[2], atol=1e-12), (
        "another random direction, the same adversarial one"
    )
    assert not torch.allclose(other.logits[0], plane.logits[0], atol=1e-6)
    for wrong in ({"eps": 0.0}, {"eps": 0.1, "points": 1}, {"eps": 0.1, "reach": 0.0}):
        with pytest.raises(ValueError, match="expected above 0, above 0, and at least 2"):
            inspection.loss_surface(model, sample, 1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has 3"):
        inspection.logits_along(model, sample, 7)
    with pytest.raises(ValueError, match="expected that of the sample"):
        inspection.logits_along(model, sample, 1, direction=torch.zeros(3))
    with pytest.raises(ValueError, match="two features"):
        inspection.decision_regions(model, x(), torch.zeros(5))


def lines(axes: Any) -> list[list[float]]:
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines if len(line.get_xdata())]


def test_training_curves_read_what_fit_wrote(tmp_path: Path) -> None:
    samples = (torch.rand(60, 4), torch.randint(0, 2, (60,)))
    settings = {"lr": 0.1, "batch_size": 20, "health": False, "progress": False, "loggers": ("csv",)}
    strategy = sp.PGDTraining(sp.Linf(0.1), steps=1)
    result = sp.fit(nn.Linear(4, 2), samples, strategy, epochs=3, out=tmp_path / "run", **settings)
    drawn = [inspection.training_curves({"run": run}) for run in
             (result, result.history, tmp_path / "run", str(tmp_path / "run" / "log.csv"))]  # fmt: skip
    for figure in drawn:
        left, right = figure.axes
        assert np.allclose(lines(left), [[row.loss for row in result.history]])
        clean, robust = lines(right)
        assert np.allclose(clean, [row.validation_accuracy for row in result.history])
        assert np.allclose(robust, [row.validation_robust_accuracy for row in result.history])
    by_passes = inspection.training_curves({"run": result}, across="passes").axes[0].lines[0].get_xdata()
    assert np.allclose(by_passes, np.cumsum([row.forwards + row.backwards for row in result.history]))
    with pytest.raises(ValueError, match="no rows with a loss"):
        inspection.training_curves({"empty": []})
    with pytest.raises(ValueError, match="doesn't tell its seconds"):
        inspection.training_curves({"mine": [{"loss": 1.0}]}, across="seconds")
    with pytest.raises(ValueError, match="epoch, seconds, passes"):
        inspection.training_curves({"mine": [{"loss": 1.0}]}, across="hours")
    with pytest.raises(FileNotFoundError):
        inspection.training_curves({"mine": tmp_path / "nowhere.csv"})


def test_histograms_count_every_sample() -> None:
    sizes = torch.tensor([0.1, 0.1, 0.3, torch.inf])
    figure = inspection.norm_histogram({"net": sizes}, bins=3)
    (filled, outline) = figure.axes[0].patches
    assert np.allclose(outline.get_data().values, [0.5, 0, 0.25]), "shares of all four"
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "net, median 0.1 (1 of 4 withstood it)"
    assert filled.get_fill()
    with pytest.raises(ValueError, match="at least one finite size"):
        inspection.norm_histogram({"net": torch.tensor([torch.nan])})
