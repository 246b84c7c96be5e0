"""What a training leaves behind, takes with it, and holds still: strategies used twice, frozen parts, averages, early stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import sparring as sp

THREAT = sp.Linf(0.1)


def samples(count: int = 64, seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(count, 1, 6, 6, generator=generator), torch.arange(count) % classes
    for i in range(count):
        x[i, :, :, y[i]] = 0.5 + x[i, :, :, y[i]] / 2
    return x, y


def network(classes: int = 4, momentum: float | None = None, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = [] if momentum is None else [nn.BatchNorm2d(4, momentum=momentum)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# a strategy's second training


def generating(threat: sp.Threat) -> Any:
    return sp.GeneratorTraining(threat, channels=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sp.FGSMTraining(THREAT).with_(sp.SWA(0)),
        lambda: sp.PGDTraining(THREAT, 1, keep=True).with_(sp.EMA(0.9)),
        lambda: sp.AdvProp(sp.FGSM(THREAT)),
        lambda: sp.Free(THREAT, 2, keep=True),
        lambda: generating(THREAT),
    ],
)
def test_a_strategy_begins_anew_with_each_training(make: Any) -> None:
    used, ends = make(), []
    average = used.parts[0] if used.parts else None
    sp.fit(network(momentum=0.1), samples(), used, epochs=2, batch_size=16, validation=False)
    for strategy in (used, make()):
        model = network(momentum=0.1, seed=1)
        sp.fit(model, samples(seed=3), strategy, epochs=2, batch_size=16, validation=False)
        ends.append(weights(model))
        assert strategy.passes == used.passes
    assert torch.equal(*ends)
    assert (used.parts[0] if used.parts else None) is average, "who holds the average still does"


def test_a_loop_may_go_on_to_a_network_of_more_classes() -> None:
    strategy = sp.FGSMTraining(THREAT)
    for classes in (4, 8):
        x, y = samples(classes=classes if classes == 4 else 6)
        for loss in strategy(network(classes), sp.Batch(x, y)):
            loss.value.backward()
    with pytest.raises(ValueError, match="the model has 4"):
        [loss.value for loss in strategy(network(4), sp.Batch(*samples(classes=6)))]


# what is frozen


@pytest.mark.parametrize("how", [{"freeze": ["1"]}, {"head_epochs": 2, "head": "4"}])
def test_frozen_statistics_stay_also_where_others_are_taken_anew(how: dict[str, Any]) -> None:
    model = network(momentum=0.001)
    before = {name: value.clone() for name, value in model[1].state_dict().items()}
    result = sp.fit(
        model, samples(), sp.Standard().with_(sp.SWA(0)), epochs=2, batch_size=8, validation=samples(seed=1), lr=0.05, **how
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
    assert not result.notes, "nobody is told that a frozen layer's statistics lag"


def test_a_head_that_is_parametrised_learns_alone() -> None:
    """weight_norm keeps the weight in modules of its own: the head is the layer that has them, with its bias."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), weight_norm(nn.Linear(8, 4)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = samples()
    sp.fit(model, (x, y), sp.Standard(), epochs=1, batch_size=8, validation=False, lr=0.1, head_epochs=1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"3.bias", "3.parametrizations.weight.original0", "3.parametrizations.weight.original1"}


# averages


def test_an_average_is_validated_and_kept_with_statistics_of_its_own() -> None:
    """Where a slow momentum leaves the running statistics behind, those of the average are taken anew, too."""
    model = network(momentum=0.001)
    with torch.no_grad():
        model[0].bias += 3.0  # far from the statistics that a new layer has
    strategy = sp.Standard().with_(sp.EMA(0.8))
    data, held = samples(128), samples(128, seed=1)
    result = sp.fit(model, data, strategy, epochs=1, batch_size=4, lr=0.05, validation=held, health=False)
    model.eval()
    right = [(model(held[0]).argmax(1) == held[1]).double().mean().item()]
    sp.recalibrate(model, data, sp.Standard())
    right.append((model.eval()(held[0]).argmax(1) == held[1]).double().mean().item())
    assert right[0] == pytest.approx(right[1], abs=0.05)
    assert right[0] > 0.6, "a quarter would be chance"
    assert result.history[-1].validation_accuracy == pytest.approx(right[0])


@pytest.mark.parametrize("average", [lambda: sp.EMA(0.8), lambda: sp.SWA(0)])
def test_a_mask_of_infinities_is_kept_as_it_is_in_an_average(average: Any) -> None:
    """inf − inf is no number: an attention mask in a buffer would make every answer of the average NaN."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(36, 4)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf]))

        def forward(self, x: Tensor) -> Tensor:
            scores = torch.cat([self.head(x.flatten(1)), x.flatten(1)[:, :1]], 1) + self.mask
            return scores.softmax(1)[:, :4].log()

    model, strategy = Masked(), sp.Standard().with_(average())
    result = sp.fit(model, samples(), strategy, epochs=2, batch_size=8, lr=0.1, validation=samples(seed=1))
    assert strategy.parts[0].averaged(model).mask[-1] == -torch.inf
    assert result.history[-1].validation_accuracy > 0.5
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    again = sp.Standard().with_(average())
    again.load_state_dict(strategy.state_dict())
    again.parts[0]._add(model)
    assert again.parts[0].averaged(model).mask[-1] == -torch.inf


def test_out_of_time_the_model_holds_the_average() -> None:
    model, strategy = network(), sp.FGSMTraining(THREAT).with_(sp.EMA(0.9))
    result = sp.fit(model, samples(), strategy, epochs=10_000, batch_size=16, validation=False, time_limit=0.2)
    assert not result.finished
    assert torch.equal(weights(model), weights(strategy.parts[0].averaged(model)))


# stopping early beside BatchNorm


@pytest.mark.parametrize(
    "make",
    [
        lambda bn: sp.PGDTraining(sp.Linf(0.3), 10, stop_when_fooled=True, bn=bn),
        lambda bn: sp.PGDTraining(sp.Linf(0.3), 10, stop_when_fooled=True, tau=1, bn=bn),
        lambda bn: sp.Mixed(sp.PGD(sp.Linf(0.3), 10, stop_when_fooled=True), bn=bn),
        lambda bn: sp.Mixed(sp.PGD(sp.Linf(0.3), 4, restarts=2, stop_when_fooled=True), bn=bn),
    ],
)
def test_who_stopped_stays_in_the_batch_that_statistics_come_from(make: Any) -> None:
    model, seen = network(momentum=0.1), []
    model[1].register_forward_hook(lambda layer, given, out: seen.append(len(given[0])))
    sp.fit(model, samples(), make("batch"), epochs=6, batch_size=16, lr=0.1, validation=False)
    assert min(seen) == 16
    model, seen[:] = network(momentum=0.1), []
    strategy = make("eval")
    model[1].register_forward_hook(lambda layer, given, out: seen.append(len(given[0])))
    sp.fit(model, samples(), strategy, epochs=6, batch_size=16, lr=0.1, validation=False)
    assert min(seen) < 16, "with running statistics it costs no more than it must"
    assert strategy.passes.forwards == sum(seen)


def test_examples_do_not_depend_on_who_stopped() -> None:
    """Beside its whole batch a sample goes where it goes when nobody stops, until it stops itself."""
    torch.manual_seed(0)
    model, (x, y) = network(momentum=0.1), samples(16)
    stopping = sp.PGDTraining(sp.Linf(0.02), 1, stop_when_fooled=True, random_start=False, bn="batch")
    going = sp.PGDTraining(sp.Linf(0.02), 1, random_start=False, bn="batch")
    batch, made = sp.Batch(x, y, torch.arange(16), 0), []
    for strategy in (stopping, going):
        strategy.statistics.check(model, x)
        made.append(strategy.crafted(model, batch, strategy.attack(1)))
    with torch.no_grad():
        wrong = model(x).argmax(1) != y
    assert wrong.any()
    assert torch.equal(made[0][wrong], x[wrong])
    assert torch.allclose(made[0][~wrong], made[1][~wrong])


# taken back


def test_a_generator_is_taken_back_with_the_network() -> None:
    kept: list[dict[str, Tensor]] = []

    class Back:
        def after_epoch(self, run: Any) -> None:
            generator = run.strategy.modules()["generator"]
            if run.epoch == 0:
                kept.append({name: value.clone() for name, value in generator.state_dict().items()})
            if run.epoch == 1:
                run.roll_back()
                state = generator.state_dict()
                kept.append({name: value.clone() for name, value in state.items()})

    sp.fit(network(), samples(), generating(THREAT), epochs=2, batch_size=16, validation=False, callbacks=[Back()])
    assert all(torch.equal(value, kept[0][name]) for name, value in kept[1].items())


def test_a_loss_that_is_not_finite_after_a_start_in_mid_epoch_says_where_the_weights_are_from(tmp_path: Path) -> None:
    class Poisoned(sp.Standard):
        name = "Standard"

        def losses(self, model: nn.Module, batch: Any) -> Any:
            if self.batches > limit[0]:
                batch.x.fill_(float("nan"))
            yield from super().losses(model, batch)

    limit = [10**9]
    settings: dict[str, Any] = {"epochs": 500, "batch_size": 8, "validation": False, "out": tmp_path, "loggers": []}
    model = network()
    for _ in range(20):
        result = sp.fit(model, samples(), Poisoned(), time_limit=0.05, **settings)
        if len(result.strategy.state_dict()) and result.strategy.batches % 8:
            break
    else:
        pytest.skip("it never stopped in the middle of an epoch")
    before = weights(model)
    limit[0] = 0
    with pytest.raises(FloatingPointError, match="the weights are as they were where this start began"):
        sp.fit(model, samples(), Poisoned(), **settings)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("strategy", [sp.Standard(), sp.FGSMTraining(THREAT), sp.Free(THREAT, 2)])
def test_answers_that_are_no_logits_get_one_line(strategy: Any) -> None:
    class Speaking(nn.Module):
        def __init__(self, answer: Any) -> None:
            super().__init__()
            self.model, self.answer = network(), answer

        def forward(self, x: Tensor) -> Any:
            return self.answer(self.model(x))

    cases = (
        (lambda z: {"logits": z}, TypeError, r"a dict with keys \['logits'\]: name its logits"),
        (lambda z: z[:, :, None, None], ValueError, "expected one row of logits a sample"),
        (lambda z: z[:, :1], ValueError, "1 logit a sample"),
    )
    for answer, kind, said in cases:
        with pytest.raises(kind, match=said):
            [loss.value for loss in strategy.with_()(Speaking(answer), samples())]
