"""`AdversarialModule` in a Trainer: it trains as `fit` does, to the bit, and measures as an attack called by hand does."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import sparring as sp
import sparring.lightning
from sparring.lightning.limits import refuse, refuse_by_hand
from sparring.training.feed import Feed
from sparring.training.strategy import Strategy

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.plugins import MixedPrecision, Precision  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402

from sparring.lightning import AdversarialModule, Indexed  # noqa: E402  # which needs Lightning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
THREAT = sp.Linf(0.1)
X = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0.5).long() + (X[:, 1] > 0.7).long()
Made = Callable[[], Strategy]


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, 3)).double()


def trainer(**given: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, **quiet, **given})


def loader(size: int = 8, data: Any = None, **given: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y) if data is None else data, batch_size=size, **given)


class Order(Sampler[int]):
    """The samples in the order in which `fit` takes them, epoch by epoch."""

    def __init__(self, size: int) -> None:
        self.feed, self.epoch = Feed((X, Y), size, 0), 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(torch.cat(self.feed.order(self.epoch - 1)).tolist())

    def __len__(self) -> int:
        return len(X)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


CASES: dict[str, tuple[Made, dict[str, Any]]] = {
    "pgd": (lambda: sp.PGDTraining(THREAT, steps=2, alpha=0.5, keep=True), {"max_grad_norm": 0.1, "warmup": 1}),
    "yopo": (lambda: sp.YOPO(THREAT, 2, 2), {"optimizer": "adam", "schedule": "cyclic"}),
    "yopo-gradient": (lambda: sp.YOPO(THREAT, 2, 2, form="gradient", collapse=False), {"weight_decay": 0.01}),
    "free": (lambda: sp.Free(THREAT, 3), {"schedule": "steps", "lr": 0.3}),
    "trades": (lambda: sp.TRADES(THREAT).with_(sp.AWP(0.01), sp.EMA(0.9)), {"accumulate": 2, "momentum": 0.0}),
    "generator": (lambda: sp.GeneratorTraining(THREAT, generator=network()[0:1] + nn.Sequential(nn.Linear(8, 6).double())), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("norm", [False, True])
def test_trains_as_fit_does(case: str, norm: bool) -> None:
    made, settings = CASES[case]
    size = 5 if case == "trades" else 8  # batches of one size where they are accumulated: 4 of them, or 3 of 8, 8 and 4
    fitted, model = network(norm), network(norm)
    torch.manual_seed(5)
    sp.fit(fitted, (X, Y), made(), epochs=2, batch_size=size, validation=False, **settings)
    torch.manual_seed(5)
    module = AdversarialModule(model, made(), **settings)
    trainer().fit(module, loader(size, Indexed(TensorDataset(X, Y)), sampler=Order(size)))
    with module.deployed():  # `fit` ends with the averaged weights in the model
        assert torch.equal(weights(fitted), weights(model))
    assert not torch.equal(weights(network(norm)), weights(model))


def test_accumulates_to_the_mean_over_uneven_batches() -> None:
    """20 samples by 6, in steps of three batches: the second step has two samples."""
    fitted, model = network(), network()
    sp.fit(fitted, (X, Y), sp.NFGSM(THREAT), epochs=1, batch_size=6, validation=False, accumulate=3)
    module = AdversarialModule(model, sp.NFGSM(THREAT), accumulate=3)
    trainer(max_epochs=1).fit(module, loader(6, Indexed(TensorDataset(X, Y)), sampler=Order(6)))
    assert (weights(fitted) - weights(model)).abs().max() < 1e-12


def test_bf16_as_fit_does() -> None:
    made: Made = lambda: sp.YOPO(THREAT, 2, 2)  # noqa: E731
    fitted, model = network().float(), network().float()
    data = TensorDataset(X.float(), Y)
    sp.fit(fitted, (X.float(), Y), made(), epochs=1, batch_size=8, validation=False, precision="bf16")
    module = AdversarialModule(model, made())
    trainer(max_epochs=1, precision="bf16-mixed").fit(
        module, loader(8, Indexed(data), sampler=Order(8)), loader(8, data)
    )
    assert torch.equal(weights(fitted), weights(model))
    assert not torch.equal(weights(model), trained(made, network().float(), data=Indexed(data), sampler=Order(8)))


def trained(
    made: Made, model: nn.Module, data: Any = None, sampler: Any = None, clip: Any = None, **given: Any
) -> Tensor:
    module = AdversarialModule(model, made(), max_grad_norm=clip)
    trainer(max_epochs=1, **given).fit(module, loader(8, data, sampler=sampler))
    return weights(getattr(model, "_orig_mod", model))


class Scaled(Precision):
    """A gradient scaler of a power of two, which costs no bit in float64."""

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        return super().pre_backward(tensor * 1024, module)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **given: Any) -> Any:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad /= 1024
        return super().optimizer_step(optimizer, model, closure, **given)


@pytest.mark.parametrize("case", ["yopo", "yopo-gradient", "free"])
def test_what_strategies_take_from_a_backward_is_unscaled(case: str) -> None:
    made = CASES[case][0]
    assert torch.equal(trained(made, network(), clip=0.1), trained(made, network(), clip=0.1, plugins=[Scaled()]))
    assert not torch.equal(trained(made, network()), trained(made, network(), clip=0.1))


def test_fp16_with_a_gradient_scaler() -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    data = TensorDataset(X.float(), Y)
    made = CASES["free"][0]
    half = trained(made, network().float(), data, plugins=[scaled])
    whole = trained(made, network().float(), data)
    assert 0 < (half - whole).abs().max() < 0.02 < (whole - weights(network())).abs().max()


def test_compiled_networks() -> None:
    made = CASES["yopo"][0]
    compiled = torch.compile(network(), backend="eager")
    assert torch.equal(trained(made, network()), trained(made, compiled))
    with pytest.raises(ValueError, match="compile the network"):
        trainer().fit(torch.compile(AdversarialModule(network(), made())), loader())


@pytest.mark.parametrize("case", ["free", "trades", "pgd"])
def test_goes_on_from_a_checkpoint(case: str, tmp_path: Path) -> None:
    made, settings = CASES[case]
    data = Indexed(TensorDataset(X, Y))
    straight, resumed = network(True), network(True)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    whole = trainer(enable_checkpointing=True, callbacks=[keep])
    whole.fit(AdversarialModule(straight, made(), **settings), loader(5, data))
    module = AdversarialModule(resumed, made(), **settings)
    trainer().fit(module, loader(5, data), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert torch.equal(weights(straight), weights(resumed))
    assert module.strategy.batches == 8
    with pytest.raises(ValueError, match=f"training with {made().name}, this one is with Standard"):
        trainer().fit(AdversarialModule(network(True), sp.Standard()), loader(), ckpt_path=tmp_path / "epoch=0.ckpt")


def test_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """At the rates that an uninterrupted training has: Lightning does not begin the epoch again."""

    class Rates(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append(pl_module.optimizers().param_groups[0]["lr"])

    straight, keep = Rates(), pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer(enable_checkpointing=True, callbacks=[keep, straight]).fit(
        AdversarialModule(network(), sp.Standard()), loader(4)
    )
    for step in (3, 6):
        resumed = Rates()
        module = AdversarialModule(network(), sp.Standard())
        path = tmp_path / f"step={step}.ckpt"
        trainer(callbacks=[resumed]).fit(module, loader(4), ckpt_path=path, weights_only=True)
        assert len(resumed.seen) >= 10 - step
        assert resumed.seen[-(10 - step) :] == straight.seen[step:]


def test_validation_leaves_gradients_that_wait_for_more_batches() -> None:
    ends = []
    for given in ({}, {"val_check_interval": 3}):
        model = network()
        module = AdversarialModule(model, sp.PGDTraining(THREAT, 1), lr=0.5, accumulate=4)
        trainer(max_epochs=1, **given).fit(module, loader(2), loader())
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_another_trainer_begins_anew() -> None:
    """What the strategy kept for samples, and averaged, was of another training."""
    data = Indexed(TensorDataset(X, Y))
    used, new = (
        AdversarialModule(network(), sp.PGDTraining(THREAT, 1, keep=True).with_(sp.EMA(0.9)), lr=0.1) for _ in range(2)
    )
    trainer().fit(used, loader(data=data))
    used.model.load_state_dict(network().state_dict())
    for module in (used, new):
        trainer().fit(module, loader(data=data))
    assert used.strategy.batches == new.strategy.batches
    assert torch.equal(weights(used.model), weights(new.model))
    assert torch.equal(deployed(used), deployed(new))


def test_another_trainer_takes_the_networks_of_the_strategy_that_it_begins() -> None:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    module = AdversarialModule(model, sp.GeneratorTraining(THREAT, channels=1), lr=0.1)
    ends = []
    for _ in range(2):
        model.load_state_dict({name: torch.full_like(value, 0.1) for name, value in model.state_dict().items()})
        trainer(max_epochs=1).fit(module, loader(4, TensorDataset(images, Y[:8])))
        assert module.networks["generator"] is module.strategy.modules()["generator"]
        ends.append(torch.cat([weights(model), weights(module.networks["generator"])]))
    assert torch.equal(*ends)


def test_a_trainer_that_goes_on_takes_the_strategy_along() -> None:
    data = Indexed(TensorDataset(X, Y))
    module = AdversarialModule(network(), sp.PGDTraining(THREAT, 1, keep=True), lr=0.1)
    run = trainer(max_epochs=1)
    run.fit(module, loader(data=data))
    run.fit_loop.max_epochs = 3
    run.fit(module, loader(data=data))
    assert module.strategy.batches == 3 * 3


def deployed(module: AdversarialModule) -> Tensor:
    with module.deployed():
        return weights(module.model).clone()


def test_a_checkpoint_brings_the_settings(tmp_path: Path) -> None:
    module = AdversarialModule(network(), sp.TRADES(THREAT), lr=0.25, accumulate=2)
    run = trainer(max_epochs=1)
    run.fit(module, loader(5))
    run.save_checkpoint(tmp_path / "a.ckpt")
    found = AdversarialModule.load_from_checkpoint(tmp_path / "a.ckpt", model=network(), strategy=sp.TRADES(THREAT))
    assert (found.settings["lr"], found.settings["accumulate"]) == (0.25, 2)
    assert torch.equal(weights(found.model), weights(module.model))
    assert found.strategy.batches == 4
    assert found.hparams["strategy_settings"]["threat"] == str(THREAT)


@pytest.mark.parametrize("size", [3, 20])
def test_validation_and_test_measure_in_inference_mode(size: int) -> None:
    """What an attack by hand finds, whatever the batch size; neither weights, nor buffers, nor gradients move."""
    model = network(True)
    attack = sp.PGD(THREAT, 4)
    module = AdversarialModule(model, sp.Standard(), validation_attack=attack)
    seen = []
    module.forward = lambda x: seen.append(x)  # type: ignore[method-assign]  # not what is attacked
    measure = module._measure
    module._measure = lambda *given: (seen.append(torch.is_inference_mode_enabled()), measure(*given))  # type: ignore[method-assign]
    before = weights(model)
    model.eval()
    clean = model(X).argmax(1) == Y
    robust = clean & (attack(model, X, Y).prediction == Y)
    model.train()
    run = trainer()
    for stage, call in (("val", run.validate), ("test", run.test)):
        found = call(module, loader(size), verbose=False)
        assert found[0][f"{stage}_clean_accuracy"] == pytest.approx(clean.double().mean().item())
        assert found[0][f"{stage}_robust_accuracy"] == pytest.approx(robust.double().mean().item())
    assert 0 < robust.sum() < clean.sum()
    assert all(seen)
    assert torch.equal(before, weights(model))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_averaged_weights_are_measured_and_predicted_with() -> None:
    model = network()
    module = AdversarialModule(model, sp.Standard().with_(sp.EMA(0.99)), lr=2.0)
    run = trainer()
    run.fit(module, loader())
    own = weights(model)
    average = module.strategy.parts[-1].averaged(model)
    right = (average(X).argmax(1) == Y).double().mean().item()
    assert right != (model(X).argmax(1) == Y).double().mean().item()
    assert run.validate(module, loader(), verbose=False)[0]["val_clean_accuracy"] == pytest.approx(right)
    assert torch.equal(torch.cat(run.predict(module, loader(20))), average(X))
    assert torch.equal(own, weights(model))


@pytest.mark.parametrize("average", [lambda: sp.EMA(0.9), lambda: sp.SWA(0)])
def test_averaged_weights_get_batchnorm_statistics_of_their_own(average: Any) -> None:
    model = network(norm=True)
    module = AdversarialModule(model, sp.Standard().with_(average()), lr=0.5)
    run = trainer()
    run.fit(module, loader())
    own = weights(model)
    module.recalibrate((X, Y))
    assert torch.equal(own, weights(model)), "the network in training is another one"
    averaged = module.strategy.parts[-1].averaged(model)
    torch.testing.assert_close(averaged[1].running_mean, averaged[0](X).mean(0))
    torch.testing.assert_close(averaged[1].running_var, averaged[0](X).var(0))
    assert torch.equal(torch.cat(run.predict(module, loader(20))), averaged(X))


def test_what_is_logged() -> None:
    """With a rate of nothing, training sees the network as it is."""
    model = network()
    run = trainer(max_epochs=1)
    run.fit(AdversarialModule(model, sp.PGDTraining(THREAT, alpha=0.5), lr=1e-300), loader(), loader())
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    names = {"train_loss", "train_clean_accuracy", "train_robust_accuracy", "val_clean_accuracy", "val_robust_accuracy"}
    assert set(found) == names
    right = (model(X).argmax(1) == Y).double().mean().item()
    assert found["train_clean_accuracy"] == pytest.approx(right) == found["val_clean_accuracy"]
    assert found["train_robust_accuracy"] <= right
    clean = nn.functional.cross_entropy(model(X), Y).item()
    assert clean < found["train_loss"] < clean + 1


def test_batches_of_other_shapes() -> None:
    class Named(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, i: int) -> Any:
            return {"image": X[i], "label": Y[i], "weight": torch.ones(()), "camera": 3, "index": i}

    plain = trained(CASES["pgd"][0], network(), data=Indexed(TensorDataset(X, Y)))
    model = network()
    made = CASES["pgd"][0]
    module = AdversarialModule(model, made(), fields=("image", "label", "index"))
    trainer(max_epochs=1).fit(module, loader(8, Named()))
    assert torch.equal(plain, weights(model))
    with pytest.raises(TypeError, match="a dict with 'image', 'label', 'weight', 'camera', 'index': expected"):
        trainer().fit(AdversarialModule(network(), sp.Standard()), loader(8, Named()))
    with pytest.raises(TypeError, match="it has no 'image' and 'class'"):
        trainer().fit(AdversarialModule(network(), sp.Standard(), fields=("image", "class")), loader(8, Named()))
    with pytest.raises(ValueError, match=r"keeps something.*Indexed\(data\)"):
        trainer().fit(AdversarialModule(network(), made()), loader())


@pytest.mark.parametrize(
    ("given", "settings", "said"),
    [
        ({"gradient_clip_val": 1.0}, {}, "max_grad_norm=1.0"),
        ({"accumulate_grad_batches": 3}, {}, "accumulate=3"),
        ({"max_epochs": -1}, {}, "max_epochs"),
        ({"max_epochs": 2}, {"warmup": 2}, "warmup=2 of max_epochs=2: the rate would never be lr"),
        ({"max_epochs": -1, "max_steps": 3}, {"warmup": 1}, "max_epochs"),
        ({}, {"accumulate": 2}, "Free steps more than once a batch"),
    ],
)
def test_what_does_not_go_is_said(given: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(**given).fit(AdversarialModule(network(), sp.Free(THREAT), **settings), loader())


def test_a_smoke_test_of_one_batch_may_warm_up() -> None:
    run = trainer(fast_dev_run=True)
    run.fit(AdversarialModule(network(), sp.Standard(), warmup=1), loader())
    assert run.global_step == 1


def test_schedules_end_with_the_steps() -> None:
    module = AdversarialModule(network(), sp.Standard(), lr=1.0, schedule=lambda done: done)
    run = trainer(max_epochs=-1, max_steps=4)
    run.fit(module, loader())
    assert module.optimizers().param_groups[0]["lr"] == 0.75
    assert run.global_step == 4


def test_bad_settings_are_said_at_once() -> None:
    with pytest.raises(TypeError, match="validation_attack"):
        AdversarialModule(network(), sp.Standard(), validation_attack=THREAT)
    with pytest.raises(ValueError, match=r"such as sp.FMN\(threat\)"):
        AdversarialModule(network(), sp.Mixed(sp.FMN(sp.L0(2))))
    with pytest.raises(TypeError, match="expected one such as"):
        AdversarialModule(network(), THREAT)
    with pytest.raises(ValueError, match="schedule='cosin'"):
        AdversarialModule(network(), sp.Standard(), schedule="cosin")
    with pytest.raises(ValueError, match="names of x and y"):
        AdversarialModule(network(), sp.Standard(), fields="image")


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.inner(x) * (float("nan") if self.calls == 3 else 1.0)
            return out

    model = Breaks()
    run = trainer(max_epochs=1)
    with pytest.raises(FloatingPointError, match="at the latest in epoch 1, batch 3"):
        run.fit(AdversarialModule(model, sp.Standard()), loader())
    assert weights(model).isfinite().all()
    with pytest.raises(FloatingPointError):
        run.save_checkpoint(tmp_path / "never.ckpt")
    assert not list(tmp_path.iterdir())


def test_weights_that_a_gradient_made_nan_are_in_no_checkpoint(tmp_path: Path) -> None:
    """The loss of the epoch's last batch is finite, and its gradient is not: that of a root at 0."""

    class Roots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.inner(x)
            return out + (out * 0).abs().sqrt() if self.calls == 6 else out

    module = AdversarialModule(Roots(), sp.Standard().with_(sp.EMA(0.9)))
    kept = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    run = trainer(max_epochs=3, enable_checkpointing=True, callbacks=[kept], default_root_dir=tmp_path)
    with pytest.raises(
        FloatingPointError, match=r"NaN or inf in .* in epoch 2, batch 3: lower lr.*checkpoints hold no"
    ):
        run.fit(module, loader())
    assert not weights(module.model).isfinite().all()
    with pytest.raises(FloatingPointError, match="NaN or inf in"):
        run.save_checkpoint(tmp_path / "never.ckpt")
    found = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert found["epoch"] == 0
    assert all(value.isfinite().all() for value in found["state_dict"].values())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_spread_models_are_refused(name: str) -> None:
    ddp = type("DDPStrategy", (), {})
    kind = type(name, (ddp,), {"_layer_sync": None})
    run = type("Run", (), {"strategy": kind()})()
    with pytest.raises(ValueError, match=f"{name}: adversarial training needs the whole network in each process"):
        refuse(run)


def test_sync_batchnorm_is_refused_without_gpus() -> None:
    run = trainer(strategy="ddp", devices=2, sync_batchnorm=True)
    with pytest.raises(ValueError, match="GPUs only"):
        refuse(run)


def test_what_goes_round_the_reducer_is_refused() -> None:
    by_hook = DDPStrategy(ddp_comm_hook=lambda state, bucket: None)
    for strategy in (DDPStrategy(static_graph=True), by_hook):
        with pytest.raises(ValueError, match="averages gradients itself"):
            refuse_by_hand(trainer(strategy=strategy, devices=2), sp.Standard())
    synchronised = trainer(strategy="ddp", devices=2, sync_batchnorm=True)
    for stops in (sp.PGDTraining(THREAT, stop_when_fooled=True), sp.Mixed(sp.PGD(THREAT, stop_when_fooled=True))):
        with pytest.raises(ValueError, match="stop_when_fooled=True: each process"):
            refuse_by_hand(synchronised, stops)
        refuse_by_hand(trainer(strategy="ddp", devices=2), stops)
    refuse_by_hand(synchronised, sp.PGDTraining(THREAT))


def test_both_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    other = pytest.importorskip("pytorch_lightning")
    from sparring.lightning.pytorch_lightning import AdversarialModule as Other

    model = network()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = other.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
    run.fit(Other(model, CASES["yopo"][0]()), loader())
    assert torch.equal(weights(model), trained(CASES["yopo"][0], network()))
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert sparring.lightning.AdversarialModule is Other
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert sparring.lightning.home() == "sparring.lightning.pytorch"
    monkeypatch.setattr(sparring.lightning, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sparring\[lightning\]'"):
        _ = sparring.lightning.AdversarialModule


def test_nothing_else_imports_lightning() -> None:
    """It takes seconds, and need not be installed."""
    room = Path(sparring.lightning.__file__).parent
    theirs = re.compile(r"^\s*(?:from|import) (?:pytorch_)?lightning\b", re.MULTILINE)
    users = [path for path in room.parent.rglob("*.py") if theirs.search(path.read_text("utf-8"))]
    outside = {path.name for path in users if room not in path.parents}
    assert not outside
    assert {path.name for path in users} >= {"pytorch.py", "pytorch_lightning.py"}
    assert "__init__.py" not in {path.name for path in users}
