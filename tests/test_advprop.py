"""AdvProp in `fit`: two sets of BatchNorm statistics, both validated, both kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparring as sp
from sparring.training import Progress

THREAT = sp.Linf(0.1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))


def samples(n: int = 90, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.rand(n, 1, 6, 6, generator=generator) * 0.6
    x[torch.arange(n), 0, y] += 0.25
    return x, y


def strategy() -> sp.AdvProp:
    """Examples far away, so that the two sets of statistics differ."""
    return sp.AdvProp(sp.PGD(sp.Linf(0.4), steps=2))


@pytest.mark.parametrize("averaged", [False, True])
def test_both_branches_are_validated_and_kept(tmp_path: Path, averaged: bool) -> None:
    model, held = network(), samples(60, seed=1)
    made = strategy().with_(sp.EMA(0.9)) if averaged else strategy()
    attack = sp.PGD(THREAT, steps=10)
    how = {"epochs": 3, "batch_size": 16, "lr": 0.05, "validation": held, "validation_attack": attack, "out": tmp_path}
    result = sp.fit(model, samples(), made, **how)
    best = result.best
    measured = []
    for branch in ("clean", "adversarial"):
        net = result.load_best(network(), branch=branch).eval()
        found = sp.evaluate(net, held, THREAT, attacks=[attack], checkup=False, batch_size=256)
        measured += [found.clean_accuracy.value, found.robust_accuracy.value]
        file = {"clean": "best", "adversarial": "best_adversarial"}[branch]
        kept = load_file(tmp_path / f"{file}.safetensors")
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in kept.items())
    told = [best.validation_accuracy, best.validation_robust_accuracy]
    told += [best.validation_adversarial_branch_accuracy, best.validation_adversarial_branch_robust_accuracy]
    assert told == pytest.approx(measured)
    assert told[:2] != told[2:]
    assert best.standing.startswith('branch "clean": clean ')
    assert f'branch "adversarial": clean {told[2]:.1%}, robust {told[3]:.1%}' in repr(result)
    row = json.loads((tmp_path / "history.json").read_text())["epochs"][best.epoch - 1]
    assert row["validation_adversarial_branch_robust_accuracy"] == told[3]
    assert "validation_adversarial_branch_accuracy" in next(csv.reader((tmp_path / "log.csv").open()))
    last = load_file(tmp_path / "last_adversarial.safetensors")
    with result.strategy.statistics.branch(model, "adversarial"):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in last.items())
    assert not torch.equal(last["1.running_mean"], model[1].running_mean)
    again = sp.fit(network(), samples(), made, **how)
    assert all(torch.equal(value, result.best_adversarial[name]) for name, value in again.best_adversarial.items())
    sp.fit(network(), samples(), sp.Standard(), epochs=1, validation=held, out=tmp_path, resume=False, health=False)
    assert not list(tmp_path.glob("*_adversarial.safetensors"))


def test_the_progress_says_both() -> None:
    seen: list[Progress] = []
    sp.fit(network(), samples(), strategy(), epochs=1, validation=samples(30, 1), progress=seen.append, health=False)
    assert "validation robust" in seen[-1].text
    assert "with adversarial statistics" in seen[-1].text


def test_one_set_of_statistics_has_no_branches() -> None:
    model = network()
    result = sp.fit(model, samples(), sp.FastFGSM(THREAT), epochs=1, validation=samples(30, 1))
    assert result.best.validation_adversarial_branch_accuracy is None
    assert "branch" not in repr(result)
    with pytest.raises(
        ValueError, match="branch='adversarial': expected 'clean', or 'adversarial' after a training with"
    ):
        result.load_best(model, branch="adversarial")


def test_first_only_the_head_learns_then_both_branches() -> None:
    model = network()
    result = sp.fit(model, samples(), strategy(), epochs=2, validation=False, head_epochs=1)
    with result.strategy.statistics.branch(model, "adversarial"):
        other = model[1].running_mean.clone()
    assert not torch.equal(other, model[1].running_mean)


def test_layers_whose_weights_learn_under_frozen_statistics_are_refused() -> None:
    model = network()
    model[1].eval()
    with pytest.raises(ValueError, match="AdvProp: the model has no BatchNorm layer in train mode to split"):
        sp.fit(model, samples(), strategy(), epochs=1, validation=False)
