"""docs/few-labels.md runs, its picture is made by what lies beside it, and labels are chosen fairly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pages
from sparring.data import few_labels, two_moons

FIGURES = pages.DOCS / "figures"


def test_the_page_runs() -> None:
    names, blocks = pages.run("few-labels.md")
    assert blocks == 4
    assert names["error"] < 0.05
    torch.testing.assert_close(names["r"].norm(dim=1), torch.full((8,), 0.2))


def test_the_animation_is_made_and_shows_what_it_says(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_moons", FIGURES / "make_moons.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    errors = script.make(tmp_path / "moons.gif", epochs=3)
    assert set(errors) == {"labels only", "VAT"}
    with Image.open(tmp_path / "moons.gif") as made, Image.open(FIGURES / "two-moons.gif") as kept:
        assert made.n_frames == 3
        assert kept.n_frames > 20
        assert made.size == kept.size


@pytest.mark.parametrize(("count", "classes"), [(10, 10), (25, 10), (6, 4)])
def test_labels_are_balanced_and_the_seeds_own(count: int, classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes, 400)
    chosen = few_labels(labels, count, seed=1)
    counts = np.bincount(labels[chosen], minlength=classes)
    assert counts.sum() == count == len(np.unique(chosen))
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(chosen, few_labels(labels, count, seed=1))
    assert not np.array_equal(chosen, few_labels(labels, count, seed=2))


@pytest.mark.parametrize(
    ("labels", "count", "said"),
    [
        ([0, 1, 2], 2, "at least one label for each of 3 classes"),
        ([0, 0, 0, 1], 4, "class 1 has 1 samples, and 2 of each class are wanted"),
        ([0.5, 1.0], 2, "expected class numbers"),
        ([0, 1], 2.0, "expected a whole number"),
    ],
)
def test_labels_that_cannot_be_chosen(labels: list[int], count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        few_labels(labels, count)


def test_two_moons_lie_where_they_should() -> None:
    x, y = two_moons(200, noise=0.0, seed=3)
    assert torch.bincount(y).tolist() == [100, 100]
    torch.testing.assert_close(x[y == 0].norm(dim=1), torch.ones(100))
    torch.testing.assert_close((x[y == 1] - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(100))
    assert (x[y == 0][:, 1] >= -1e-6).all()
    assert (x[y == 1][:, 1] <= 0.5 + 1e-6).all()
    with pytest.raises(ValueError, match="noise=-1"):
        two_moons(10, noise=-1)
