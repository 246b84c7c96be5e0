"""Modules that give buffers of their own to `functional.batch_norm` are BatchNorm layers like torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.training.optimizing import Tuning
from sparring.training.own_norms import own_norms

THREAT = sp.Linf(0.1)


class Own(nn.Module):
    def __init__(self, features: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))
        self.momentum = momentum

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training, self.momentum)


class Bare(Own):
    def forward(self, x: Tensor) -> Tensor:
        given = (x, self.weight, self.bias, self.mean, self.var, self.training, self.momentum, 1e-5)
        return torch.batch_norm(*given, cudnn_enabled=False)


class Native(Own):
    def forward(self, x: Tensor) -> Tensor:
        given = (self.weight, self.bias, self.mean, self.var, self.training, self.momentum, 1e-5)
        return torch.native_batch_norm(x, *given)[0]


class Inside(nn.BatchNorm2d):
    """One of torch's, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        momentum = self.momentum or 0.0
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )


def network(kind: Any) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [kind(4), kind(4)]
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 4, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    with torch.no_grad():  # behind, as after pretraining at another scale
        for norm in norms:
            var = norm.running_var if isinstance(norm, nn.BatchNorm2d) else norm.var
            var.fill_(4.0)
    return net.double()


def torchs(features: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(features, momentum=0.5)


def samples(n: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def running(model: nn.Sequential) -> list[Tensor]:
    keys = ("running_mean", "running_var") if isinstance(model[1], nn.BatchNorm2d) else ("mean", "var")
    return [getattr(model[i], key).clone() for i in (1, 4) for key in keys]


def learned(kind: Any, strategy: Any, batches: int = 48) -> tuple[list[Tensor], list[bool], nn.Sequential]:
    """The examples of every batch, whether "auto" found agreement, and the network."""
    model, (x, y) = network(kind), samples(16)
    made: list[Tensor] = []
    inside = strategy.examples

    def watched(model: Any, batch: Any) -> Tensor:
        before = running(model)
        made.append(inside(model, batch))
        assert all(torch.equal(a, b) for a, b in zip(before, running(model))), "crafting moves no buffer"
        return made[-1]

    strategy.examples = watched
    agreed = []
    for _ in range(batches):
        for loss in strategy(model, (x, y)):
            loss.value.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad
                p.grad = None
        agreed.append(strategy.statistics.agrees)
    return made, agreed, model


@pytest.mark.parametrize("kind", [Own, Bare, Native])
@pytest.mark.parametrize("bn", ["auto", "batch", "eval", "train", "split"])
def test_learns_as_torchs_own_layer(kind: Any, bn: str) -> None:
    expected, agreed, one = learned(torchs, sp.Mixed(sp.PGD(THREAT, steps=2), bn=bn))
    found, same, other = learned(kind, sp.Mixed(sp.PGD(THREAT, steps=2), bn=bn))
    assert agreed == same
    assert bn != "auto" or (True in agreed and False in agreed)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in zip(running(one), running(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_split_has_a_second_set_of_such_buffers() -> None:
    sets = []
    for kind in (torchs, Own):
        strategy = sp.AdvProp(sp.FGSM(THREAT))
        model = learned(kind, strategy, 3)[2]
        with strategy.statistics.branch(model, "adversarial"):
            sets.append([*running(model)])
        assert not torch.equal(sets[-1][0], running(model)[0])
    for a, b in zip(*sets, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bn", ["auto", "batch", "eval", "train"])
def test_a_subclass_with_a_forward_of_its_own_moves_nothing_while_crafting(bn: str) -> None:
    learned(Inside, sp.Mixed(sp.PGD(THREAT, steps=2), bn=bn), 2)


def test_frozen_ones_stay_frozen_and_a_batch_of_one_is_refused() -> None:
    model, (x, y) = network(Own), samples(8)
    model[1].eval()
    before = running(model)
    for loss in sp.Mixed(sp.FGSM(THREAT), bn="batch")(model, (x, y)):
        loss.value.backward()
    assert torch.equal(before[0], running(model)[0])
    assert not torch.equal(before[2], running(model)[2])
    with pytest.raises(ValueError, match="a batch of one sample has no batch statistics"):
        next(sp.Mixed(sp.FGSM(THREAT))(model, (x[:1], y[:1])))


def test_while_only_the_head_learns_they_are_frozen() -> None:
    model = network(Own)
    with Tuning(model, (), None, 1, None).applied(0):
        assert not model[1].training
    assert model[1].training


@pytest.mark.parametrize(
    "strategy", [None, sp.Mixed(sp.PGD(THREAT, steps=2)), sp.YOPO(THREAT, m=2, n=2), sp.TRADES(THREAT, steps=2)]
)
def test_recalibrate_takes_their_statistics_anew(strategy: Any) -> None:
    data = samples()
    one, other = network(torchs), network(Own)
    for model in (one, other):
        sp.recalibrate(model, data, copy.deepcopy(strategy))
    for a, b in zip(running(one), running(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert float(running(other)[1].max()) < 1


def test_recalibrate_takes_both_branches_anew() -> None:
    sets = []
    for kind in (torchs, Own):
        model, strategy = network(kind), sp.AdvProp(sp.PGD(THREAT, steps=1))
        sp.recalibrate(model, samples(), strategy)
        with strategy.statistics.branch(model, "adversarial"):
            sets.append(running(model))
    for a, b in zip(*sets, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_recalibrate_says_that_there_were_no_data() -> None:
    with pytest.raises(ValueError, match="was given no batch"):
        sp.recalibrate(network(Own), [])


def test_the_doctor_sees_what_it_sees_of_torchs() -> None:
    data = samples(96)
    one, other = (sp.diagnose(network(kind), data, THREAT) for kind in (torchs, Own))
    assert other.codes
    assert other.skipped == one.skipped
    assert other.symptoms.gain["batch"]["batch"] == pytest.approx(one.symptoms.gain["batch"]["batch"])
    assert [layer.name for layer in other.symptoms.layers] == ["1", "4"]
    for a, b in zip(one.symptoms.layers, other.symptoms.layers, strict=True):
        assert (a.shift, a.stretch) == pytest.approx((b.shift, b.stretch))


def test_a_model_is_looked_at_once_and_one_without_such_buffers_never() -> None:
    class Moments(nn.Module):
        """Two buffers that are no statistics."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))
            self.register_buffer("std", torch.ones(1))
            self.looked = 0

        def forward(self, x: Tensor) -> Tensor:
            self.looked += 1
            return (x - self.mean) / self.std

    x, _ = samples(8)
    first = Moments()
    model = nn.Sequential(first, network(torchs)).double()
    assert own_norms(model, x) == own_norms(model, x) == []
    assert first.looked == 1
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    assert own_norms(plain, None) == []


def test_a_compiled_network_is_crafted_on_as_the_bare_one() -> None:
    expected = learned(Own, sp.Mixed(sp.PGD(THREAT, steps=2), bn="batch"), 2)[0]
    model, (x, y) = network(Own), samples(16)
    model.compile(backend="eager")
    strategy = sp.Mixed(sp.PGD(THREAT, steps=2), bn="batch")
    assert len(own_norms(model, x)) == 2
    strategy.statistics.check(model, x)
    found = strategy.crafted(model, strategy._checked((x, y)), strategy.attack)
    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-12)
