"""What stands round a strategy: perturbed weights, averages of weights."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from networks import Counting
from sparring.training import Strategy
from test_training_strategies import SIZE, THREAT, gradients, network, pgd, same, samples, stepped


def batches(strategy: Strategy, model: nn.Module, count: int) -> list[dict[str, Tensor]]:
    """The weights after each of so many batches of plain training."""
    x, y = samples()
    seen = []
    for _ in range(count):
        for loss in strategy(model, sp.Batch(x, y, torch.arange(6))):
            loss.value.backward()
            if loss.update and loss.owner == "model":
                stepped(model, [p.grad for p in model.parameters()])
                model.zero_grad()
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    return seen


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_awp_is_the_gradient_at_worse_weights(kind: str) -> None:
    """By hand: move the weights up the loss, layer by layer, take the gradient there, and take them back."""
    x, y = samples()
    model, reference = network(kind), network(kind)
    made = pgd(reference, x, y)
    probe, worse = copy.deepcopy(reference), copy.deepcopy(reference)
    uphill = gradients(F.cross_entropy(probe(made), y), probe)
    with torch.no_grad():
        for p, g in zip(worse.parameters(), uphill):
            if p.ndim > 1:
                p += 0.05 * p.norm() * g / g.norm()
    value = F.cross_entropy(worse(made), y)
    expected = gradients(value, worse)
    assert value.item() > F.cross_entropy(copy.deepcopy(reference)(made), y).item()

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    versions = [p._version for p in model.parameters()]
    (loss,) = sp.PGDTraining(THREAT, 3, SIZE).with_(sp.AWP(0.05))(model, (x, y))
    assert torch.allclose(loss.value.detach(), value, rtol=0, atol=1e-12)
    (64 * loss.value).backward()
    assert same([[p.grad / 64 for p in model.parameters()]], [expected])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert versions == [p._version for p in model.parameters()], "the weights never move, not even for a moment"
    for buffer, other in zip(model.buffers(), worse.buffers()):
        assert torch.allclose(buffer, other, rtol=0, atol=1e-12), (
            "only the forward at the worse weights moves statistics"
        )
    assert int(loss.seen.right["adversarial"][0]) == int((copy.deepcopy(worse)(made).argmax(1) == y).sum())


def test_awp_costs_one_more_pass_and_begins_where_it_is_told() -> None:
    model = Counting(network())
    strategy = sp.TRADES(THREAT, steps=2).with_(sp.AWP(0.01, start=2))
    passes = []
    for _ in range(4):
        before = model.forwards, model.backwards
        batches(strategy, model, 1)
        passes.append((model.forwards - before[0], model.backwards - before[1]))
    assert passes == [(6 * 5, 6 * 4)] * 2 + [(6 * 7, 6 * 6)] * 2
    assert (strategy.passes.forwards, strategy.passes.backwards) == (model.forwards, model.backwards)


@pytest.mark.parametrize("strategy", [sp.Free(THREAT, 2), sp.YOPO(THREAT, 2, 2)], ids=["Free", "YOPO"])
def test_awp_is_refused_where_a_strategy_uses_its_own_backward(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match=rf"AWP can't stand round {strategy.name}.*PGDTraining"):
        strategy.with_(sp.AWP())


def test_awp_leaves_frozen_weights_alone_and_survives_a_zero_gradient() -> None:
    x, y = samples()
    model = network()
    model[0].weight.requires_grad_(False)
    nn.init.zeros_(model[-1].weight)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    (loss,) = sp.Standard().with_(sp.AWP(0.1))(model, (x, torch.zeros_like(y)))
    loss.value.backward()
    assert model[0].weight.grad is None
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_awp_changes_nothing_where_only_vectors_learn() -> None:
    """Biases and norms alone, as in some fine-tuning: there is no weight to move."""
    x, y = samples()
    model, reference = network("norm"), network("norm")
    found = []
    for each, strategy in (
        (model, sp.PGDTraining(THREAT, 3).with_(sp.AWP(0.1))),
        (reference, sp.PGDTraining(THREAT, 3)),
    ):
        for p in each.parameters():
            p.requires_grad_(p.ndim == 1)
        (loss,) = strategy(each, (x, y))
        loss.value.backward()
        found.append([p.grad for p in each.parameters() if p.requires_grad])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))
    assert loss.seen.right.keys() == {"adversarial"}


def test_ema_is_the_weighted_mean_of_all_weights() -> None:
    ema, model = sp.EMA(0.8), network("norm")
    seen = batches(sp.Standard().with_(ema), model, 5)
    shares = torch.tensor([0.8 ** (5 - i) for i in range(1, 6)], dtype=torch.float64)
    shares = shares / shares.sum()
    averaged = ema.averaged(model).state_dict()
    for name, value in averaged.items():
        if value.is_floating_point():
            expected = sum(share * state[name] for share, state in zip(shares, seen))
            assert torch.allclose(value, expected, rtol=0, atol=1e-12), name
        else:
            assert torch.equal(value, seen[-1][name])
    assert not torch.allclose(averaged["0.weight"], seen[-1]["0.weight"])


def test_swa_is_the_plain_mean_from_its_start_on() -> None:
    swa, model = sp.SWA(start=2, every=2), network()
    seen = batches(sp.Standard().with_(swa), model, 8)
    expected = {name: sum(seen[i][name] for i in (3, 5, 7)) / 3 for name in seen[0]}
    assert swa.count == 3
    for name, value in swa.averaged(model).state_dict().items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-12)


def test_an_average_is_applied_for_a_while_and_leaves_the_model_as_it_was() -> None:
    ema, model = sp.EMA(0.9), network("norm")
    with ema.applied(model):  # nothing is averaged yet
        pass
    batches(sp.Standard().with_(ema), model, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    expected = ema.averaged(model).state_dict()
    with pytest.raises(KeyError), ema.applied(model) as applied:  # noqa: PT012
        assert applied is model
        assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert pointers == [p.data_ptr() for p in model.parameters()]
    copied = ema.averaged(model)
    assert not copied.training
    assert model.training
    assert all(p.grad is None for p in copied.parameters())


def test_statistics_estimated_anew_under_an_average_belong_to_it() -> None:
    ema, model = sp.EMA(0.9), network("norm")
    batches(sp.Standard().with_(ema), model, 3)
    mean = model[1].running_mean.clone()
    with ema.applied(model):
        model[1].running_mean.fill_(7.0)
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(ema.averaged(model)[1].running_mean, torch.full_like(mean, 7.0))


def test_an_average_counts_steps_not_losses() -> None:
    ema, model = sp.EMA(0.9), network()
    batches(sp.Free(THREAT, 3).with_(ema), model, 2)
    assert ema.count == 6
    ema, generator = sp.EMA(0.9), nn.Conv2d(2, 2, 3, padding=1).double()
    batches(sp.GeneratorTraining(THREAT, generator=generator).with_(ema), model, 2)
    assert ema.count == 2
    ema = sp.EMA(0.9)
    strategy, (x, y) = sp.Standard().with_(ema), samples()
    for number in range(6):  # accumulates over three batches
        for loss in strategy(model, (x, y)):
            loss.value.backward()
            loss.update = number % 3 == 2
    assert ema.count == 2


def test_an_average_of_half_precision_weights_is_kept_in_float32() -> None:
    model = nn.Linear(4, 2).bfloat16()
    ema = sp.EMA(0.999)
    strategy = sp.Standard().with_(ema)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for value in (1.0, 1.0078125) * 20:
        for loss in strategy(model, (torch.zeros(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1]))):
            loss.value.backward()
            model.zero_grad()
            with torch.no_grad():
                model.weight.fill_(value)
    kept = ema.state_dict()["average"]["weight"]
    assert kept.dtype == torch.float32
    assert torch.allclose(kept, torch.full_like(kept, 1.00390625), atol=1e-4)
    assert ema.averaged(model).weight.dtype == torch.bfloat16


def test_parts_chain_and_are_told_in_the_settings() -> None:
    inner = sp.PGDTraining(THREAT, 2, alpha=0.5)
    ema = sp.EMA(0.99)
    strategy = inner.with_(sp.AWP(0.01)).with_(ema, sp.SWA(3))
    assert [type(part).__name__ for part in strategy.parts] == ["AWP", "EMA", "SWA"]
    assert isinstance(strategy, sp.PGDTraining)
    assert inner.parts == ()
    settings = json.loads(json.dumps(strategy.settings()))
    assert settings["parts"] == [
        {"name": "AWP", "gamma": 0.01, "start": 0},
        {"name": "EMA", "decay": 0.99},
        {"name": "SWA", "start": 3, "every": 1},
    ]
    assert (settings["steps"], settings["alpha"], settings["threat"]) == (2, 0.5, "Linf(0.1)")
    batches(strategy, network(), 2)
    assert ema.count == 2


def test_a_part_goes_round_a_strategy_once() -> None:
    with pytest.raises(ValueError, match="Standard has EMA round it already"):
        sp.Standard().with_(sp.EMA(0.99)).with_(sp.SWA(3), sp.EMA(0.9))
    with pytest.raises(ValueError, match="PGDTraining has AWP round it already"):
        sp.PGDTraining(THREAT, 2).with_(sp.AWP(), sp.AWP())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.AWP(0.0), r"AWP\(gamma=0.0\): expected a number above 0"),
        (lambda: sp.AWP(start=-1), r"AWP\(start=-1\): expected"),
        (lambda: sp.EMA(1.0), r"EMA\(decay=1.0\): expected a number between 0 and 1"),
        (lambda: sp.SWA(-1), r"SWA\(start=-1\): expected a whole number, at least 0"),
        (lambda: sp.SWA(0, every=0), r"SWA\(every=0\): expected a whole number, at least 1"),
    ],
)
def test_bad_settings_get_one_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()  # type: ignore[operator]
    assert "\n" not in str(raised.value)


def test_an_average_of_another_model_is_refused() -> None:
    strategy = sp.Standard().with_(sp.EMA())
    batches(strategy, network(), 1)
    with pytest.raises(ValueError, match="EMA has averaged another model"):
        batches(strategy, network("norm"), 1)


def test_a_state_of_other_parts_is_refused() -> None:
    state = sp.Standard().with_(sp.EMA()).state_dict()
    with pytest.raises(ValueError, match=r"1 parts round it.*this one has 0"):
        sp.Standard().load_state_dict(state)
