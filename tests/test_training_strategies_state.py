"""What strategies leave alone, what they carry from batch to batch, and what they refuse."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from networks import Counting
from sparring.text.encoded import Encoded
from sparring.training import Strategy
from sparring.training.parts import begin_anew
from test_training_strategies import EPS, SIZE, THREAT, clipped, network, samples, slope


def generator() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Conv2d(2, 2, 3, padding=1).double()


MADE: dict[str, Callable[[], Strategy]] = {
    "Standard": lambda: sp.Standard(),
    "Mixed": lambda: sp.Mixed(sp.PGD(THREAT, steps=2)),
    "FGSMTraining": lambda: sp.FGSMTraining(THREAT),
    "PGDTraining": lambda: sp.PGDTraining(THREAT, 2, keep=True, stop_when_fooled=True, schedule={3: 1}),
    "FastFGSM": lambda: sp.FastFGSM(THREAT),
    "NFGSM": lambda: sp.NFGSM(THREAT),
    "GradAlign": lambda: sp.GradAlign(THREAT),
    "Free": lambda: sp.Free(THREAT, 2),
    "Free, kept": lambda: sp.Free(THREAT, 2, keep=True),
    "YOPO": lambda: sp.YOPO(THREAT, 2, 2),
    "YOPO, kept": lambda: sp.YOPO(THREAT, 2, 2, form="gradient", keep=True),
    "TRADES": lambda: sp.TRADES(THREAT, steps=2),
    "TRADESYOPO": lambda: sp.TRADESYOPO(THREAT, 2, 2),
    "MART": lambda: sp.MART(THREAT, steps=2),
    "EnsembleTraining": lambda: sp.EnsembleTraining(sp.FGSM(THREAT), [network(seed=8)]),
    "AdvProp": lambda: sp.AdvProp(sp.FGSM(THREAT)),
    "GeneratorTraining": lambda: sp.GeneratorTraining(THREAT, generator=generator()),
    "AWP": lambda: sp.PGDTraining(THREAT, 2).with_(sp.AWP(0.01), sp.EMA(0.9), sp.SWA(1)),
}
FORWARDS = {"Free": 2, "Free, kept": 2, "YOPO": 2, "YOPO, kept": 2}  # that move the running statistics; 1 elsewhere


def whole(model: nn.Module) -> dict[str, object]:
    """All that a strategy could disturb."""
    return {
        "modes": [m.training for m in model.modules()],
        "tracks": [getattr(m, "track_running_stats", None) for m in model.modules()],
        "asks": [p.requires_grad for p in model.parameters()],
        "grads": [id(p.grad) for p in model.parameters()],
        "objects": [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def watched(name: str) -> nn.Module:
    model = network("norm")
    model[0].bias.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0) if p.requires_grad else None
    return model


@pytest.mark.parametrize("name", MADE)
def test_nothing_but_what_is_declared_changes(name: str) -> None:
    x, y = samples()
    model = watched(name)
    before, inputs = whole(model), x.clone()
    count = 0
    for loss in MADE[name]()(model, sp.Batch(x, y, torch.arange(6))):
        assert whole(model) == before
        assert loss.value.requires_grad
        assert whole(model) == before
        assert all(bool((p.grad == 3).all()) for p in model.parameters() if p.grad is not None)
        loss.value.backward()
        count += loss.owner == "model" and bool(loss.seen.right)  # not YOPO's of the first layer
        for p in model.parameters():
            if p.grad is not None:
                p.grad.fill_(3.0)
    assert torch.equal(x, inputs)
    assert not x.requires_grad
    assert x.grad is None
    assert int(model[1].num_batches_tracked) == FORWARDS.get(name, 1) == count


class Failing(nn.Module):
    """Raises in its n-th forward."""

    def __init__(self, model: nn.Module, when: int) -> None:
        super().__init__()
        self.model, self.left = model, when

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.left -= 1
        if self.left == 0:
            raise KeyError("the model fails")
        return logits


@pytest.mark.parametrize("when", [1, 2, 3])
@pytest.mark.parametrize("name", MADE)
def test_also_after_the_model_failed(name: str, when: int) -> None:
    x, y = samples()
    strategy, model = MADE[name](), Failing(watched(name), when)
    before = whole(model)
    tracked = int(model.model[1].num_batches_tracked)
    try:
        for loss in strategy(model, sp.Batch(x, y, torch.arange(6))):
            loss.value.backward()
    except KeyError:
        assert whole(model) == before
        model.left = 0
        for p in model.parameters():
            p.grad = None
        for loss in strategy(model, sp.Batch(x, y, torch.arange(6))):  # and it can go on
            loss.value.backward()
        assert int(model.model[1].num_batches_tracked) <= tracked + 1 + 2 * FORWARDS.get(name, 1)
    else:
        assert model.left > 0, "it has so many forwards"


def trained(strategy: Strategy, model: nn.Module, numbers: range) -> None:
    optimizers = {"model": torch.optim.SGD(model.parameters(), 0.1)}
    optimizers |= {name: torch.optim.SGD(m.parameters(), 0.1) for name, m in strategy.modules().items()}
    for number in numbers:
        x, y = samples(seed=number % 2)
        indices = torch.arange(6) + 6 * (number % 2)
        for loss in strategy(model, sp.Batch(x, y, indices)):
            loss.value.backward()
            if loss.update:
                optimizers[loss.owner].step()
                for each in optimizers.values():
                    each.zero_grad()


@pytest.mark.parametrize("name", MADE)
def test_a_saved_training_goes_on_to_the_bit(name: str) -> None:
    strategy, model = MADE[name](), network("norm")
    trained(strategy, model, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "strategy": strategy.state_dict()}, file)
    trained(strategy, model, range(3, 6))

    file.seek(0)
    kept = torch.load(file, weights_only=True)
    again, other = MADE[name](), network("norm", seed=1)
    other.load_state_dict(kept["model"])
    again.load_state_dict(kept["strategy"])
    trained(again, other, range(3, 6))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    assert equal(strategy.state_dict(), again.state_dict())


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("name", MADE)
def test_a_state_does_not_change_behind_ones_back(name: str) -> None:
    strategy, model = MADE[name](), network("norm")
    trained(strategy, model, range(2))
    state = strategy.state_dict()
    before = copy.deepcopy(state)
    trained(strategy, model, range(2, 4))
    assert equal(state, before)


@pytest.mark.parametrize("name", MADE)
def test_settings_are_json_and_tell_strategies_apart(name: str) -> None:
    settings = json.loads(json.dumps(MADE[name]().settings()))
    assert settings["seed"] == 0
    if name not in ("Standard", "Mixed", "EnsembleTraining", "AdvProp"):
        assert settings["threat"] == "Linf(0.1)"
    if name in ("Mixed", "EnsembleTraining", "AdvProp"):
        assert settings["attack"]["threat"] == "Linf(0.1)"
        assert settings["attack"]["name"] == ("PGD" if name == "Mixed" else "FGSM")
    if name == "PGDTraining":
        assert settings["schedule"] == {"3": 1}


def test_kept_perturbations_are_where_a_sample_begins_next_time() -> None:
    strategy = sp.PGDTraining(THREAT, 1, SIZE, keep=True)
    x, y = samples(8)
    model = network()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))

    def shown(numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Where these samples began, and the examples that were learned from."""
        seen.clear()
        part = torch.tensor(numbers)
        for loss in strategy(model, sp.Batch(x[part], y[part], part)):
            loss.value.backward()
        return seen[0], seen[1]

    began, learned = shown([4, 0, 6])
    assert torch.equal(learned, clipped(x[[4, 0, 6]], learned))
    moved = began + SIZE * slope(model, began, lambda z: F.cross_entropy(z, y[[4, 0, 6]])).sign()
    assert torch.allclose(learned, clipped(x[[4, 0, 6]], moved), rtol=0, atol=1e-12)

    again, _ = shown([6, 1, 4])
    assert torch.allclose(again[[0, 2]], learned[[2, 0]], rtol=0, atol=EPS * 2**-10), "kept in half precision"
    assert float((again[1] - x[1]).abs().max()) > SIZE, "one that is new begins at random"
    third, _ = shown([0])
    assert torch.allclose(third[0], learned[1], rtol=0, atol=EPS * 2**-10)


def test_one_step_is_shorter_where_it_goes_on_from_what_is_kept() -> None:
    steps = {keep: sp.PGDTraining(THREAT, 1, keep=keep).attack(1).step_size for keep in (False, True)}
    assert steps == {False: pytest.approx(1.25 * EPS), True: pytest.approx(0.7 * EPS)}
    assert sp.PGDTraining(THREAT, 1, SIZE, keep=True).attack(1).step_size == SIZE
    several = [sp.PGDTraining(THREAT, 5, keep=keep).attack(5).step_size for keep in (False, True)]
    assert several == [pytest.approx(0.5 * EPS)] * 2


def test_kept_perturbations_ask_for_indices_and_one_size() -> None:
    strategy = sp.PGDTraining(THREAT, 1, keep=True)
    x, y = samples()
    with pytest.raises(ValueError, match=r"PGDTraining keeps something for every sample.*indices=\.\.\."):
        next(strategy(network(), (x, y)))
    next(strategy(network(), sp.Batch(x, y, torch.arange(6))))
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 6, 5\).*keep=True needs inputs of one size"):
        next(strategy(network(), sp.Batch(torch.rand(6, 2, 6, 5, dtype=x.dtype), y, torch.arange(6))))


@pytest.mark.parametrize("tau", [0, 2])
def test_a_sample_climbs_until_the_network_errs_and_costs_no_more(tau: int) -> None:
    x, y = samples(12)
    model = Counting(network())
    made: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: made.append(inputs[0].detach()))
    strategy = sp.PGDTraining(THREAT, 5, SIZE, random_start=False, stop_when_fooled=True, tau=tau)
    for loss in strategy(model, (x, y)):
        loss.value.backward()
    examples, forwards = made[-1], 0
    reference = network()
    for i in range(12):
        at, label, left = x[i : i + 1], y[i : i + 1], tau
        for _ in range(5):
            forwards += 1
            if int(reference(at).argmax()) != int(label):
                if left == 0:
                    break
                left -= 1
            uphill = slope(reference, at, lambda z, label=label: F.cross_entropy(z, label))
            at = clipped(x[i : i + 1], at + SIZE * uphill.sign())
        assert torch.allclose(examples[i : i + 1], at, rtol=0, atol=1e-12)
    assert model.forwards == forwards + 12
    assert 12 < forwards < 60


@pytest.mark.parametrize("bn", ["auto", "batch", "train", "eval"])
def test_samples_that_stop_change_no_statistics_of_a_compiled_model(bn: str) -> None:
    """A compiled model's batches are filled up with copies, but not where BatchNorm would see them."""
    x, _ = samples(24)
    y = network("norm")(x).argmax(1)
    gradients, sizes = [], []
    for compiled in (False, True):
        model = network("norm")
        if compiled:
            model.compile(backend="eager")
        strategy = sp.PGDTraining(THREAT, 6, stop_when_fooled=True, bn=bn)
        for loss in strategy(model, (x, y)):
            loss.value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        sizes.append(strategy.passes)
    assert sizes[0] == sizes[1]
    assert sizes[0].backwards < 24 * 7  # some did stop
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_losses_are_of_full_precision_where_the_network_is_not() -> None:
    x, y = samples()
    for name, make in MADE.items():
        for half, autocast in ((False, torch.bfloat16), (True, None)):
            if half and name in ("EnsembleTraining", "GeneratorTraining"):
                continue  # their other networks are in float64 here
            model = network("norm").to(torch.bfloat16 if half else torch.float32)
            strategy = make() if name not in ("EnsembleTraining", "GeneratorTraining") else in_float32(make())
            strategy.autocast = autocast
            for loss in strategy(model, sp.Batch(x.to(model[0].weight.dtype), y, torch.arange(6))):
                assert loss.value.dtype == torch.float32, name
                loss.value.backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()), name


def in_float32(strategy: Strategy) -> Strategy:
    for module in [*strategy.modules().values(), *getattr(strategy, "sources", ())]:
        module.float()
    return strategy


def test_a_schedule_warms_up_clean_and_climbs_longer() -> None:
    model = Counting(network())
    strategy = sp.PGDTraining(THREAT, 9, schedule={0: 0, 2: 1, 3: 4})
    x, y = samples()
    found = []
    for _ in range(5):
        before = model.forwards
        (loss,) = strategy(model, (x, y))
        loss.value.backward()
        found.append(((model.forwards - before) // 6, list(loss.seen.right)))
    assert found == [(1, ["clean"])] * 2 + [(2, ["adversarial"])] + [(5, ["adversarial"])] * 2


def test_frees_perturbation_lives_on_by_place_in_the_batch() -> None:
    model, strategy = network(), sp.Free(THREAT, 1, SIZE)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    change = torch.zeros(6, 2, 5, 5, dtype=torch.float64)
    for number, count in enumerate((4, 2, 6)):
        x, y = samples(count, seed=number)
        for loss in strategy(model, (x, y)):
            began = clipped(x, x + change[:count])
            assert torch.allclose(loss.value, F.cross_entropy(copy.deepcopy(model)(began), y))
            g = slope(model, began, lambda z, y=y: F.cross_entropy(z, y))
            loss.value.backward()
        change[:count] = clipped(x, began + SIZE * g.sign()) - x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.PGDTraining(sp.Linf(0.0)), r"PGDTraining\(threat=Linf\(0\)\): expected a finite eps above 0"),
        (lambda: sp.Free(sp.Linf(0.0)), r"Free\(threat=Linf\(0\)\): expected a finite eps above 0"),
        (lambda: sp.Mixed(sp.FGSM(sp.Linf(0.0))), r"Mixed\(threat=Linf\(0\)\): expected a finite eps"),
        (lambda: sp.TRADES(sp.Linf(torch.rand(3))), "expected one eps"),
        (lambda: sp.TRADES(0.1), r"TRADES\(threat=0.1\): expected a threat model such as"),
        (lambda: sp.NFGSM(sp.L2(1.0)), "NFGSM has no form for l2: expected linf"),
        (lambda: sp.YOPO(8 / 255), r"YOPO\(threat=0.03.*\): expected a threat model such as"),
        (lambda: sp.YOPO(sp.Linf(0.0)), r"YOPO\(threat=Linf\(0\)\): expected a finite eps above 0"),
        (lambda: sp.YOPO(sp.Linf(torch.rand(3))), "expected one eps"),
        (lambda: sp.YOPO(sp.L0(3)), "YOPO has no form for l0: expected linf, l2, l1"),
        (lambda: sp.TRADESYOPO(sp.L0(3)), "^TRADESYOPO has no form for l0"),
        (lambda: sp.Free(THREAT, 0), r"Free\(m=0\): expected a whole number, at least 1"),
        (lambda: sp.TRADESYOPO(THREAT, m=0), r"\(m=0\): expected a whole number, at least 1"),
        (lambda: sp.PGDTraining(THREAT, 0), r"PGDTraining\(steps=0\): expected a whole number, at least 1"),
        (lambda: sp.TRADES(THREAT, steps=0), r"\(steps=0\): expected a whole number, at least 1"),
        (lambda: sp.MART(THREAT, weight=-1.0), r"MART\(weight=-1.0\): expected a number above 0"),
        (lambda: sp.PGDTraining(THREAT, tau=1), r"PGDTraining\(tau=1\): expected steps.*stop_when_fooled=True"),
        (lambda: sp.PGDTraining(THREAT, step_size=0.0), r"PGDTraining\(step_size=0.0\): expected a number above 0"),
        (lambda: sp.PGDTraining(THREAT, 2, "2/255"), r"PGDTraining\(step_size='2/255'\): expected a number above 0"),
        (lambda: sp.PGDTraining(THREAT, schedule={0: -1}), r"PGDTraining\(schedule=\{0: -1\}\): expected"),
        (lambda: sp.Mixed(sp.FGSM(THREAT), 1.5), r"Mixed\(alpha=1.5\): expected a number from 0"),
        (lambda: sp.Mixed(sp.FGSM(THREAT), fraction=0.0), r"Mixed\(fraction=0.0\): expected a part of the batch"),
        (lambda: sp.Mixed(sp.FGSM(THREAT), 0.0, fraction=0.5), r"would count nothing"),
        (lambda: sp.Mixed(THREAT), r"Mixed\(attack=Linf\(0.1\)\): expected an attack such as"),
        (lambda: sp.EnsembleTraining(sp.FGSM(THREAT), []), r"EnsembleTraining\(sources=\(\)\): expected one trained"),
        (lambda: sp.AdvProp(sp.FGSM(THREAT), bn="eval"), r"AdvProp\(bn='eval'\): it is what bn='split'"),
        (lambda: sp.GeneratorTraining(THREAT, width=4), r"GeneratorTraining\(width=4\): expected"),
        (lambda: sp.NFGSM(THREAT, k=0.0), r"NFGSM\(k=0.0\): expected a number above 0"),
        (lambda: sp.Standard(label_smoothing=1.0), r"Standard\(label_smoothing=1.0\): expected"),
        (lambda: sp.Standard(bn="best"), "bn='best': expected one of auto"),
    ],
)
def test_bad_settings_get_one_line(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", MADE)
def test_bad_batches_get_one_line(name: str) -> None:
    x, y = samples()
    numbers = torch.arange(6)
    for batch, message in (
        (sp.Batch((255 * x).byte(), y, numbers), r"batch.x of dtype torch.uint8: expected a tensor of floats"),
        (sp.Batch(x, y + 1, numbers), r"y holds classes from .* to 3, the model has 3"),
        (sp.Batch(x, y[:5], numbers), r"y of shape \(5,\) for 6 samples"),
        (sp.Batch(x, y.double(), numbers), r"y of dtype torch.float64"),
        (sp.Batch(x, y, numbers[:4]), r"indices of shape \(4,\) for 6 samples"),
        (sp.Batch(x[:1], y[:1], numbers[:1]), "a batch of one sample has no batch statistics"),
        (sp.Batch(4 * x, y, numbers), r"outside the box \[0, 1\]"),
        ({"x": x, "y": y}, r"a batch of type dict: expected sp.Batch\(x, y\) or \(x, y\)"),
    ):
        if name == "Standard" and "box" in message:
            continue
        with pytest.raises((ValueError, TypeError), match=message) as raised:  # noqa: PT012
            for loss in MADE[name]()(network("norm"), batch):
                loss.value.backward()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["Free", "TRADES", "PGDTraining"])
def test_a_batch_of_one_is_fine_without_batchnorm(name: str) -> None:
    x, y = samples(1)
    model = network()
    for loss in MADE[name]()(model, sp.Batch(x, y, torch.arange(1))):
        loss.value.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("make", [MADE["AdvProp"], lambda: sp.Mixed(sp.FGSM(THREAT), bn="split")])
def test_there_must_be_batchnorm_to_split(make: Any) -> None:
    with pytest.raises(
        ValueError, match=r"(bn='split'|AdvProp): the model has no BatchNorm layer.*to split; use sp.Mixed"
    ):
        next(make()(network(), samples()))


@pytest.mark.parametrize("name", ["Standard", "PGDTraining"])
def test_inputs_that_the_model_can_not_take(name: str) -> None:
    x, y = samples()
    strategy = MADE[name]()
    other = torch.float32 if x.dtype == torch.float64 else torch.float64
    with pytest.raises(
        ValueError, match=r"can't take inputs of shape .*; give it data of the channels, size and dtype"
    ):
        next(strategy(network(), sp.Batch(x.to(other), y, torch.arange(len(x))))).value  # noqa: B018  # a property that computes


def test_a_batch_is_told_in_a_line() -> None:
    x, y = torch.rand(6, 2), torch.zeros(6, dtype=torch.long)
    assert repr(sp.Batch(x, y, step=3, extras={"unlabelled": x})) == "Batch(x (6, 2), 6 labels, step=3, unlabelled)"
    ids = torch.ones(6, 2, dtype=torch.long)
    assert repr(sp.Batch(Encoded(ids, ids > 0, ids < 0), y)) == "Batch(Encoded, 6 labels)"


def test_what_can_not_be_made_again_says_so() -> None:
    class Mine(sp.Standard):
        def __init__(self, tau: float) -> None:
            super().__init__()
            self.tau = tau

    strategy = Mine(0.1)
    begin_anew(sp.Standard())
    with pytest.raises(TypeError, match=r"Mine can't begin anew.*make it a dataclass, or make another one"):
        begin_anew(strategy)


def test_free_says_what_a_loop_forgot() -> None:
    losses = sp.Free(THREAT, 2)(network(), samples())
    assert next(losses).value.requires_grad
    with pytest.raises(RuntimeError, match=r"a loop must call loss.value.backward\(\)"):
        next(losses)
