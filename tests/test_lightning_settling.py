"""BatchNorm statistics in a Trainer: before it validates they are those of the network that is looked at."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp

pl = pytest.importorskip("lightning.pytorch")

from sparring.lightning import AdversarialModule  # noqa: E402  # which needs Lightning
from sparring.lightning.settling import Recent  # noqa: E402
from sparring.training.losses import Batch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
X = 3 + 2 * torch.rand(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 4).long()
LEFT = "had not caught up"


def network(momentum: float = 0.1) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(6, momentum=momentum), nn.Linear(6, 2)).double()


def fitted(module: Any, epochs: int = 2, validation: bool = True, **given: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = pl.Trainer(accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **quiet, **given)
    loader = DataLoader(TensorDataset(X, Y), batch_size=20)
    run.fit(module, loader, loader if validation else None)
    return run


@pytest.mark.parametrize("validation", [True, False])
def test_statistics_that_a_slow_momentum_leaves_behind_are_taken_anew(validation: bool) -> None:
    model = network(momentum=0.001)
    module = AdversarialModule(model, sp.PGDTraining(sp.Linf(0.01, bounds=(3, 5)), 1), lr=0.1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fitted(module, validation=validation)
    assert [LEFT in str(one.message) for one in said].count(True) == 1
    # those of the examples, which lie within eps of the samples; those that momentum reaches are .006 of the way
    torch.testing.assert_close(model[0].running_mean, X.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(model[0].running_var, X.var(0), rtol=0.03, atol=0)


def test_frozen_layers_stay_frozen() -> None:
    model = network(momentum=0.001)
    model.insert(0, nn.BatchNorm1d(6, affine=False).double().eval())
    fitted(AdversarialModule(model, sp.Standard().with_(sp.EMA(0.9)), lr=0.1))
    assert torch.equal(model[0].running_mean, torch.zeros(6, dtype=torch.float64))
    assert not model[0].training
    torch.testing.assert_close(model[1].running_mean, X.mean(0) / (1 + 1e-5) ** 0.5, rtol=1e-6, atol=0)


def test_averaged_weights_are_validated_with_statistics_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of an epoch, from the batches that have been; and they are in what is saved."""
    model = nn.Sequential(nn.Linear(6, 6).double(), *network())
    module = AdversarialModule(model, sp.Standard().with_(sp.EMA(0.9)), lr=0.5)
    seen = []
    measure = AdversarialModule._measure

    def spy(self: Any, stage: str, batch: Any) -> None:
        with self.deployed(), torch.no_grad():
            seen.append((model[1].running_mean.clone(), model[0](X).mean(0), model[0](X[:20]).mean(0)))
        measure(self, stage, batch)

    monkeypatch.setattr(AdversarialModule, "_measure", spy)
    fitted(module, epochs=1, val_check_interval=1, num_sanity_val_steps=0)
    assert len(seen) == 9
    torch.testing.assert_close(seen[0][0], seen[0][2])  # behind the first batch
    fitted(AdversarialModule(model, sp.Standard().with_(sp.SWA(0)), lr=0.5), num_sanity_val_steps=0)
    torch.testing.assert_close(seen[-1][0], seen[-1][1])
    with module.deployed():
        kept = model[1].running_mean.clone()
    state = module.strategy.state_dict()["parts"][0]["average"]
    assert torch.equal(state["1.running_mean"], kept)


def batches(count: int, strategy: sp.Strategy, model: nn.Module, recent: Recent) -> None:
    for _ in range(count):
        batch = Batch(X[:20], Y[:20], torch.arange(20))
        for loss in strategy(model, batch):
            loss.value.backward()
        recent.add(strategy, batch)


def test_what_is_held_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, model = Recent(), network()
    batches(50, sp.Standard().with_(sp.EMA()), model, recent)
    assert len(recent.held) == 40
    monkeypatch.setattr("sparring.lightning.settling.MOST", 3 * X[:20].nbytes)
    batches(3, sp.Standard().with_(sp.EMA()), model, recent)
    assert len(recent.held) == 3
    monkeypatch.setattr("sparring.lightning.settling.MOST", 1)
    batches(1, sp.Standard().with_(sp.EMA()), model, recent)
    assert len(recent.held) == 1
    monkeypatch.undo()
    strategy = sp.Standard()
    batches(7, strategy, network(), recent)
    assert len(recent.held) == 8  # nothing is known yet
    batches(80, strategy, model, recent)
    assert strategy.statistics.agrees
    assert not recent.held, "running and batch statistics agree"
    batches(1, sp.Standard().with_(sp.EMA()), nn.Linear(6, 2).double(), recent)
    assert not recent.held, "there is no BatchNorm"


def test_nothing_held_nothing_done() -> None:
    model = network()
    trainer = SimpleNamespace(global_rank=0, world_size=1, precision="64-true")
    strategy = sp.Standard()
    batches(1, strategy, model, Recent())
    before = model[0].running_mean.clone()
    Recent().settle(model, strategy, trainer)
    assert torch.equal(before, model[0].running_mean)
