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
import sparring.lightning.settling

pl = pytest.importorskip("lightning.pytorch")

from sparring.lightning import AdversarialModule  # noqa: E402  # which needs Lightning
from sparring.lightning.settling import Recent  # noqa: E402
from sparring.training.losses import Batch  # noqa: E402
from sparring.training.unlabelled import Unlabelled  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
X = 3 + 2 * torch.rand(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 4).long()
LEFT = "had not caught up"


def network(momentum: float = 0.1) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(6, momentum=momentum), nn.Linear(6, 2)).double()


def fitted(
    module: Any, epochs: int = 2, validation: bool = True, data: Any = (X, Y), batch_size: int = 20, **given: Any
) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = pl.Trainer(accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **quiet, **given)
    loader = DataLoader(TensorDataset(*data), batch_size=batch_size)
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
    """Also in the middle of an epoch, once there are batches enough, and at its end from the last ones: not from a rest."""
    model = nn.Sequential(nn.Linear(6, 6).double(), *network())
    module = AdversarialModule(model, sp.Standard().with_(sp.EMA(0.9)), lr=0.5)
    seen, counted = [], []
    measure, settle = AdversarialModule._measure, sparring.lightning.settling.settled

    def spy(self: Any, stage: str, batch: Any) -> None:
        with self.deployed(), torch.no_grad():
            seen.append((model[1].running_mean.clone(), model[0](X).mean(0), model[0](X[20:]).mean(0)))
        measure(self, stage, batch)

    def counting(model: Any, strategy: Any, batches: Any, gather: Any) -> bool:
        counted.append([len(batch.y) for batch in batches()])
        return settle(model, strategy, batches, gather)

    monkeypatch.setattr(AdversarialModule, "_measure", spy)
    monkeypatch.setattr("sparring.lightning.settling.settled", counting)
    monkeypatch.setattr("sparring.lightning.settling.ENOUGH", 40)
    run = fitted(module, 2, batch_size=20, val_check_interval=2, num_sanity_val_steps=0)
    assert counted == [[20, 20], [20, 20, 20], [20, 20, 20], [20, 20, 20]]
    with module.deployed(), torch.no_grad():
        torch.testing.assert_close(model[1].running_mean, model[0](X).mean(0))
        kept = model[1].running_mean.clone()
    assert torch.equal(module.strategy.state_dict()["parts"][0]["average"]["1.running_mean"], kept)
    torch.testing.assert_close(seen[0][0], module.strategy.parts[0].averaged(model)[1].running_mean, rtol=1, atol=1)
    assert len(seen) == 6
    run.validate(module, DataLoader(TensorDataset(X, Y), batch_size=20), verbose=False)
    assert len(counted) == 4, "only in training"
    fitted(module, 1, batch_size=20)
    assert counted[4:] == [[20, 20, 20]], "nothing of the training before, and not twice behind one batch"


def test_statistics_lost_late_in_an_epoch_are_those_of_more_than_its_end() -> None:
    """Agreement is lost at the last look: what is taken anew is what fit takes, not one batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1024, 6, generator=generator, dtype=torch.float64) / 4
    x[-48:] += 0.7
    y = (x[:, 0] > 0.125).long()
    ends = []
    for way in ("fit", "trainer"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
        strategy = sp.FGSMTraining(sp.Linf(0.02))
        if way == "fit":
            loader = DataLoader(TensorDataset(x, y), batch_size=16)
            sp.fit(model, loader, strategy, epochs=1, lr=0.01, validation=False)
        else:
            fitted(AdversarialModule(model, strategy, lr=0.01), 1, data=(x, y), batch_size=16)
        ends.append(model[1].running_mean.clone())
    torch.testing.assert_close(*ends)


def test_batches_of_a_training_that_broke_off_are_of_no_use_to_the_next() -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("enough")

    module = AdversarialModule(network(), sp.Standard().with_(sp.EMA(0.9)), lr=0.1)
    with pytest.raises(RuntimeError, match="enough"):
        fitted(module, callbacks=[Stop()])
    assert module._recent.held
    begun = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            begun.append(len(pl_module._recent.held))

    fitted(module, 1, False, data=(X + 5, Y), batch_size=30, callbacks=[Look()])
    assert begun == [0]
    with module.deployed():
        torch.testing.assert_close(module.model[0].running_mean, (X + 5).mean(0))


def batches(count: int, strategy: sp.Strategy, model: nn.Module, recent: Recent, extras: Any = None) -> None:
    for _ in range(count):
        batch = Batch(X[:20], Y[:20], torch.arange(20), extras=extras or {})
        for loss in strategy(model, batch):
            loss.value.backward()
        recent.add(strategy, batch)


def test_what_is_held_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, model = Recent(), network()
    averaged = sp.Standard().with_(sp.EMA())
    batches(12, averaged, model, recent)
    assert not recent.enough
    batches(1, averaged, model, recent)
    assert recent.enough, "260 samples"
    batches(50, averaged, model, recent)
    assert len(recent.held) == 40
    monkeypatch.setattr("sparring.lightning.settling.MOST", 3 * X[:20].nbytes)
    batches(3, averaged, model, recent)
    assert len(recent.held) == 3
    assert recent.enough, "all that may be held"
    virtual = sp.Standard().with_(sp.VirtualAdversarial(0.1), sp.EMA())
    batches(1, virtual, model, recent, {"unlabelled": Unlabelled(X[:40])})
    assert len(recent.held) == 1, "what stands beside counts, too"
    monkeypatch.setattr("sparring.lightning.settling.MOST", 1)
    batches(1, averaged, model, recent)
    assert len(recent.held) == 1
    monkeypatch.undo()
    recent = Recent()
    recent.begin(2)
    batches(3, averaged, model, recent)
    assert len(recent.held) == 2
    assert recent.enough, "all that an epoch has"
    batches(1, sp.Standard().with_(sp.EMA()), nn.Linear(6, 2).double(), recent)
    assert not recent.held, "there is no BatchNorm"
    batches(2, sp.Standard(bn="batch"), model, recent)
    assert not recent.held, "nobody watches"


def test_nothing_held_nothing_done() -> None:
    model = network()
    trainer = SimpleNamespace(global_rank=0, world_size=1, precision="64-true")
    strategy = sp.Standard()
    batches(1, strategy, model, Recent())
    before = model[0].running_mean.clone()
    Recent().settle(model, strategy, trainer)
    assert torch.equal(before, model[0].running_mean)


@pytest.mark.parametrize("way", ["fit", "trainer"])
def test_of_two_averages_each_gets_its_own_and_the_network_keeps_what_it_has(way: str) -> None:
    """Also while the second one, which the network is used with in the end, has not begun."""
    model = nn.Sequential(nn.Linear(6, 6).double(), *network())
    strategy = sp.Standard(bn="batch").with_(sp.EMA(0.9), sp.SWA(1000))
    if way == "fit":
        sp.fit(model, (X, Y), strategy, epochs=1, batch_size=20, lr=0.3, validation=False)
    else:
        fitted(AdversarialModule(model, strategy, lr=0.3), 1)
    ema = strategy.parts[0].averaged(model)
    torch.testing.assert_close(ema[1].running_mean, ema[0](X).mean(0))
    with torch.no_grad():
        assert (model[1].running_mean - model[0](X).mean(0)).abs().max() > 0.1, "three steps of momentum .1"


def test_both_branches_of_split_layers_are_measured() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
    x = (X - 3) / 2
    attack = sp.PGD(sp.Linf(0.05), 3, random_start=False)
    module = AdversarialModule(model, sp.AdvProp(sp.FGSM(sp.Linf(0.4))), lr=0.1, validation_attack=attack)
    found = fitted(module, 3, data=(x, Y)).callback_metrics
    for branch, of in (("clean", "val"), ("adversarial", "val_adversarial_branch")):
        with module.strategy.statistics.branch(model, branch):
            model.eval()
            clean = (model(x).argmax(1) == Y).double().mean().item()
            robust = (attack(model, x, Y).prediction == Y).double().mean().item()
        assert float(found[f"{of}_clean_accuracy"]) == pytest.approx(clean)
        assert float(found[f"{of}_robust_accuracy"]) == pytest.approx(robust, abs=1.5 / 60)
    assert found["val_robust_accuracy"] != found["val_adversarial_branch_robust_accuracy"]
