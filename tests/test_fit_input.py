"""What `fit` is given is what it uses, or one line says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import sparring as sp
from sparring.training import Loss, MaxNorm, Standard, Strategy, fit
from sparring.training.feed import Feed
from sparring.training.unlabelled import Others
from test_fit import network, problem, same, state


def loader(count: int = 64, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*problem(count)), **settings)


class Evens(Sampler[list[int]]):
    """Batches of a user's own making, which tells no batch size."""

    def __iter__(self) -> Any:
        return iter([[0, 2, 4], [6, 8, 10]])


def test_a_batch_sampler_of_torchs_class_is_the_users_all_the_same() -> None:
    some = BatchSampler(SubsetRandomSampler(range(16)), 8, False)
    feed = Feed(loader(batch_sampler=some), None, 0)
    assert [len(batch) for batch in feed.order(0)] == [8, 8]
    assert sorted(torch.cat(feed.order(0)).tolist()) == list(range(16))
    straight = Feed(loader(batch_sampler=BatchSampler(SequentialSampler(range(64)), 24, True)), None, 0)
    assert [batch.tolist()[0] for batch in straight.order(3)] == [0, 24]
    assert straight.batch_size == 24


def test_a_sampler_that_draws_some_or_again_is_used() -> None:
    data = TensorDataset(*problem(64))
    few = Feed(DataLoader(data, batch_size=8, sampler=RandomSampler(data, replacement=True, num_samples=16)), None, 0)
    assert [len(batch) for batch in few.order(0)] == [8, 8]
    again = Feed(DataLoader(data, batch_size=64, sampler=RandomSampler(data, replacement=True)), None, 0)
    assert len(set(again.order(0)[0].tolist())) < 64
    first = Feed(DataLoader(data, batch_size=8, sampler=SequentialSampler(range(16))), None, 0)
    assert torch.cat(first.order(0)).tolist() == list(range(16))


def test_the_last_short_batch_of_a_users_sampler_is_dropped_where_the_loader_says_so() -> None:
    feed = Feed(loader(batch_size=8, drop_last=True, sampler=SubsetRandomSampler(range(20))), None, 0)
    assert [len(batch) for batch in feed.order(0)] == [8, 8]


@pytest.mark.parametrize("batched", [False, True])
def test_a_samplers_own_generator_is_keyed_by_the_epoch_and_left_as_it_was(batched: bool) -> None:
    own = torch.Generator().manual_seed(7)
    sampler = WeightedRandomSampler([1.0] * 64, 32, generator=own)
    given = {"batch_sampler": BatchSampler(sampler, 8, False)} if batched else {"sampler": sampler, "batch_size": 8}
    feed, before = Feed(loader(**given), None, 0), own.get_state()
    first, second = feed.order(1), feed.order(2)
    assert torch.equal(own.get_state(), before)
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(feed.order(1)), torch.cat(first)), "a training that goes on draws what it would have"


def test_a_batch_size_that_a_batch_sampler_would_ignore_is_refused() -> None:
    assert [len(batch) for batch in Feed(loader(batch_sampler=Evens()), None, 0).order(0)] == [3, 3]
    with pytest.raises(ValueError, match=r"batch_size=8: the loader.s batch_sampler, Evens, .* leave batch_size out"):
        Feed(loader(batch_sampler=Evens()), 8, 0)


class Doubled(TensorDataset):
    """Makes its samples of the tensors that it holds."""

    def __getitem__(self, i: int) -> Any:
        return tuple(2 * part if part.is_floating_point() else part for part in super().__getitem__(i))


def test_a_tensor_data_set_that_makes_its_samples_is_asked_for_them() -> None:
    x, y = problem(8)
    assert torch.equal(Feed(Doubled(x, y), 8, 0).take(torch.arange(8))[0], 2 * x)
    assert torch.equal(Others(Doubled(x, y), 8, 0).take(torch.arange(8))[0], 2 * x)


def test_a_pair_of_numpy_arrays_is_a_pair_of_tensors() -> None:
    x, y = problem(32)
    found: list[list[Tensor]] = []
    for data in ((x, y), (x.numpy(), y.numpy()), [x.numpy(), y.tolist()]):
        model = network()
        fit(model, data, Standard(), epochs=1, batch_size=8, validation=False)
        found.append(state(model))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_an_optimiser_of_another_models_parameters_is_refused() -> None:
    settings: dict[str, Any] = {"epochs": 1, "validation": False}
    with pytest.raises(ValueError, match=r"optimizer has none of this model's parameters: .*; make it of model"):
        fit(network(), problem(), Standard(), optimizer=sgd(network().parameters()), **settings)
    model = network()
    fit(model, problem(), Standard(), optimizer=sgd(model[-1].parameters()), **settings)
    assert torch.equal(model[0].weight, network()[0].weight), "parts may be left out on purpose"
    assert all(p.grad is None for p in model.parameters()), "their gradients, too, are taken away"


def test_filters_of_volumes_have_no_order_of_images() -> None:
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 3))
    data, settings = (torch.rand(8, 1, 4, 4, 4), torch.arange(8) % 3), {"epochs": 1, "validation": False}
    with pytest.raises(
        ValueError, match=r"channels_last=True orders images .* 0.weight has 5 dimensions: leave it out"
    ):
        fit(volumes, data, Standard(), channels_last=True, **settings)  # type: ignore[arg-type]
    fit(volumes.to(memory_format=torch.channels_last_3d), data, Standard(), **settings)  # type: ignore[arg-type,call-overload]


def test_networks_that_learn_side_by_side_accumulate_each_its_own() -> None:
    """Two batches a step are one batch of their size, for both; the classifier's loss has a gradient at the other, too."""

    @dataclass(eq=False)
    class Beside(Strategy):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.other = nn.Linear(6, 6)
            with torch.no_grad():
                self.other.weight.copy_(torch.eye(6))

        def modules(self) -> dict[str, nn.Module]:
            return {"other": self.other}

        def losses(self, model: nn.Module, batch: Any) -> Any:
            yield Loss(lambda seen: nn.functional.cross_entropy(model(self.other(batch.x)), batch.y))
            yield Loss(lambda seen: (self.other(batch.x) ** 2).mean(), owner="other")

    settings: dict[str, Any] = {"epochs": 3, "validation": False, "momentum": 0.5, "schedule": "constant", "lr": 0.1}
    found = []
    for size, accumulate in ((32, 1), (16, 2)):
        torch.manual_seed(0)
        model, strategy = nn.Linear(6, 3), Beside()
        fit(model, problem(64), strategy, batch_size=size, accumulate=accumulate, **settings)
        found.append([model.weight.detach(), strategy.other.weight.detach()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("given", [{"lr": 0.5}, {"weight_decay": 0.1}, {"momentum": 0.5}])
@pytest.mark.parametrize("made", [False, True])
def test_what_an_optimiser_of_ones_own_would_ignore_is_refused(made: bool, given: dict[str, Any]) -> None:
    model = network()
    optimizer: Any = sgd if made else sgd(model.parameters())
    name = next(iter(given))
    with pytest.raises(ValueError, match=rf"^{name}={given[name]}: .*leave {name} out"):
        fit(model, problem(), Standard(), epochs=1, validation=False, optimizer=optimizer, **given)


def test_a_second_training_with_the_same_optimiser_begins_at_its_rate() -> None:
    model = nn.Linear(6, 3)
    optimizer = sgd(model.parameters())

    def trained(schedule: Any) -> float:
        settings: dict[str, Any] = {"epochs": 2, "validation": False, "optimizer": optimizer, "schedule": schedule}
        return fit(model, problem(8), Standard(), **settings).history[0].lr

    first = trained("cosine")
    assert trained("cosine") == first, "not where the first schedule has ended"
    optimizer.param_groups[0]["lr"] = 1e-3
    assert trained("constant") == 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number, at least 1"),
        ({"batch_size": 16.0}, "batch_size=16.0: expected a whole number, at least 1"),
        ({"lr": "0.1"}, "lr='0.1': expected a number above 0"),
        ({"weight_decay": None}, "weight_decay=None: expected a number, 0 or more"),
        ({"warmup": float("nan")}, "warmup=nan: expected a number, 0 or more"),
        ({"callbacks": MaxNorm(1.0)}, r"callbacks is a MaxNorm: expected a list of them, as in callbacks=\[MaxNorm"),
        ({"callbacks": [MaxNorm]}, r"callbacks has the class MaxNorm: expected an object, as in callbacks=\[MaxNorm\("),
        ({"callbacks": [print]}, "callbacks has a builtin_function_or_method, which has no after_epoch"),
        ({"validation": (torch.zeros(0, 6), torch.zeros(0).long())}, "validation is empty: .*validation=False"),
        ({"validation": 3}, "validation is int: expected the pair of tensors"),
        ({"validation_attack": sp.PGD(sp.Linf(0.1))}, "validation_attack: there is no validation"),
        ({"warmup": 1}, "warmup=1 of epochs=1: the rate would never be lr"),
        ({"head": "2"}, "head='2': without head_epochs or body_lr it learns like everything else"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer is a LBFGS, whose step calls for the loss again and again"),
        ({"freeze": "0.weights"}, "freeze='0.weights': the model has no part of this name"),
    ],
)
def test_bad_input_gets_one_line(settings: dict[str, Any], message: str) -> None:
    model = network()
    settings = {"epochs": 1, "validation": False, **settings}
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        fit(model, problem(), Standard(), **settings)
    assert "\n" not in str(raised.value)
    assert same(state(model), state(network()))


def test_lazy_layers_are_to_be_called_first() -> None:
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"the model has lazy layers, .* call it on a batch first"):
        fit(lazy, problem(), Standard(), epochs=1, validation=False)


def test_an_average_that_never_began_is_told() -> None:
    for start, notes in ((10_000, 1), (0, 0)):
        result = fit(network(), problem(), Standard().with_(sp.SWA(start)), epochs=1, validation=False)
        assert [note.startswith("SWA has averaged nothing") for note in result.notes] == [True] * notes


def test_one_name_is_frozen_as_a_list_of_one() -> None:
    model = network()
    fit(model, problem(), Standard(), epochs=1, validation=False, freeze="0.weight")
    assert torch.equal(model[0].weight, network()[0].weight)
    assert not torch.equal(model[0].bias, network()[0].bias)


def test_a_scheduler_that_waits_for_a_metric_is_refused_at_the_start() -> None:
    model = network()
    optimizer = sgd(model.parameters())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match="schedule is a ReduceLROnPlateau, which waits for a metric"):
        fit(model, problem(), Standard(), epochs=1, validation=False, optimizer=optimizer, schedule=plateau)


def test_a_head_that_learns_longer_than_the_training_lasts_is_refused() -> None:
    """As long as it lasts is a linear probe."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    body = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="head_epochs=5 of epochs=2: the body would never learn"):
        fit(model, problem(), Standard(), epochs=2, head_epochs=5, validation=False)
    fit(model, problem(), Standard(), epochs=2, head_epochs=2, validation=False)
    assert torch.equal(model[0].weight, body)
