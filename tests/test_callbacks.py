"""The callbacks that look: what they show is true, and what they look at is left exactly as it was."""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sparring as sp
from crew import torchrun

pl = pytest.importorskip("lightning.pytorch")

from sparring.lightning import (  # noqa: E402  # which needs Lightning
    AdversarialGallery,
    BatchNormDrift,
    ConfusedLogits,
    GradientNorms,
    RobustnessMonitor,
)
from sparring.lightning.batches import found  # noqa: E402
from sparring.lightning.callbacks import boards, confused, drift, examples  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
THREAT = sp.Linf(0.1)
X = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (24,), generator=torch.Generator().manual_seed(1))


def quickly(patch: Any) -> None:
    """Figures are made, and put where they belong, but not drawn: that takes most of the time, and is tested elsewhere."""

    def save(figure: Any, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    patch(boards.style, "rendered", lambda figure: np.zeros((6, 8, 3), np.uint8))
    patch(boards.style, "save", save)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        quickly(monkeypatch.setattr)


@pytest.fixture
def drawn() -> None:
    """For a test that wants the pictures as they are."""


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)
        )


class Own(pl.LightningModule):
    """Knows nothing of being looked at."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = network() if net is None else net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = found(batch)
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, *callbacks: Any, **given: Any) -> Any:
    settings = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder, **QUIET, **given}
    return pl.Trainer(callbacks=list(callbacks), **settings)


def loader(data: Any = None, **given: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y) if data is None else data, **{"batch_size": 8, **given})


def every() -> list[Any]:
    """All of them, looking as often as they can."""
    easy = ConfusedLogits(2, min_logit_value=-9.0, max_logit_difference=9.0, logging_batch_interval=2)
    return [easy, RobustnessMonitor(THREAT, samples=16), AdversarialGallery(THREAT, samples=3),
            GradientNorms(interval=1, layers=True), BatchNormDrift(interval=1)]  # fmt: skip


def pictures(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "pictures")) for path in folder.rglob("pictures/**/*.png"))


def test_training_is_the_same_to_the_bit_with_and_without_them(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], every()):
        torch.manual_seed(5)
        module = Own()
        trainer(tmp_path, *callbacks).fit(module, loader(shuffle=True), loader())
        states.append((module.state_dict(), torch.get_rng_state(), [m.training for m in module.modules()]))
    (a, rng_a, modes_a), (b, rng_b, modes_b) = states
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(rng_a, rng_b)
    assert modes_a == modes_b
    shown = pictures(tmp_path)
    assert {name.split("-")[0] for name in shown} == {
        "confused_logits/train/0", "confused_logits/train/1", "confused_logits/val/0", "confused_logits/val/1",
        "adversarial_gallery/val", "batchnorm_drift/train", "batchnorm_drift/val",
    }  # fmt: skip
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_confused_samples_are_the_closest_above_the_minimum() -> None:
    logits = torch.tensor(
        [[9.0, 8.95, 1], [9.0, 8.99, 1], [4.0, 3.995, 1], [9.0, 8.5, 1], [5.05, 4.99, 1], [1, 7.0, 6.98]]
    )
    chosen, classes = ConfusedLogits(2).confused(logits)
    assert chosen.tolist() == [1, 5]  # 4: one of the two is not above 5
    assert classes[chosen].tolist() == [[0, 1], [1, 2]]
    assert ConfusedLogits(9).confused(logits)[0].tolist() == [1, 5, 0]
    assert ConfusedLogits(9, max_logit_difference=0.015, min_logit_value=3).confused(logits)[0].tolist() == [2, 1]


def test_gradients_are_each_samples_own_of_the_deployed_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batch; the old callback's column sums would mix in the other samples' classes."""
    seen: list[Any] = []
    draw = confused.confused_logits
    monkeypatch.setattr(
        confused, "confused_logits", lambda *given, **named: seen.append((given, named)) or draw(*given, **named)
    )
    module = Own()
    look = ConfusedLogits(3, min_logit_value=-9, max_logit_difference=9, logging_batch_interval=2, projection_factor=3)
    trainer(tmp_path, look).test(module, loader(), verbose=False)  # in inference mode
    assert len(seen) == 3  # of the second batch; the third is not due
    module.eval()
    for (image, gradients, classes, logits, *_), named in seen:
        x = image.clone().requires_grad_(True)
        out = module(x[None])[0]
        assert classes == tuple(out.topk(2).indices.tolist())
        for number, gradient, logit in zip(classes, gradients, logits):
            expected = torch.autograd.grad(out[number], x, retain_graph=True)[0]
            assert torch.allclose(gradient, expected, atol=1e-6)
            assert logit == pytest.approx(float(out[number]), abs=1e-5)
        place = next(i for i in range(24) if torch.equal(X[i], image))
        assert 8 <= place < 16
        assert (named["label"], named["factor"]) == (int(Y[place]), 3)


class Nested(Dataset[Any]):
    def __init__(self, wrap: Any) -> None:
        self.wrap = wrap

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        return self.wrap(X[i], Y[i], i)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y, i: {"image": x, "label": y, "index": i},
        lambda x, y, i: (x, y, "a name"),
        lambda x, y, i: ((x, y), {"index": i}),
        lambda x, y, i: {"data": {"x": x, "about": "a name"}, "target": [y]},
    ],
)
def test_batches_of_any_structure(wrap: Any, tmp_path: Path) -> None:
    x, y = found(next(iter(loader(Nested(wrap)))))
    assert torch.equal(x, X[:8])
    assert torch.equal(y, Y[:8])
    trainer(tmp_path, *every()).validate(Own(), loader(Nested(wrap), batch_size=4), verbose=False)
    assert len(pictures(tmp_path)) == 4


def test_odd_batches_say_so_and_get_says_where(tmp_path: Path) -> None:
    data = Nested(lambda x, y, i: (y, x, x / 2))
    with pytest.raises(
        TypeError, match="no single float tensor with a row of labels beside it; say where they are, as in get="
    ):
        trainer(tmp_path, ConfusedLogits()).test(Own(), loader(data), verbose=False)
    look = AdversarialGallery(THREAT, get=lambda batch: (batch[1], batch[0]))
    trainer(tmp_path, look).test(Own(), loader(data), verbose=False)
    assert pictures(tmp_path) == ["adversarial_gallery/test-0000000.png"]


def test_two_loaders_do_not_overwrite_each_others_pictures(tmp_path: Path) -> None:
    class Two(Own):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            return None

    look = ConfusedLogits(min_logit_value=-9.0, max_logit_difference=9.0, logging_batch_interval=3)
    trainer(tmp_path, look).test(Two(), [loader(), loader()], verbose=False)
    assert pictures(tmp_path) == ["confused_logits/test-0000002.png", "confused_logits/test_1-0000002.png"]


@pytest.mark.parametrize(("kind", "said"), [("fit", "after epoch 1"), ("test", "after epoch 2")])
def test_a_warning_counts_the_epochs_that_there_were(kind: str, said: str, tmp_path: Path) -> None:
    """A test after two epochs is not after the third."""
    watch = BatchNormDrift(interval=1)
    running = trainer(tmp_path, *([watch] if kind == "fit" else []), max_epochs=2)
    module = Own()
    with pytest.warns(UserWarning, match=f"BatchNormDrift, {said}") if kind == "fit" else warnings.catch_warnings():
        running.fit(module, loader())
    if kind == "test":
        next(part for part in module.modules() if isinstance(part, nn.BatchNorm1d)).running_mean.fill_(9.0)
        running.callbacks.append(watch)
        with pytest.warns(UserWarning, match=f"BatchNormDrift, {said}"):
            running.test(module, loader(), verbose=False)


def test_what_cannot_be_shown_is_refused_in_a_line(tmp_path: Path) -> None:
    vectors = TensorDataset(X.flatten(1), Y)
    for callback in (ConfusedLogits(), AdversarialGallery(THREAT)):
        with pytest.raises(ValueError, match=r"samples of shape \(192,\) are none, expected \(C, H, W\)"):
            trainer(tmp_path, callback).test(Own(), loader(vectors), verbose=False)
    with pytest.raises(ValueError, match="no such part; it has net"):
        trainer(tmp_path, ConfusedLogits(network="body")).test(Own(), loader(), verbose=False)
    for wrong in (
        lambda: ConfusedLogits(0),
        lambda: ConfusedLogits(max_logit_difference=0.0),
        lambda: ConfusedLogits(logging_batch_interval=True),
        lambda: RobustnessMonitor(sp.L0(3)),
        lambda: GradientNorms(interval=0),
        lambda: BatchNormDrift(samples=1),
        lambda: AdversarialGallery(THREAT, every=0),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    with pytest.raises(TypeError, match="expected a threat"):
        RobustnessMonitor(0.1)


class WandbLogger(pl.loggers.logger.DummyLogger):
    """What Lightning's own does with pictures, without its package: `log_image(key, images, step)`."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Any] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step, image.size) for image in images]


class MLFlowLogger(pl.loggers.logger.DummyLogger):
    run_id = "run 7"

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Any] = []

    @property
    def experiment(self) -> Any:
        return self

    def log_image(self, run_id: str, image: Any, artifact_file: str) -> None:
        self.images.append((run_id, artifact_file, image.size))


def test_every_logger_gets_the_picture_in_its_own_way(tmp_path: Path, drawn: None) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = pl.loggers.TensorBoardLogger(tmp_path, name="board")
    table = pl.loggers.CSVLogger(tmp_path, name="table")
    others = [WandbLogger(), MLFlowLogger()]
    look = ConfusedLogits(min_logit_value=-9, max_logit_difference=9, logging_batch_interval=2)
    trainer(tmp_path, look, logger=[board, table, *others]).fit(Own(), loader(), None)
    events = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["confused_logits/train"]
    (event,) = events.Images("confused_logits/train")
    assert event.step == 2
    assert event.encoded_image_string.startswith(b"\x89PNG")
    (png,) = Path(table.log_dir).rglob("*.png")
    assert png.relative_to(table.log_dir) == Path("pictures/confused_logits/train-0000002.png")
    size = (event.width, event.height)
    assert others[0].images == [("confused_logits/train", 2, size)]
    assert others[1].images == [("run 7", "confused_logits/train-0000002.png", size)]
    trainer(tmp_path / "dry", look, fast_dev_run=3).fit(Own(), loader(), None)
    assert not (tmp_path / "dry").exists()


def test_the_monitor_counts_what_one_and_many_steps_leave(tmp_path: Path) -> None:
    module, watch = Own(), RobustnessMonitor(THREAT, samples=20)
    module.net.load_state_dict(fitted().state_dict())
    (numbers,) = trainer(tmp_path, watch).validate(module, loader(), verbose=False)
    module.eval()
    x, y = X[:20], Y[:20]
    clean = module(x).argmax(1) == y
    one = module(sp.FGSM(THREAT)(module, x, y).x).argmax(1) == y
    many = module(sp.PGD(THREAT, 10, 0.025)(module, x, y, indices=torch.arange(20)).x).argmax(1) == y
    expected = {"clean": clean, "one_step": clean & one, "robust": clean & many}
    assert {name: float(right.double().mean()) for name, right in expected.items()} == pytest.approx(
        {name: numbers[f"val_{name}_accuracy"] for name in expected}
    )
    assert 0 < expected["robust"].sum() < expected["clean"].sum()
    again = RobustnessMonitor(THREAT)
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
    assert RobustnessMonitor(sp.L2(1)).state_key != watch.state_key


def fitted() -> nn.Module:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@pytest.mark.parametrize("overfitted", [True, False])
def test_the_alarm_for_catastrophic_overfitting(
    overfitted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparring.lightning.callbacks import monitor
    from sparring.training.symptoms import Answers, Attacked, Symptoms

    right = torch.arange(16) < 15
    many = torch.arange(16) < (1 if overfitted else 12)
    seen = Symptoms(
        16, 4, torch.arange(16) % 4, (0, 1, 0.5, 0.3), [], [], {"running": Answers(right, 1.0, 0.3, 0, 0.5)}
    )
    seen.attacked = Attacked("running", right, many, 0.1)
    monkeypatch.setattr(monitor, "examine", lambda *given, **named: seen)
    watch = RobustnessMonitor(THREAT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, watch, max_epochs=2).fit(Own(), loader(), loader())
    alarms = [str(each.message) for each in caught if "catastrophic-overfitting" in str(each.message)]
    assert len(alarms) == overfitted, "said once"
    assert [(epoch, finding.code) for epoch, finding in watch.findings] == (
        [(epoch, "catastrophic-overfitting") for epoch in (0, 1)] if overfitted else []
    )
    if overfitted:
        assert alarms[0].startswith("RobustnessMonitor, after epoch 1: catastrophic-overfitting: ")


@pytest.mark.parametrize(
    ("strategy", "epochs", "overfits"),
    [(sp.FGSMTraining(sp.Linf(0.3)), 7, True), (sp.PGDTraining(sp.Linf(0.3), steps=3), 3, False)],
    ids=["FGSM", "PGD"],
)
def test_the_alarm_comes_when_a_training_really_overfits_catastrophically(
    strategy: Any, epochs: int, overfits: bool, tmp_path: Path
) -> None:
    """FGSM from the input itself, eps 0.3: after a few epochs one step is withstood, and ten leave hardly a sample."""
    from sparring import data
    from sparring.lightning import AdversarialModule

    train = data.open("fashion-mnist:bundled", split="train").tensors(1000)
    held_out = data.open("fashion-mnist:bundled").tensors(64)
    pl.seed_everything(0, verbose=False)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    sp.fit(net, train, sp.Standard(), epochs=3, lr=0.05, progress=False, health=False, validation=False)
    module = AdversarialModule(net, strategy, optimizer=lambda weights: torch.optim.Adam(weights, 0.005))
    watch = RobustnessMonitor(sp.Linf(0.3))
    batches = (loader(TensorDataset(*part), batch_size=64, shuffle=part is train) for part in (train, held_out))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitting = trainer(tmp_path, watch, max_epochs=epochs)
        fitting.fit(module, *batches)
    found = [epoch for epoch, finding in watch.findings if finding.code == "catastrophic-overfitting"]
    said = [str(each.message) for each in caught if "catastrophic-overfitting" in str(each.message)]
    assert bool(found) == bool(said) == overfits, watch.findings
    robust = float(fitting.callback_metrics["val_robust_accuracy"])
    assert robust < 0.08 if overfits else robust > 0.1
    if overfits:
        assert min(found) > 0, "not from the beginning: it is training that does it"


def test_gradient_norms(tmp_path: Path) -> None:
    table = pl.loggers.CSVLogger(tmp_path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False))
    start = net[1].weight.detach().clone()
    module = Own(net)
    watch = GradientNorms(interval=2, layers=True, samples=10)
    run = trainer(tmp_path, watch, logger=table, log_every_n_steps=1)
    run.fit(module, loader(), loader())
    table.save()
    with open(Path(table.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    first = float(next(row["gradient_norm"] for row in rows if row["gradient_norm"]))
    weight = start.requires_grad_(True)
    (expected,) = torch.autograd.grad(F.cross_entropy(X[:8].flatten(1) @ weight.T, Y[:8]), weight)
    assert first == pytest.approx(float(expected.norm()), rel=1e-4)
    assert sum(bool(row["gradient_norm"]) for row in rows) == 2  # of 3 steps
    assert all(row["gradient_norm"] == row["gradient_norm/net.1.weight"] for row in rows)
    weight = net[1].weight.detach()
    chance = (X[:10].flatten(1) @ weight.T).softmax(1) - F.one_hot(Y[:10], 4)
    sizes = (chance @ weight).abs().sum(1)
    assert float(run.callback_metrics["val_input_gradient_l1"]) == pytest.approx(float(sizes.mean()), rel=1e-4)
    assert float(run.callback_metrics["val_input_gradient_zero"]) == 0
    dead = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU())
    nn.init.constant_(dead[1].bias, -99.0)
    (numbers,) = trainer(tmp_path, GradientNorms()).test(Own(dead), loader(), verbose=False)
    assert numbers["test_input_gradient_zero"] == 1


class OwnNorm(nn.Module):
    """A user's own layer, with buffers of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, OwnNorm])
def test_batchnorm_drift(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    draw = drift.layer_bars
    monkeypatch.setattr(drift, "layer_bars", lambda *given, **named: told.append(given) or draw(*given, **named))
    net = nn.Sequential(nn.Flatten(), kind(192), nn.Linear(192, 4))
    module = Own(net)
    run = trainer(tmp_path, BatchNormDrift(interval=1, samples=24))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, loader(batch_size=24), None)  # one batch: the statistics it came to were 0 and 1
    flat = X.flatten(1).double()
    var = flat.var(0, correction=1) + 1e-5
    shift, stretch = (flat.mean(0) / var.sqrt()).square().mean().sqrt(), (1 / var).log().square().mean().sqrt()
    (names, values), *_ = told
    assert names == ["net.1"]
    assert [float(row[0]) for row in values.values()] == pytest.approx([float(shift), float(stretch)], rel=1e-3)
    assert float(run.callback_metrics["batchnorm_shift"]) == pytest.approx(float(shift), rel=1e-3)
    said = [str(each.message) for each in caught if "BatchNormDrift" in str(each.message)]
    assert len(said) == 1
    assert "furthest off is net.1" in said[0]
    (numbers,) = trainer(tmp_path, BatchNormDrift(samples=24)).test(module, loader(), verbose=False)
    layer = net[1]
    expected = ((layer.running_mean - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()).square().mean().sqrt()
    assert numbers["test_batchnorm_shift"] == pytest.approx(float(expected), rel=1e-3)
    plain = trainer(tmp_path / "plain", BatchNormDrift(interval=1))
    plain.fit(Own(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), loader(), loader())
    assert not [name for name in plain.callback_metrics if "batchnorm" in name]
    assert not pictures(tmp_path / "plain")


def test_the_gallery_shows_what_fools_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    draw = examples.gallery
    monkeypatch.setattr(
        examples, "gallery", lambda *given, **named: shown.append((given, named)) or draw(*given, **named)
    )
    net = fitted()
    look = AdversarialGallery(sp.PGD(THREAT, steps=5), samples=10, names="abcd")
    trainer(tmp_path, look).test(Own(net), loader(), verbose=False)
    ((x, made), named) = shown[0]
    assert torch.equal(x, X[:10])
    assert float((made - x).abs().max()) <= 0.1 + 1e-6
    for samples, said in ((x, named["before"]), (made, named["after"])):
        chance, predicted = net(samples).softmax(1).max(1)
        assert [name for name, _ in said] == ["abcd"[i] for i in predicted.tolist()]
        assert np.allclose([sure for _, sure in said], chance.tolist(), atol=1e-5)
    assert named["before"] != named["after"]


def test_in_training_they_look_at_training_samples_where_nothing_is_validated(tmp_path: Path) -> None:
    look = [RobustnessMonitor(THREAT, samples=8), GradientNorms(), AdversarialGallery(THREAT, every=2)]
    run = trainer(tmp_path, *look, max_epochs=2)
    run.fit(Own(), loader(), None)
    assert {"train_robust_accuracy", "train_input_gradient_l1"} <= set(run.callback_metrics)
    assert pictures(tmp_path) == ["adversarial_gallery/train-0000006.png"]


def test_the_other_namespace(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")
    from sparring.lightning import pytorch_lightning as ours

    class Theirs(other.LightningModule):
        forward, training_step, configure_optimizers = Own.forward, Own.training_step, Own.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net = network()

    callbacks = [
        ours.ConfusedLogits(min_logit_value=-9, max_logit_difference=9, logging_batch_interval=1),
        ours.RobustnessMonitor(THREAT), ours.AdversarialGallery(THREAT), ours.GradientNorms(), ours.BatchNormDrift(),
    ]  # fmt: skip
    assert all(isinstance(callback, other.Callback) for callback in callbacks)
    run = other.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=callbacks, **QUIET)
    run.fit(Theirs(), loader())
    assert len(pictures(tmp_path)) == 5


def test_mixed_precision(tmp_path: Path) -> None:
    trainer(tmp_path, *every(), precision="bf16-mixed").fit(Own(), loader(), loader())
    assert pictures(tmp_path)


def distributed(folder: Path) -> None:
    """What each of two processes does."""
    run = trainer(folder, *every(), devices=2, strategy="ddp", num_sanity_val_steps=0)
    run.fit(Own(), loader(batch_size=4), loader(batch_size=4))
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    gathered: list[Any] = [None, None]
    torch.distributed.all_gather_object(gathered, {n: v for n, v in metrics.items() if n.startswith("val_")})
    weights = torch.cat([p.detach().flatten() for p in run.lightning_module.parameters()])
    everybodys: list[Any] = [None, None]
    torch.distributed.all_gather_object(everybodys, weights.tolist())
    if run.is_global_zero:
        torch.save({"metrics": gathered, "weights": everybodys}, folder / "found.pt")


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """The first one looks and logs; all know the numbers, so that a checkpoint in each may follow them."""
    done = torchrun(Path(__file__).parent, __file__, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    told = torch.load(tmp_path / "found.pt")
    assert told["metrics"][0] == told["metrics"][1]
    assert {"val_robust_accuracy", "val_input_gradient_l1", "val_batchnorm_shift"} <= set(told["metrics"][0])
    assert told["weights"][0] == told["weights"][1]
    assert len([name for name in pictures(tmp_path) if name.startswith("adversarial_gallery")]) == 1


if __name__ == "__main__":
    quickly(setattr)
    distributed(Path(sys.argv[1]))
