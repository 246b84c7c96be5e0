"""BatchNorm while a strategy crafts: which statistics normalise, whose buffers move, and when "auto" changes its mind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.training.batchnorm import AGREE, EVERY, Statistics
from sparring.training.drift import Buffers, Drift
from sparring.training.losses import Batch
from sparring.training.strategy import Strategy
from sparring.training.supervised import Mixed
from sparring.training.yopo import YOPO

THREAT = sp.Linf(0.1)
NORMS = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]


class Own(nn.Module):
    """Normalises with functional.batch_norm and buffers of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training, momentum=0.3)


class Subclass(nn.BatchNorm2d):
    """What people do to BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.0


def network(*norms: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for fan_in, norm in zip((1, 4, 4, 4), norms):
        parts += [nn.Conv2d(fan_in, 4, 3, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * 36, 3))


def batch(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.arange(n) % 3


def learn(strategy: Strategy, model: nn.Module, data: Any, lr: float = 0.0) -> None:
    for loss in strategy(model, data):
        loss.value.backward()
        if loss.update:
            with torch.no_grad():
                for p in model.parameters():
                    p -= lr * p.grad if p.grad is not None else 0
            model.zero_grad()


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def strategies(**settings: Any) -> list[Strategy]:
    return [
        Mixed(sp.PGD(THREAT, steps=3), alpha=0.5, **settings),
        Mixed(sp.PGD(THREAT, steps=3), alpha=0.0, **settings),
        YOPO(THREAT, m=1, n=2, **settings),
        YOPO(THREAT, m=1, n=2, form="gradient", **settings),
    ]


class Watched:
    """Counts the forwards of a layer, and those of them that moved its running mean."""

    def __init__(self, layer: nn.Module, buffer: str = "running_mean") -> None:
        self.all = self.moved = 0
        self.kinds: list[str] = []
        self._before: Tensor | None = None

        def pre(module: Any, inputs: Any) -> None:
            self._before = getattr(module, buffer).clone()

        def post(module: Any, inputs: Any, output: Tensor) -> None:
            self.all += 1
            self.moved += not torch.equal(self._before, getattr(module, buffer))
            mean = output.detach().mean([d for d in range(output.ndim) if d != 1])
            self.kinds.append("batch" if mean.abs().max() < 1e-5 else "eval")

        layer.register_forward_pre_hook(pre)
        layer.register_forward_hook(post)


@pytest.mark.parametrize("bn", ["auto", "train", "eval", "batch"])
@pytest.mark.parametrize("which", range(4))
def test_only_the_forward_that_is_learned_from_moves_the_statistics(bn: str, which: int) -> None:
    model = network(nn.BatchNorm2d(4), Own(4), Subclass(4))
    strategy = strategies(bn=bn)[which]
    x, y = batch()
    learn(strategy, model, (x, y))  # YOPO finds its first layer at its first batch
    tracked, before = int(model[1].num_batches_tracked), buffers(model)
    learn(strategy, model, (x, y))
    assert int(model[1].num_batches_tracked) == int(model[7].num_batches_tracked) == tracked + 1
    for name in ("1.running_mean", "4.mean", "7.running_mean"):
        assert not torch.equal(model.get_buffer(name), before[name])


def test_own_buffers_move_once_a_batch() -> None:
    model = nn.Sequential(Own(1), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 3))
    x, y = batch()
    for bn in ("auto", "train", "batch", "eval"):
        model[0].mean.zero_()
        learn(YOPO(THREAT, m=2, n=3, bn=bn, first=model[1], seed=1), model, (x, y))
        moves = 1 - (1 - 0.3) ** 2  # two full passes learn; the passes through the first layer lie behind this module
        assert abs(float(model[0].mean) / moves - float(x.mean())) < 0.03


@pytest.mark.parametrize(
    ("bn", "kinds"), [("batch", "batch"), ("train", "batch"), ("split", "batch"), ("eval", "eval")]
)
def test_the_policy_says_what_normalises_while_crafting(bn: str, kinds: str) -> None:
    model = network(nn.BatchNorm2d(4))
    watched = Watched(model[1])
    learn(Mixed(sp.PGD(THREAT, steps=2), alpha=0.5, bn=bn), model, batch())
    assert watched.kinds == [kinds, kinds, *["batch"] * (2 if bn == "split" else 1)]  # one forward a branch


def test_train_leaves_dropout_on_and_batch_does_not() -> None:
    for bn, on in (("train", True), ("batch", False), ("eval", False)):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3), nn.BatchNorm1d(3))
        modes: list[bool] = []
        model[1].register_forward_hook(lambda module, *rest, modes=modes: modes.append(module.training))
        learn(Mixed(sp.PGD(THREAT, steps=2), alpha=0.0, bn=bn), model, batch())
        assert modes == [on, on, True]
        assert model[1].training
        assert model[3].training


@pytest.mark.parametrize("bn", ["auto", "train", "eval", "batch", "split"])
def test_frozen_layers_stay_frozen(bn: str) -> None:
    model = network(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].eval()
    watched, before = Watched(model[1]), buffers(model)
    learn(Mixed(sp.PGD(THREAT, steps=2), alpha=0.5, bn=bn), model, batch())
    assert set(watched.kinds) == {"eval"}
    assert not watched.moved
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert int(model[1].num_batches_tracked) == 0
    assert not model[1].training


def test_a_model_in_eval_mode_has_only_frozen_layers_and_takes_batches_of_one() -> None:
    model = network(nn.BatchNorm2d(4)).eval()
    before = buffers(model)
    learn(Mixed(sp.PGD(THREAT, steps=2)), model, batch(1))
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())


@pytest.mark.parametrize("bn", ["auto", "train", "eval", "batch", "split"])
def test_a_batch_of_one_is_refused_with_the_reason(bn: str) -> None:
    with pytest.raises(ValueError, match="a batch of one sample has no batch statistics"):
        learn(Mixed(sp.PGD(THREAT, steps=2), bn=bn), network(nn.BatchNorm2d(4)), batch(1))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_the_drift_read_off_the_buffers_is_that_of_the_batch(kind: Any, momentum: float | None) -> None:
    layer = kind(3, momentum=momentum).double().train()
    shape = {nn.BatchNorm1d: (16, 3), nn.BatchNorm3d: (4, 3, 2, 2, 2)}.get(kind, (4, 3, 5, 5))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64) * 2 + torch.arange(3.0).view(
        1, 3, *[1] * (len(shape) - 2)
    )
    drift, weight = Drift([layer]), 0.0
    expected = torch.zeros(3, dtype=torch.float64)
    for scale in (1.0, 3.0):  # also while the running statistics themselves move
        before = Buffers.of([layer])
        F.batch_norm(scale * x, layer.running_mean, layer.running_var, training=True,
                     momentum=1 / (int(layer.num_batches_tracked) + 1) if momentum is None else momentum)  # fmt: skip
        layer.num_batches_tracked += 1
        drift.add(before)
        flat = (scale * x).transpose(0, 1).flatten(1)
        shift = (before.mean - flat.mean(1)) / (flat.var(1) + layer.eps).sqrt()
        expected, weight = 0.9 * expected + 0.1 * shift, 0.9 * weight + 0.1
    torch.testing.assert_close(drift.shift / drift.weight, expected / weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(drift.by_layer()[0][0], (expected / weight).square().mean().sqrt())


def test_a_layer_that_runs_twice_and_one_that_never_does() -> None:
    layer, idle, still = (nn.BatchNorm1d(2, momentum=m).double() for m in (0.2, 0.2, 0.0))
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    drift = Drift([layer, idle, still])
    before = Buffers.of(drift.layers)
    for part in (layer, layer, still):
        part(x)
    drift.add(before)
    shift = (-x.mean(0) / (x.var(0) + layer.eps).sqrt()).square().mean().sqrt()
    found = drift.by_layer()[0]
    torch.testing.assert_close(found[0], shift)
    assert found[1] == 0
    assert found[2] == torch.inf


def test_auto_crafts_with_batch_statistics_until_the_running_ones_agree() -> None:
    model = network(nn.BatchNorm2d(4, momentum=0.05), nn.BatchNorm2d(4, momentum=0.05))
    model[1].running_mean.fill_(5.0)
    strategy = Mixed(sp.PGD(THREAT, steps=1), alpha=0.0)
    modes, drifts = [], []
    for step in range(160):
        learn(strategy, model, Batch(*batch(32, seed=step), step=step))
        modes.append(strategy.statistics.mode)
        drifts.append(float(torch.stack(strategy.statistics.drift.by_layer()).max()))
    first = modes.index("eval")
    assert modes == ["batch"] * first + ["eval"] * (160 - first), "it changes its mind once"
    assert first % EVERY == EVERY - 1
    assert drifts[first] < AGREE
    assert drifts[first - EVERY] >= AGREE
    # from 5 the mean decays by .95 a batch: the gap closes no sooner than that allows
    assert first > 40
    # another network: what was known is forgotten
    other = network(nn.BatchNorm2d(4), nn.BatchNorm2d(4), seed=1)
    learn(strategy, other, batch(32))
    assert strategy.statistics.mode == "batch"


def test_auto_returns_to_batch_statistics_when_the_running_ones_part_from_them() -> None:
    model = network(nn.BatchNorm2d(4))
    strategy = Mixed(sp.PGD(THREAT, steps=1), alpha=0.0)
    for step in range(64):
        learn(strategy, model, batch(32, seed=step))
    assert strategy.statistics.mode == "eval"
    model[1].momentum = 0.001
    model[1].running_mean.add_(3.0)
    strategy.statistics.drift._momentum.fill_(0.001)
    for step in range(16):
        learn(strategy, model, batch(32, seed=step))
    assert strategy.statistics.mode == "batch"


def test_auto_goes_on_where_it_stopped() -> None:
    def run(strategy: Strategy, model: nn.Module, steps: range) -> list[Tensor]:
        for step in steps:
            learn(strategy, model, Batch(*batch(16, seed=step), step=step), lr=0.02)
        return [p.clone() for p in model.parameters()]

    whole, parted = (network(nn.BatchNorm2d(4, momentum=0.3)) for _ in range(2))
    expected = run(Mixed(sp.PGD(THREAT, steps=1)), whole, range(60))
    strategy = Mixed(sp.PGD(THREAT, steps=1))
    run(strategy, parted, range(43))
    assert strategy.statistics.mode == "eval"
    state = copy.deepcopy(strategy.state_dict())
    resumed = Mixed(sp.PGD(THREAT, steps=1))
    resumed.load_state_dict(state)
    again = copy.deepcopy(parted)
    assert all(torch.equal(a, b) for a, b in zip(run(resumed, again, range(43, 60)), expected))


def test_split_shows_each_half_to_its_own_statistics() -> None:
    model, strategy = network(nn.BatchNorm2d(4)), Mixed(sp.PGD(THREAT, steps=1), bn="split")
    alone = copy.deepcopy(model)
    x, y = batch(16)
    learn(strategy, model, (x, y))
    alone(x)
    assert torch.equal(model[1].running_mean, alone[1].running_mean)  # of the clean half, and of nothing else
    with strategy.statistics.branch(model, "adversarial"):
        assert not torch.equal(model[1].running_mean, alone[1].running_mean)


@pytest.mark.parametrize("strategy", [sp.TRADES(THREAT, bn="split"), Mixed(sp.PGD(THREAT), alpha=0.0, bn="split")])
def test_split_is_refused_where_there_are_no_two_halves(strategy: Strategy) -> None:
    with pytest.raises(
        ValueError, match=r"\(bn='split'\): it does not learn from clean and adversarial samples side by side"
    ):
        learn(strategy, network(nn.BatchNorm2d(4)), batch(16))


def test_split_keeps_two_sets_of_statistics() -> None:
    model = network(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    strategy = Mixed(sp.PGD(THREAT, steps=1), bn="split")
    statistics = strategy.statistics
    x, y = batch(16)
    statistics.check(model, x)
    alone = {name: copy.deepcopy(model) for name in ("clean", "adversarial")}
    for _ in range(3):
        for name, factor in (("clean", 1.0), ("adversarial", 3.0)):
            strategy.forward(model, factor * x, y, name)
            alone[name](factor * x)
    for name, one in alone.items():
        with statistics.branch(model, name):
            assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), one.state_dict().values()))
            torch.testing.assert_close(copy.deepcopy(model).eval()(x), one.eval()(x))
        one.train()
    # the model itself is its clean branch, and a new strategy goes on with both
    assert torch.equal(model[1].running_mean, alone["clean"][1].running_mean)
    resumed = Statistics("split")
    resumed.load_state_dict(copy.deepcopy(statistics.state_dict()))
    resumed.check(model, x)
    with resumed.branch(model, "adversarial"):
        assert torch.equal(model[1].running_mean, alone["adversarial"][1].running_mean)
    with pytest.raises(ValueError, match="one set of statistics"), Statistics("auto").branch(model, "clean"):
        pass
    with pytest.raises(ValueError, match="expected 'clean' or 'adversarial'"), statistics.branch(model, "both"):
        pass


def test_crafting_hands_back_everything_after_an_exception() -> None:
    model = network(nn.BatchNorm2d(4), Own(4), nn.BatchNorm2d(4))
    model[7].eval()
    before, modes = buffers(model), [m.training for m in model.modules()]
    for policy in ("train", "batch", "eval", "auto"):
        statistics = Statistics(policy)
        statistics.check(model, batch()[0])
        with pytest.raises(KeyError), statistics.crafting(model):  # noqa: PT012
            model(batch()[0])
            raise KeyError
        assert [m.training for m in model.modules()] == modes
        assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_typo_is_answered() -> None:
    with pytest.raises(ValueError, match="bn='Auto': expected one of auto, train, eval, batch, split"):
        Statistics("Auto")
