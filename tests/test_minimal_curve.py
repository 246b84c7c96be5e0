"""Searches for the smallest perturbation in `evaluate`: one run, and the accuracy at every eps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import sparring as sp
from networks import direction, inputs, linear, mlp
from sparring.evaluation import verify

SHAPE = (3, 4, 5)


def exact(model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B,) the l2 distance to the other class of a linear two-class model without a box; 0 where it is wrong."""
    with torch.no_grad():
        z = model(x)
    lead = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
    return lead.clamp_min(0) / direction(model, y).norm(dim=1)


@pytest.fixture(scope="module")
def linear_case() -> tuple[torch.nn.Sequential, torch.Tensor, torch.Tensor, torch.Tensor]:
    model, (x, y) = linear(SHAPE), inputs(40, SHAPE)
    return model, x, y, exact(model, x, y)


@pytest.mark.parametrize("eps", [0.9, math.inf])
def test_one_run_tells_the_accuracy_at_every_eps(linear_case, eps: float) -> None:
    model, x, y, distance = linear_case
    threat = sp.L2(eps, bounds=None)
    result = sp.evaluate(model, (x, y), threat, attacks=sp.FMN(threat, steps=60), checkup=False)
    assert torch.allclose(result.distance, distance, rtol=1e-3)
    assert result.robust_accuracy.count == int((distance > eps).sum())
    assert result.robust_accuracy.count == result.accuracy_at(eps).count
    assert result.curve[-1]["eps"] == pytest.approx(float(distance.max()), rel=1e-3)
    for at in (0.4, 0.8, 0.9, 1.3):
        assert result.accuracy_at(at).count == int((result.distance > at).sum())
        assert abs(result.accuracy_at(at).count - int((distance > at).sum())) <= 1  # one may lie at that very eps
    counts = [point["value"] for point in result.curve]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert {point["eps"] for point in result.curve} >= ({0.9} if eps == 0.9 else {0.0})


def test_the_norm_of_a_search_is_the_distance_and_costs_no_more(linear_case) -> None:
    model, x, y, _ = linear_case
    threat = sp.L2(math.inf, bounds=None)
    result = sp.evaluate(model, (x, y), threat, attacks=sp.FMN(threat, steps=20), checkup=False)
    right = int(result.correct.sum())
    assert result.document["passes"]["distance_backwards"] == 0
    assert result.document["passes"]["distance"] == right  # a look to confirm
    assert result.backwards == 20 * right
    alone = sp.FMN(threat, steps=20)(model, x[result.correct], y[result.correct])
    assert torch.allclose(result.distance[result.correct], alone.norm.float().double())


def test_a_search_that_stops_at_eps_is_an_attack_like_others(linear_case) -> None:
    model, x, y, _ = linear_case
    threat = sp.L2(1.1, bounds=None)
    whole = sp.evaluate(model, (x, y), threat, attacks=sp.FMN(threat, steps=40), checkup=False)
    short = sp.evaluate(model, (x, y), threat, attacks=sp.FMN(threat, steps=40, stop_when_fooled=True), checkup=False)
    assert torch.equal(whole.robust, short.robust)
    assert short.attacks[0]["backwards"] < whole.attacks[0]["backwards"]
    assert short.document["passes"]["distance_backwards"] > 0


def test_beyond_eps_only_where_somebody_looked(linear_case) -> None:
    model, x, y, _ = linear_case
    threat = sp.L2(0.1, bounds=None)
    result = sp.evaluate(model, (x, y), threat, attacks=sp.PGD(threat, steps=5), checkup=False)
    assert result.curve[-1]["eps"] == 0.1
    with pytest.raises(ValueError, match=r"accuracy_at\(0.2\): expected a number from 0 to 0.1"):
        result.accuracy_at(0.2)


def test_after_another_attack_and_at_any_batch_size(linear_case) -> None:
    model, x, y, distance = linear_case
    threat = sp.L2(0.9, bounds=None)
    attacks = [sp.PGD(threat, steps=5), sp.FMN(threat, steps=30)]
    one, many = (
        sp.evaluate(model, (x, y), threat, attacks=attacks, batch_size=size, checkup=False) for size in (3, 64)
    )
    assert torch.equal(one.robust, many.robust)
    # FMN steps onto the boundary of a linear model: which side it sees is decided by the last digit, in which batches of unlike
    # sizes differ, and its steps are a thousandth long by then
    assert torch.allclose(one.distance, many.distance, rtol=2e-3)
    assert (one.forwards, one.backwards) == (many.forwards, many.backwards)
    assert bool((one.distance[one.robust] > 0.9).all())
    assert torch.allclose(one.distance[one.robust], distance[one.robust], rtol=0.02)


@pytest.mark.parametrize("eps", [0.2, math.inf])
def test_verify_believes_it_and_finds_lies(tmp_path: Path, eps: float) -> None:
    model = mlp(SHAPE, dtype=torch.float32)
    x, _ = inputs(16, SHAPE, dtype=torch.float32)
    with torch.no_grad():
        y = model(x).argmax(1)
    threat = sp.L2(eps)
    attacks = [sp.FMN(threat, steps=20), sp.DDN(threat, steps=10), sp.DeepFool(threat), sp.CarliniWagner(threat, 18, 3)]
    result = sp.evaluate(model, (x, y), threat, attacks=attacks, out=tmp_path / "run", checkup=False)
    told = verify(tmp_path / "run", model, (x, y))
    assert told.ok, told.lies
    assert result.robust_accuracy.count == int((result.distance > eps).sum())
    if eps == 0.2:
        assert 0 < result.robust_accuracy.count < 16
        assert told.attacked_again == result.robust_accuracy.count
        path = tmp_path / "run" / "samples.jsonl"
        lines = path.read_text().splitlines()
        line = next(i for i, line in enumerate(lines) if '"robust": true' in line)
        told_distance = lines[line].split('"distance": ')[1].split(",")[0]
        lines[line] = lines[line].replace(f'"distance": {told_distance}', '"distance": 0.1')
        path.write_text("\n".join(lines) + "\n")
        assert any("within eps" in lie for lie in verify(tmp_path / "run", model).lies)
