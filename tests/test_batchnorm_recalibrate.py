"""Recalibration: BatchNorm's running statistics are those of the training mixture, to the last digit, and nothing else moves."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from sparring.borrow import borrow
from sparring.training import EMA, YOPO, Free, Mixed
from sparring.training.batchnorm import batch_statistics, layers
from sparring.training.crafting import craft
from sparring.training.losses import Loss

THREAT = sp.Linf(0.1)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.BatchNorm2d(2, momentum=0.3), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(4 * 9, 5), nn.BatchNorm1d(5), nn.Linear(5, 3),
    ).double()  # fmt: skip


def samples(n: int = 22) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 2, 5, 5, generator=generator, dtype=torch.float64) + torch.linspace(0, 2, n).double().view(
        -1, 1, 1, 1
    )
    return x / 3, torch.arange(n) % 3


def by_hand(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel of (N, C, *), without torch's own statistics."""
    flat = values.transpose(0, 1).flatten(1)
    mean = flat.sum(1) / flat.shape[1]
    return mean, ((flat - mean[:, None]) ** 2).sum(1) / (flat.shape[1] - 1)


@pytest.mark.parametrize("size", [22, 11, 8, 5])
def test_the_statistics_are_those_computed_by_hand(size: int) -> None:
    """With batches of any size, the last one short: the first layer's do not depend on how samples are put into batches."""
    model, (x, y) = network(), samples()
    model[0].running_mean.fill_(1e3)
    sp.recalibrate(model, DataLoader(TensorDataset(x, y), batch_size=size))
    mean, var = by_hand(x)
    torch.testing.assert_close(model[0].running_mean, mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(model[0].running_var, var, rtol=1e-13, atol=1e-13)
    # deeper ones see what the layers before make of a batch with its own statistics
    with torch.no_grad():
        inside = torch.cat([model[1](nn.functional.batch_norm(part, None, None, model[0].weight, model[0].bias, True))
                            for part in x.split(size)])  # fmt: skip
    mean, var = by_hand(inside)
    torch.testing.assert_close(model[2].running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[2].running_var, var, rtol=1e-12, atol=1e-12)
    assert int(model[0].num_batches_tracked) == -(-22 // size)


def test_far_from_zero_nothing_cancels() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    x = 1e4 + torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    sp.recalibrate(model, (x, torch.zeros(512, dtype=torch.long)))
    assert abs(float(model[0].running_var) / float(x.double().var()) - 1) < 1e-3


def test_with_a_strategy_the_statistics_are_the_mixtures() -> None:
    model, (x, y) = network(), samples()
    strategy = Mixed(sp.PGD(THREAT, steps=3), alpha=0.5, bn="batch", seed=4)
    crafted = []
    for start in range(0, 22, 8):
        numbers = torch.arange(start, min(start + 8, 22))
        expected = Mixed(sp.PGD(THREAT, steps=3), alpha=0.5, bn="batch", seed=4)
        with borrow(model) as borrowed, batch_statistics([model[0], model[2], model[7]]):
            seed = expected.draw_seed(sp.Batch(x[numbers], y[numbers], step=start // 8))
            crafted.append(craft(expected.attack, borrowed, x[numbers], y[numbers], indices=numbers, seed=seed))
    sp.recalibrate(model, DataLoader(TensorDataset(x, y), batch_size=8), strategy)
    mean, var = by_hand(torch.cat([x, *crafted]))
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, var)
    clean = copy.deepcopy(model)
    sp.recalibrate(clean, (x, y))
    assert (clean[0].running_var - model[0].running_var).abs().max() > 1e-4


@pytest.mark.parametrize(
    "strategy",
    [
        None,
        Mixed(sp.PGD(THREAT, steps=2)),
        YOPO(THREAT, m=2, n=2),
        Free(THREAT, m=2),
        Mixed(sp.PGD(THREAT, steps=1)).with_(EMA(0.9)),
        Mixed(sp.PGD(THREAT, steps=1), bn="train"),
        sp.GradAlign(THREAT),
    ],
)
def test_everything_else_is_as_before(strategy: Any) -> None:
    model, (x, y) = network(), samples(16)
    model.register_buffer("own", torch.ones(1))
    model[2].eval()
    if strategy is not None:
        for loss in strategy(model, sp.Batch(x, y, torch.arange(16))):
            loss.value.backward()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    state = None if strategy is None else copy.deepcopy(strategy.state_dict())
    before = copy.deepcopy(model)
    rng = torch.get_rng_state()
    sp.recalibrate(model, (x, y), strategy)
    assert torch.equal(rng, torch.get_rng_state())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [getattr(m, "momentum", 0) for m in model.modules()] == [getattr(m, "momentum", 0) for m in before.modules()]
    moved = {name for name, b in model.named_buffers() if not torch.equal(b, before.get_buffer(name))}
    assert {name for name in moved if "tracked" not in name} == {
        f"{k}.running_{s}" for k in (0, 7) for s in ("mean", "var")
    }
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.grad, torch.full_like(a, 7.0))
    if strategy is not None:
        assert repr(strategy.state_dict()) == repr(state)
        assert bool(strategy.parts) == bool(state["parts"])
    assert not any(layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize("strategy", [sp.GradAlign(THREAT), sp.TRADES(THREAT, steps=1).with_(sp.AWP(0.1))])
def test_forwards_that_nobody_learns_from_do_not_count(strategy: Any) -> None:
    model, (x, y) = network(), samples(16)
    learned, forward = [], strategy.forward
    strategy.forward = lambda model, x, *rest: learned.append((x, strategy.is_aside)) or forward(model, x, *rest)
    sp.recalibrate(model, (x, y), strategy)
    counted = [x for x, aside in learned if not aside]
    torch.testing.assert_close(model[0].running_mean, torch.cat(counted).mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    assert int(model[0].num_batches_tracked) == len(counted)


def test_a_model_in_eval_mode_is_taken_as_in_training_and_handed_back_in_eval_mode() -> None:
    model, (x, y) = network(), samples()
    twin = copy.deepcopy(model)
    twin[5].eval()  # the dropout
    model.eval()
    sp.recalibrate(model, (x, y))
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(model[0].running_mean, by_hand(x)[0])
    assert not layers(model)


def test_split_statistics_are_taken_branch_by_branch() -> None:
    class Both(Mixed):
        def losses(self, model: nn.Module, batch: Any) -> Any:
            def loss(seen: Any) -> Tensor:
                return (
                    self.forward(model, batch.x, batch.y, "clean").sum()
                    + self.forward(model, 3 * batch.x, batch.y).sum()
                )

            yield Loss(loss)

    model, (x, y) = network(), samples()
    strategy = Both(sp.PGD(THREAT), bn="split")
    sp.recalibrate(model, (x, y), strategy)
    for name, factor in (("clean", 1), ("adversarial", 3)):
        with strategy.statistics.branch(model, name):
            torch.testing.assert_close(model[0].running_mean, by_hand(factor * x)[0])
            torch.testing.assert_close(model[0].running_var, by_hand(factor * x)[1])


def test_batches_says_how_many_and_a_network_without_batchnorm_is_left_alone() -> None:
    model, (x, y) = network(), samples()
    sp.recalibrate(model, DataLoader(TensorDataset(x, y), batch_size=8), batches=2)
    torch.testing.assert_close(model[0].running_mean, by_hand(x[:16])[0])
    plain = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()
    sp.recalibrate(plain, [])  # nothing to do, whatever the data


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ([], "was given no batch"),
        (3, "data is int: expected batches"),
        ([torch.zeros(3, 2, 5, 5)], "the data give Tensor a batch"),
        ([(torch.zeros(2, 5, 5), torch.tensor(1))], "the data give single samples"),
        ([(torch.zeros(1, 2, 5, 5).double(), torch.tensor([1]))], "a batch of one sample"),
    ],
)
def test_bad_data_get_one_line(data: Any, line: str) -> None:
    model = network()
    mean = model[0].running_mean.clone()
    with pytest.raises((ValueError, TypeError), match=line):
        sp.recalibrate(model, data)
    assert torch.equal(mean, model[0].running_mean)
    assert model[0].training


PROCESS = """
import sys
import torch
import sparring as sp
from torch import nn

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
x = torch.rand(21, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 1, 21)[:, None]
y = torch.arange(21) % 2
parts = [(0, 7), (7, 14), (14, 21)]  # three batches; of two processes one has two of them
batches = [sp.Batch(x[a:b], y[a:b], torch.arange(a, b), step=k) for k, (a, b) in enumerate(parts)]

def taken(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    sp.recalibrate(model, share, sp.Mixed(sp.PGD(sp.Linf(0.1), steps=2)))
    return model.state_dict()

alone = taken(batches)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.save({"alone": alone, "together": taken(batches[rank::2])}, f"{folder}/{rank}.pt")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch can't talk to other processes")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROCESS)
    runs = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert int(found["alone"]["0.num_batches_tracked"]) == 3
        for name, value in found["alone"].items():
            torch.testing.assert_close(found["together"][name], value, rtol=1e-12, atol=1e-12)
