"""`fit`: what it computes, what it says, and what it leaves alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

import sparring as sp
from sparring import zoo
from sparring.training import EMA, SWA, YOPO, FastFGSM, Loss, MaxNorm, Mixed, PGDTraining, Standard, Strategy, fit
from sparring.training.feed import Feed

THREAT = sp.Linf(0.3, bounds=None)


def problem(count: int = 96, features: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (count,), generator=generator)
    return F.one_hot(y, features) * 2.0 + torch.randn(count, features, generator=generator), y


def network(*extra: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), *extra, nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def state(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_learns_and_says_how(tmp_path: Path) -> None:
    x, y = problem(600)
    model = network()
    result = fit(model, (x, y), PGDTraining(THREAT, steps=3), epochs=6, batch_size=32, out=tmp_path)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.85
    first, last = result.history[0], result.history[-1]
    assert last.loss < 0.8 * first.loss
    assert last.accuracy is None, "this strategy looks at adversarial examples only"
    assert last.robust_accuracy is not None
    assert first.forwards == 540 * 4
    assert first.backwards == 540 * 4
    assert "60 of 600 training samples are held out" in result.notes[0]
    assert 0 < last.validation_robust_accuracy <= last.validation_accuracy <= 1
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["loss"]) for row in rows] == [row.loss for row in result.history]
    assert json.loads((tmp_path / "history.json").read_text())["best"] == result.best.epoch
    robust = [row.validation_robust_accuracy for row in result.history]
    assert result.best.validation_robust_accuracy == max(robust)
    again = zoo.load_weights(network(), tmp_path / "best.safetensors").eval()
    assert same(state(result.load_best(network())), state(again))
    assert same(state(zoo.load_weights(network(), tmp_path / "last.safetensors")), state(model))


def test_a_result_is_told_in_a_line(tmp_path: Path) -> None:
    made = sp.fit(network(), problem(), sp.PGDTraining(THREAT, 1), epochs=2, out=tmp_path / "run")
    assert made.best is not None
    clean, robust = made.best.validation_accuracy, made.best.validation_robust_accuracy
    best = f"the best is {made.best.epoch}: clean {clean:.1%}, robust {robust:.1%}"
    assert repr(made).startswith(f"FitResult(2 epochs, {best}")
    assert repr(made).endswith(f", in {tmp_path / 'run'})")
    assert "\n" not in repr(made)
    assert repr(sp.fit(network(), problem(), sp.Standard(), epochs=1, validation=False)) == "FitResult(1 epoch)"


def test_validation_is_what_evaluate_says() -> None:
    x, y = problem(200)
    held = problem(260)[0][200:], problem(260)[1][200:]
    model, attack = network(nn.BatchNorm1d(16)), sp.PGD(THREAT, steps=4)
    result = fit(model, (x, y), Standard(), validation=held, validation_attack=attack, epochs=2)
    found = sp.evaluate(model, held, THREAT, attacks=attack)
    assert result.history[-1].validation_accuracy == found.clean_accuracy.value
    assert result.history[-1].validation_robust_accuracy == found.robust_accuracy.value
    plain = fit(network(), (x, y), Standard(), validation=held, validation_samples=40, epochs=3, evaluate_every=2)
    assert [row.validation_accuracy is None for row in plain.history] == [True, False, False]
    assert plain.history[-1].validation_robust_accuracy is None
    assert plain.history[-1].validation_accuracy * 40 == pytest.approx(
        round(plain.history[-1].validation_accuracy * 40)
    )


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    found = []
    for seed, noise in ((3, 0), (3, 9), (4, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = network()
        fit(model, problem(), FastFGSM(THREAT), epochs=2, batch_size=32, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        found.append(state(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_modes_frozen_parts_and_gradients_are_as_they_were() -> None:
    norm = nn.BatchNorm1d(16)
    model = network(norm)
    norm.eval()
    model[0].weight.requires_grad_(False)
    before, statistics, last = model[0].weight.clone(), norm.running_mean.clone(), model[-1].weight.clone()
    with torch.no_grad():
        fit(model, problem(), Standard(), epochs=1, validation=False)
        assert not torch.is_grad_enabled()
    assert torch.equal(norm.running_mean, statistics)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[-1].weight, last)
    assert not model[0].weight.requires_grad
    assert model.training
    assert not norm.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    fit(model, problem(), Standard(), epochs=1, validation=False)
    assert not torch.equal(norm.running_mean, statistics), "a model in eval mode is trained in train mode"
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_one_step(alpha: float) -> None:
    """One step of SGD with Nesterov momentum .9 goes 1.9 times along the gradient of the mixture."""
    x, y = problem(20)
    model, reference = nn.Linear(6, 3), nn.Linear(6, 3)
    reference.load_state_dict(model.state_dict())
    attack = sp.FGSM(THREAT)
    moved = attack(reference, x, y).x
    (alpha * F.cross_entropy(reference(x), y) + (1 - alpha) * F.cross_entropy(reference(moved), y)).backward()
    fit(model, (x, y), Mixed(attack, alpha), epochs=1, batch_size=20, schedule="constant", validation=False)
    torch.testing.assert_close(model.weight, reference.weight - 0.19 * reference.weight.grad)


def test_accumulation_is_one_batch() -> None:
    """Also where the last batches are smaller: 40 samples in batches of 16, three a step."""
    x, y = (part[:40] for part in problem())
    found = []
    for settings in ({"batch_size": 40}, {"batch_size": 16, "accumulate": 3}):
        model = nn.Linear(6, 3).double()
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        fit(model, (x.double(), y), Standard(), epochs=3, schedule="constant", validation=False, **settings)
        found.append(model.weight)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_clipping_bounds_the_step() -> None:
    x, y = problem(20)
    model = nn.Linear(6, 3)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    settings: dict[str, Any] = {"schedule": "constant", "momentum": 0.0, "validation": False}
    fit(model, (100 * x, y), Standard(), epochs=1, batch_size=20, max_grad_norm=0.5, **settings)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)


class Twice(Strategy):
    """Two updates a batch, and one loss of another network's."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.other.weight)

    def modules(self) -> dict[str, nn.Module]:
        return {"other": self.other}

    def losses(self, model: nn.Module, batch: Any) -> Any:
        for _ in range(2):
            yield Loss(lambda seen: model(batch.x).sum())
        yield Loss(lambda seen: 3 * self.other.weight.sum(), owner="other")


def test_several_updates_and_owners() -> None:
    model, strategy = nn.Linear(6, 3), Twice()
    before, x = model.bias.clone(), problem(8)[0]
    settings: dict[str, Any] = {"schedule": "constant", "momentum": 0.0, "validation": False, "batch_size": 8}
    fit(model, (x, torch.zeros(8).long()), strategy, epochs=1, **settings)
    torch.testing.assert_close(model.bias, before - 2 * 0.1 * 8)
    assert strategy.other.weight.item() == pytest.approx(1 - 0.1 * 3)
    with pytest.raises(ValueError, match="accumulate=2: Twice steps more than once a batch"):
        fit(model, (x, torch.zeros(8).long()), Twice(), epochs=1, accumulate=2, **settings)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("cosine", 0, [0.9619, 0.6913, 0.3087, 0.0381]),
        ("cyclic", 0, [0.3125, 0.9375, 0.625, 0.2083]),
        ("steps", 0, [1, 1, 0.1, 0.01]),
        ("constant", 2, [0.25, 0.75, 1, 1]),
        (lambda done: 1 - done, 0, [0.875, 0.625, 0.375, 0.125]),
    ],
)
def test_schedules(schedule: Any, warmup: float, expected: list[float]) -> None:
    result = fit(
        nn.Linear(6, 3), problem(8), Standard(), epochs=4, lr=1.0, schedule=schedule, warmup=warmup, validation=False
    )
    assert [epoch.lr for epoch in result.history] == pytest.approx(expected, abs=1e-4)


def test_an_optimiser_and_a_scheduler_of_ones_own() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    result = fit(model, problem(8), Standard(), epochs=4, optimizer=optimizer, schedule=scheduler, validation=False)
    assert [epoch.lr for epoch in result.history] == pytest.approx([0.5, 0.05, 0.05, 0.005])
    made = fit(
        model, problem(8), Standard(), epochs=1, validation=False, optimizer=lambda p: torch.optim.RMSprop(p, 0.2)
    )
    assert made.history[0].lr < 0.2


def test_the_head_first_then_all_with_a_slow_body() -> None:
    model = network(nn.BatchNorm1d(16))
    frozen = model[1].bias.clone()
    seen: list[tuple[int, bool, bool]] = []

    class Watch:
        def __init__(self) -> None:
            self.before = model[0].weight.clone()

        def after_step(self, run: Any) -> None:
            moved = not torch.equal(self.before, model[0].weight)
            seen.append((run.epoch, moved, model[1].training))

    watch = Watch()
    watch.after_epoch = lambda run: None  # type: ignore[attr-defined]
    head = model[-1].weight.clone()
    fit(
        model, problem(), Standard(), epochs=3, lr=0.1, head_epochs=2, body_lr=0.001, freeze=["1.bias"], callbacks=[watch],
        validation=False,
    )  # fmt: skip
    assert seen == [(0, False, False), (1, False, False), (2, True, True)]
    assert torch.equal(model[1].bias, frozen)
    assert (model[0].weight - watch.before).abs().max() < 0.05 * (model[-1].weight - head).abs().max()
    assert all(p.requires_grad for p in model.parameters())


def test_averaged_weights_are_what_is_validated_and_kept(tmp_path: Path) -> None:
    x, y = problem(200)
    ema = EMA(0.9)
    model = network()
    raw: list[Tensor] = []

    class Watch:
        def after_epoch(self, run: Any) -> None:
            raw[:] = state(run.model)

    result = fit(model, (x, y), Standard().with_(ema), epochs=2, out=tmp_path, callbacks=[Watch()])
    assert not same(state(model), raw)
    assert same(state(model), state(zoo.load_weights(network(), tmp_path / "last.safetensors")))
    held = Feed((x, y), 128, 0).hold_out(20)
    right = (model.eval()(x[held]).argmax(1) == y[held]).float().mean().item()
    assert result.history[-1].validation_accuracy == pytest.approx(right)


class Doubting:
    """Takes the second epoch back and goes on with another strategy."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []

    def after_epoch(self, run: Any) -> None:
        self.weights.append(state(run.model))
        if run.epoch == 1:
            run.roll_back()
            run.strategy = PGDTraining(THREAT, steps=2)
            run.note("the second epoch is taken back")
            assert same(state(run.model), self.weights[0])


def test_a_callback_may_roll_back_and_change_the_strategy() -> None:
    result = fit(network(), problem(), FastFGSM(THREAT), epochs=3, callbacks=[Doubting()], validation=False)
    assert isinstance(result.strategy, PGDTraining)
    assert "the second epoch is taken back" in result.notes
    assert [row.backwards for row in result.history] == [96 * 2, 96 * 2, 96 * 3]


@pytest.mark.parametrize("out", [False, True])
def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, out: bool) -> None:
    x, y = problem(64)
    model = network().eval()

    class Poison:
        def after_epoch(self, run: Any) -> None:
            self.weights = state(run.model)
            if run.epoch == 1:
                run.feed.memory[0][run.feed.order(2)[1][3]] = torch.inf

    poison = Poison()
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan in epoch 3, batch 2: lower lr.*after epoch 2"
    ) as raised:
        fit(
            model, (x, y), Standard(), epochs=4, batch_size=16, validation=False, callbacks=[poison],
            out=tmp_path if out else None,
        )  # fmt: skip
    assert "\n" not in str(raised.value)
    assert same(state(model), poison.weights)
    assert not model.training
    if out:
        assert same(state(zoo.load_weights(network(), tmp_path / "last.safetensors")), poison.weights)


class Random(Dataset[tuple[Tensor, int]]):
    """Draws from the global generator."""

    def __init__(self) -> None:
        self.x, self.y = problem()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i] + torch.randn(6), int(self.y[i])


def test_data_of_every_kind() -> None:
    x, y = problem()
    found = []
    forms: list[Any] = [(x, y), TensorDataset(x, y), [(a, int(b)) for a, b in zip(x, y)]]
    for data in [*forms, DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)]:
        model = network()
        fit(model, data, Standard(), epochs=2, batch_size=32, validation=False)
        found.append(state(model))
    assert all(same(found[0], other) for other in found)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_data_are_keyed_by_sample(workers: int) -> None:
    feed = Feed(DataLoader(Random(), batch_size=10, num_workers=workers), None, 0)
    order = feed.order(1)
    assert order[0].tolist() == list(range(10)), "a loader that does not shuffle keeps its order"
    a = list(feed.batches(1, order))
    torch.manual_seed(5)
    b = list(feed.batches(1, order[3:]))
    assert torch.equal(torch.cat([c.x for c in a])[30:], torch.cat([c.x for c in b]))
    assert torch.equal(torch.cat([c.indices for c in a]), torch.arange(96))
    other = list(feed.batches(2, order))
    assert not torch.equal(a[0].x, other[0].x)


def test_batches_and_shares() -> None:
    x, y = problem(97)
    whole = Feed((x, y), 32, 3)
    assert [len(batch) for batch in whole.order(0)] == [32, 32, 33], "a lone sample has no batch statistics"
    assert torch.equal(torch.cat(whole.order(0)).sort().values, torch.arange(97))
    assert not torch.equal(whole.order(0)[0], whole.order(1)[0])
    shares = [list(Feed((x, y), 32, 3, rank=r, size=2).batches(0, whole.order(0))) for r in (0, 1)]
    together = torch.cat([chunk.indices for share in shares for chunk in share])
    assert torch.equal(together.sort().values, torch.arange(97))
    weighted = DataLoader(TensorDataset(x, y), batch_size=20, sampler=WeightedRandomSampler([1.0] * 90 + [0.0] * 7, 60))
    feed = Feed(weighted, None, 0)
    held = feed.hold_out(30)
    drawn = torch.cat(feed.order(0))
    assert drawn.max() < 90
    assert not set(drawn.tolist()) & set(held.tolist())
    assert torch.equal(torch.cat(feed.order(0)), drawn)


def test_mirror_shift_is_keyed_by_sample_and_moves_images_whole() -> None:
    from sparring.training.augmentation import mirror_and_shift

    x = torch.zeros(200, 2, 12, 10)
    x[:, :, 5, 4], x[:, :, 5, 5] = 1.0, 2.0
    moved = mirror_and_shift(x, torch.arange(200), 0)
    assert moved.shape == x.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((200,), 6.0))
    assert torch.equal(moved[:, 0], moved[:, 1])
    ones, twos = ((moved[:, 0] == value).nonzero()[:, 1:] for value in (1, 2))
    assert torch.equal(ones[:, 0], twos[:, 0])
    mirrored = (twos[:, 1] - ones[:, 1]) == -1
    assert 70 < mirrored.sum() < 130
    assert set((ones[:, 0] - 5).tolist()) == set(range(-4, 5))
    assert torch.equal(mirror_and_shift(x[50:60], torch.arange(50, 60), 0), moved[50:60])
    images = torch.rand(32, 1, 8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    fit(model, (images, torch.arange(32) % 3), Standard(), epochs=1, augment="mirror-shift", validation=False)


def test_shift_is_keyed_by_sample_and_mirrors_nothing() -> None:
    from sparring.training.augmentation import shift

    x = torch.zeros(200, 2, 12, 10)
    x[:, :, 5, 4], x[:, :, 5, 5] = 1.0, 2.0
    moved = shift(x, torch.arange(200), 0)
    ones, twos = ((moved[:, 1] == value).nonzero()[:, 1:] for value in (1, 2))
    assert len(ones) == len(twos) == 200
    assert torch.equal(twos - ones, torch.tensor([[0, 1]]).expand(200, -1))
    assert set(map(tuple, (ones - torch.tensor([5, 4])).tolist())) == {
        (i, j) for i in range(-2, 3) for j in range(-2, 3)
    }
    assert torch.equal(shift(x[50:60], torch.arange(50, 60), 0), moved[50:60])
    shown: list[torch.Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].detach().clone()))
    images = torch.rand(32, 1, 8, 8)
    fit(
        model, (images, torch.arange(32) % 3), Standard(), epochs=1, batch_size=32, augment="shift", validation=False, seed=3
    )  # fmt: skip
    assert sorted(map(float, shown[0].sum((1, 2, 3)))) == sorted(
        map(float, shift(images, torch.arange(32), 3_000_009).sum((1, 2, 3)))
    )


def test_precision_layout_and_compile() -> None:
    images, y = torch.rand(32, 3, 8, 8), torch.arange(32) % 3
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    seen = set()
    model[0].register_forward_hook(
        lambda m, i, o: seen.add((o.dtype, i[0].is_contiguous(memory_format=torch.channels_last)))
    )
    fit(model, (images, y), FastFGSM(sp.Linf(0.1)), epochs=1, precision="bf16", channels_last=True, validation=False)
    assert seen == {(torch.bfloat16, True)}
    plain, compiled = (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    for each, wanted in ((plain, False), (compiled, {"backend": "eager"})):
        fit(each, (images, y), PGDTraining(sp.Linf(0.1), steps=2), epochs=1, compile=wanted, validation=False)
    assert same(state(plain), state(compiled))
    assert compiled._compiled_call_impl is None


def test_time_runs_out_and_progress_is_told(tmp_path: Path) -> None:
    told = []
    x, y = problem()
    result = fit(
        network(), (x, y), Standard(), epochs=10**6, batch_size=8, time_limit=0.3, out=tmp_path, progress=told.append
    )
    assert not result.finished
    assert told[-1].seconds < 5
    assert [now.fraction for now in told] == sorted(now.fraction for now in told)
    assert "held out" in told[0].note
    assert "validation clean" in told[-1].text


def test_progress_tells_which_epoch_was_validated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands beside this epoch's loss is this epoch's, or says whose it is; the last line has the last numbers."""
    told: list[Any] = []
    x, y = problem()
    result = fit(network(), (x, y), Standard(), epochs=3, batch_size=4, validation=(x, y), progress=told.append)
    for now in told:
        if now.latest is not None and now.latest.epoch < now.epoch:
            assert f"epoch {now.latest.epoch}: validation clean" in now.text
        elif now.latest is not None:
            assert f", validation clean {now.latest.validation_accuracy:.1%}" in now.text
    assert [now.latest.epoch for now in told if now.ends] == [1, 2, 3]
    monkeypatch.setattr("sparring.training.history.SHORT", 0.0)
    fit(network(), (x, y), Standard(), epochs=3, batch_size=4, validation=(x, y), progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert [line.split(",")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for line, row in zip(lines, result.history):
        assert f"validation clean {row.validation_accuracy:.1%}" in line
    monkeypatch.undo()
    fit(network(), (x, y), Standard(), epochs=3, batch_size=4, validation=(x, y), progress=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert line.startswith("epoch 3/3"), "short epochs are not told one by one, the last one is"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected a whole number"),
        ({"strategy": "yopo"}, "strategy='yopo': expected one such as"),
        ({"optimizer": "lion"}, "optimizer='lion': expected sgd, adam, adamw"),
        ({"schedule": "step"}, "schedule='step': expected one of"),
        ({"lr": 0.0}, "lr=0.0: expected a number above 0"),
        ({"precision": "fp16"}, "precision='fp16' needs a CUDA device"),
        ({"precision": "int8"}, "precision='int8': expected"),
        ({"augment": "mirror"}, "augment='mirror': expected 'mirror-shift', 'shift', or a function"),
        ({"augment": "mirror-shift"}, r"'mirror-shift' moves images"),
        ({"freeze": ["body"]}, "freeze='body': the model has no part of this name; it has 0, 1, 2, 3"),
        ({"freeze": ["*"]}, "every parameter of the model is frozen"),
        ({"head": "top", "head_epochs": 1}, "head='top': no submodule"),
        ({"data": (torch.zeros(3, 6), torch.zeros(2).long())}, "x has 3 samples and y 2"),
        ({"data": (torch.zeros(3, 6), torch.zeros(3))}, "expected float x, integer y"),
        ({"data": []}, "empty"),
        ({"data": problem(8), "validation": None}, "8 samples are too few to hold some out"),
        ({"data": "fashion-mnist"}, "data is str: expected the pair of tensors"),
        ({"loggers": ["csb"]}, "'csb' is none of csv, tensorboard"),
        ({"time_limit": 0}, "time_limit=0"),
        ({"body_lr": 0.1, "head_epochs": 1}, "head_epochs=1 of epochs=1"),
    ],
)
def test_bad_input_gets_one_line(settings: dict[str, Any], message: str) -> None:
    model = network()
    before = state(model)
    settings = {"data": problem(), "strategy": Standard(), "epochs": 1, "validation": False, **settings}
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        fit(model, settings.pop("data"), settings.pop("strategy"), **settings)
    assert "\n" not in str(raised.value)
    assert same(before, state(model))
    assert model.training


def test_norms_stay_below_the_limit() -> None:
    model, free = network(), network()
    fit(model, problem(), Standard(), epochs=3, lr=0.5, callbacks=[MaxNorm(0.4)], validation=False)
    assert all(layer.weight.norm(dim=1).max() <= 0.4 + 1e-6 for layer in (model[0], model[-1]))
    fit(free, problem(), Standard(), epochs=3, lr=0.5, validation=False)
    assert free[0].weight.norm(dim=1).max() > 0.4


def test_adversarial_training_gives_up_the_feature_that_does_not_hold() -> None:
    """One feature holds under eps, twenty are better together but smaller than eps (Tsipras et al., 2019)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (1500,), generator=generator)
    sign = (2.0 * y - 1)[:, None]
    strong = sign * torch.where(torch.rand(1500, 1, generator=generator) < 0.9, 1.0, -1.0)
    x = torch.cat([strong, sign * 0.3 + 0.5 * torch.randn(1500, 20, generator=generator)], 1)
    attack = sp.FGSM(sp.Linf(0.5, bounds=None))
    held = []
    for strategy in (Standard(), Mixed(attack, alpha=0)):
        model = nn.Linear(21, 2)
        nn.init.zeros_(model.weight)
        fit(model, (x, y), strategy, epochs=15, batch_size=100, optimizer="adam", lr=0.05, validation=False)
        held.append(1 - attack(model, x, y).success.float().mean().item())
    assert held[0] < 0.3
    assert held[1] > 0.8


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_by_name_is_fused_on_a_cpu_and_takes_the_same_steps(name: str) -> None:
    from sparring.training.optimizing import make

    ends = []
    for fused in (True, False):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64))
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        plain = kind([weights], lr=0.1, weight_decay=0.01)
        optimizer = make(name, [{"params": [weights]}], 0.1, 0.9, 0.01) if fused else plain
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        for step in range(5):
            weights.grad = (weights.detach() + step).cos()
            optimizer.step()
        ends.append(weights.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_sgds_own_rate_knows_how_many_gradients_a_step_adds_up() -> None:
    """With 0.1 and five passes' gradients a small network says the same of everything after an epoch."""
    rates: dict[tuple[str, float | None, int], float] = {}
    for key in (("sgd", None, 5), ("sgd", None, 1), ("sgd", 0.3, 5), ("adam", None, 5)):
        optimizer, lr, m = key
        look = type("Look", (), {
            "after_epoch": lambda self, run, key=key: rates.update({key: run.optimizers["model"].param_groups[0]["initial_lr"]})
        })()  # fmt: skip
        fit(
            network(), problem(64), YOPO(THREAT, m, 2), epochs=1, optimizer=optimizer, lr=lr, validation=False,
            callbacks=[look],
        )  # fmt: skip
    assert list(rates.values()) == [pytest.approx(0.02), 0.1, 0.3, 0.001]


def test_a_loader_is_more_than_its_data_set() -> None:
    x, y = problem()
    doubled = DataLoader(TensorDataset(x, y), batch_size=8, collate_fn=lambda items: (
        torch.stack([2 * item[0] for item in items]), torch.stack([item[1] for item in items])))  # fmt: skip
    feed = Feed(doubled, None, 0)
    chunk = next(iter(feed.batches(0, feed.order(0))))
    assert torch.equal(chunk.x, 2 * x[chunk.indices])
    part = Feed(Subset(TensorDataset(x, y), [5, 9, 2]), 8, 0)
    assert part.memory is not None
    assert torch.equal(part.take(torch.tensor([2, 0]))[0], x[[2, 5]])


@pytest.mark.parametrize("average", [lambda: SWA(0), lambda: EMA(0.9)])
@pytest.mark.parametrize("momentum", [0.001, 0.2])
def test_averaged_weights_get_batchnorm_statistics_of_their_own(momentum: float, average: Any) -> None:
    x, y = problem()
    model = network(nn.BatchNorm1d(16, momentum=momentum))
    fit(model, (x, y), Standard().with_(average()), epochs=2, batch_size=32, lr=0.3, validation=False)
    inside = F.linear(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(model[1].running_mean, inside.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1].running_var, inside.var(0), rtol=1e-3, atol=1e-5)


def test_statistics_that_a_slow_momentum_leaves_behind_are_taken_anew() -> None:
    x, y = problem(640)
    x = 5 * x + 20
    found = {}
    for momentum in (0.001, 0.2):
        model = network(nn.BatchNorm1d(16, momentum=momentum))
        found[momentum] = fit(model, (x, y), PGDTraining(THREAT, steps=2), epochs=2, lr=1e-4, batch_size=32)
        inside = F.linear(x, model[0].weight, model[0].bias)
        torch.testing.assert_close(model[1].running_mean, inside.mean(0), rtol=0.05, atol=0.5)
        torch.testing.assert_close(model[1].running_var, inside.var(0), rtol=0.2, atol=0.5)
    behind = [sum("caught up" in note for note in result.notes) for result in found.values()]
    assert behind == [1, 0]


@pytest.mark.parametrize("strategy", [PGDTraining(THREAT, steps=2), YOPO(THREAT, m=2, n=2, collapse=False)])
def test_a_gradient_scaler_changes_nothing_but_the_rounding(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparring.training import fitting

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda kind: scaler(kind, init_scale=256.0)
    )  # so that no step is left out
    found = []
    for dtype in (None, torch.float16):
        monkeypatch.setattr(fitting, "precision_of", lambda name, device, dtype=dtype: dtype)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        model.load_state_dict(
            {key: torch.linspace(-1, 1, t.numel()).view_as(t) for key, t in model.state_dict().items()}
        )
        fit(model, problem(), strategy, epochs=2, lr=0.02, batch_size=32, max_grad_norm=1.0, validation=False)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    moved = (found[0] - torch.cat([torch.linspace(-1, 1, n) for n in (96, 16, 48, 3)])).norm()
    assert moved > 0.05
    assert (found[0] - found[1]).norm() < 0.05 * moved


def test_kept_perturbations_and_augmentation_do_not_go_together() -> None:
    images = torch.rand(32, 1, 8, 8), torch.arange(32) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="which augment would move"):
        fit(model, images, PGDTraining(sp.Linf(0.1), steps=1, keep=True), epochs=1, augment="mirror-shift")
