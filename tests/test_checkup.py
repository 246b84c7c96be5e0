"""The checkup: what it counts on models built to show it, that it costs what it says, and that nothing chance decides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import Backwards, RowWise, convolutional, inputs, linear, mlp
from sparring.borrow import borrow
from sparring.evaluation.checkup import FALLEN, STANDING, Chosen, add, check
from sparring.rows import Rows

SHAPE = (3, 4, 5)
MODEL = mlp(SHAPE)


def rows_of(x: Tensor, y: Tensor, threat: sp.Threat, **context: Tensor) -> Rows:
    order = torch.arange(len(x))
    return Rows(order, order, x, y, threat.for_inputs(x), context=dict(context))


def checked(model: Any, threat: sp.Threat, count: int = 8, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """Findings on samples that all stand, as far as the checkup knows."""
    x, _ = inputs(count, SHAPE, dtype=dtype)
    with borrow(model) as borrowed:
        y = borrowed.look(x).argmax(1) if model is not NOISY else MODEL(x).argmax(1)
        return check(borrowed, rows_of(x, y, threat), torch.ones(count, dtype=torch.bool), **settings)


class Wrapped(nn.Module):
    def __init__(self, function: Any, model: nn.Module = MODEL) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.model, x)


NOISY = Wrapped(lambda model, x: model(x + 0.1 * torch.randn_like(x)))
BATCHED = Wrapped(lambda model, x: model(nn.functional.batch_norm(x, None, None, training=True)))
TURNED = Wrapped(lambda model, x: model(Backwards.apply(x)))
RIPPLED = Wrapped(lambda model, x: model(x + 0.001 * torch.sin(9000 * x)))  # too small to fool, too steep to follow


@pytest.mark.parametrize("threat", [sp.Linf(0.02), sp.L2(0.1), sp.L1(0.3)], ids=repr)
def test_an_ordinary_model_shows_nothing(threat: sp.Threat) -> None:
    found = checked(MODEL, threat)
    assert (found["samples"], found["standing"]) == (8, 8)
    assert found["repeats"] == found["turned"] == found["company"] == found["combined"] == 0
    assert found["unbounded_failed"] == 0
    assert found["rises"] == found["climbs"] > 0
    assert found["one_step_only"] == 0


def test_a_random_model_answers_differently_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    found = checked(NOISY, sp.Linf(0.02))
    assert found["repeats"] == 8
    assert torch.equal(before, torch.get_rng_state())
    assert found == checked(NOISY, sp.Linf(0.02))


def test_batch_statistics_show_even_for_two_samples_or_one() -> None:
    for count in (8, 2, 1):
        assert checked(BATCHED, sp.Linf(0.02), count)["company"] == count
    assert checked(convolutional(4), sp.Linf(0.02))["company"] == 0  # its BatchNorm is borrowed in evaluation mode


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rounding_of_low_precision_is_no_finding(dtype: torch.dtype) -> None:
    found = checked(convolutional(4, dtype=dtype), sp.Linf(0.1), dtype=dtype)
    assert found["repeats"] == found["company"] == 0


def test_gradients_that_mislead_do_not_climb_and_fail_without_a_limit() -> None:
    found = checked(TURNED, sp.Linf(0.02))
    assert found["rises"] == 0
    assert found["unbounded_failed"] == found["unbounded"] == 8
    assert found["one_step"] == found["ten_steps"] == 0
    rippled = checked(RIPPLED, sp.Linf(0.01))
    assert rippled["climbs"] > 40
    assert rippled["rises"] < 0.8 * rippled["climbs"]


def test_what_other_steps_find_is_counted_for_standing_samples_only() -> None:
    model, threat = linear(SHAPE), sp.Linf(0.9)  # so wide that one step fools everybody
    x, _ = inputs(8, SHAPE)
    standing = torch.arange(8) < 5
    with borrow(model) as borrowed:
        found = check(borrowed, rows_of(x, borrowed.look(x).argmax(1), threat), standing)
    assert found["standing"] == 5
    assert (
        found["one_step"] == found["ten_steps"] == found["small_steps"] == found["large_steps"] == found["further"] == 5
    )
    assert found["one_step_only"] == found["ten_steps_only"] == 0


@pytest.mark.parametrize(
    "threat",
    [
        sp.Linf(0.02),
        sp.Linf(0.02, bounds=None),
        sp.Linf(math.inf),
        sp.Linf(torch.linspace(0.0, 0.05, 8)),
        sp.L2(0.2, mask=torch.rand(SHAPE) > 0.5),
        sp.L1(0.3, mask=torch.rand(8, *SHAPE) > 0.5),
        sp.L0(3),
    ],
    ids=repr,
)
def test_every_threat_and_its_cost(threat: sp.Threat) -> None:
    calls = {"forwards": 0}

    def counted(model: nn.Module, x: Tensor) -> Tensor:
        calls["forwards"] += len(x)
        return model(x)  # type: ignore[no-any-return]

    x, _ = inputs(8, SHAPE)
    with borrow(Wrapped(counted)) as borrowed:
        y = borrowed.look(x).argmax(1)
        calls["forwards"] = 0
        found = check(borrowed, rows_of(x, y, threat), torch.ones(8, dtype=torch.bool))
    assert found["forwards"] == calls["forwards"]
    assert found["forwards"] + found["backwards"] <= 8 * 88
    assert ("climbs" in found) == (threat.norm != "l0" and threat.typed != "inf")
    assert ("unbounded" in found) == (threat.norm != "l0" and threat.bounds is not None)
    assert all(isinstance(value, int) for value in found.values())


def test_without_gradients_it_looks_at_logits_only() -> None:
    found = checked(Wrapped(lambda model, x: model(x).detach()), sp.Linf(0.02), gradients=False)
    assert found["backwards"] == 0
    assert "climbs" not in found
    assert found["repeats"] == found["company"] == 0


def test_findings_do_not_depend_on_the_batch_size() -> None:
    for model in (RowWise(SHAPE), Wrapped(lambda model, x: model((x * 9).round() / 9), RowWise(SHAPE))):
        found = [checked(model, sp.Linf(0.05), 12, batch_size=size) for size in (1, 5, 128)]
        assert found[0] == found[1] == found[2]


def test_the_samples_chosen_are_the_same_in_any_order() -> None:
    x, y = inputs(200, SHAPE)
    everything = rows_of(x, y, sp.Linf(0.1))
    picked = []
    for order, size in ((torch.arange(200), 200), (torch.randperm(200), 7), (torch.arange(200).flip(0), 64)):
        chosen = Chosen(3)
        for first in range(0, 200, size):
            some = everything[order[first : first + size]]
            for standing in (True, False):
                mine = some.index % 2 == int(standing)
                if bool(mine.any()):
                    chosen.offer(some[mine], standing)
        rows, standing = chosen.rows() or (None, None)
        assert rows is not None
        assert standing is not None
        assert int(standing.sum()) == STANDING
        assert len(rows) == STANDING + FALLEN
        assert torch.equal(rows.index % 2 == 1, standing)
        assert torch.equal(rows.original, x[rows.index])
        picked.append(rows.index.tolist())
    assert picked[0] == picked[1] == picked[2]
    assert picked[0] != sorted(range(200))[: len(picked[0])]  # by a hash, not by number


def test_nothing_right_means_nothing_to_look_at() -> None:
    assert Chosen(0).rows() is None
    x, _ = inputs(6, SHAPE)
    y = (MODEL(x).argmax(1) + 1) % 4
    result = sp.evaluate(MODEL, (x, y), sp.Linf(0.1), attacks="pgd")
    assert not result.document["checkup"].get("samples")


def test_a_run_that_was_cut_short_finds_what_a_whole_one_does(tmp_path: Path) -> None:
    model = RowWise(SHAPE)
    x, _ = inputs(40, SHAPE)
    y = model(x).argmax(1)
    settings: dict[str, Any] = {"attacks": sp.PGD(sp.Linf(0.05), steps=3), "batch_size": 8}
    whole = sp.evaluate(model, (x, y), sp.Linf(0.05), **settings)
    assert 0 < whole.robust_accuracy.count < 40
    for _ in range(3):
        result = sp.evaluate(model, (x, y), sp.Linf(0.05), out=tmp_path, time_limit=1e-9, **settings)
        assert not result.finished
        assert result.document["checkup"] is None
    result = sp.evaluate(model, (x, y), sp.Linf(0.05), out=tmp_path, **settings)
    assert result.document["checkup"] == whole.document["checkup"]
    assert result.warnings == whole.warnings
    again = sp.evaluate(model, (x, y), sp.Linf(0.05), checkup=False, **settings)
    assert again.document["checkup"] is None
    assert again.forwards == whole.forwards - whole.document["passes"]["checkup"]
    assert again.backwards == whole.backwards - whole.document["passes"]["checkup_backwards"]


def test_a_model_of_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, shift: Tensor) -> Tensor:
            return MODEL(image) + shift  # type: ignore[no-any-return]

    x, _ = inputs(20, SHAPE)
    shift = inputs(20, (4,))[0]
    y = (MODEL(x) + shift).argmax(1)
    dataset = [({"image": x[i], "shift": shift[i]}, int(y[i])) for i in range(20)]
    result = sp.evaluate(sp.attacked_input(Two(), "image"), dataset, sp.Linf(0.02), attacks="pgd")
    found = result.document["checkup"]
    assert found["samples"] > 0
    assert found["company"] == found["repeats"] == 0
    assert "rounded" not in found


def test_shards_look_at_fewer_samples_each_and_add_up() -> None:
    assert add({"a": 1, "b": 2}, {"a": 3}, {}) == {"a": 4, "b": 2}
    x, y = inputs(100, SHAPE)
    chosen = Chosen(0, shards=4)
    chosen.offer(rows_of(x, y, sp.Linf(0.1)), True)
    rows, _ = chosen.rows() or (None, None)
    assert rows is not None
    assert len(rows) == STANDING // 4
