"""The training loop: what it computes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.training import train
from sparring.training.loop import _mirror_and_shift


def problem(count: int = 96, features: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (count,), generator=generator)
    return F.one_hot(y, features) * 2.0 + torch.randn(count, features, generator=generator), y


def network(seed: int = 0, **extra: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), *extra.values(), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_it_learns_and_says_how() -> None:
    x, y = problem(600)
    model = network()
    history = train(model, (x, y), epochs=12, batch_size=32, lr=0.01)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.85
    first, last = history.epochs[0], history.epochs[-1]
    assert first.loss is not None
    assert last.loss is not None
    assert last.loss < 0.7 * first.loss
    assert last.adversarial_loss is None
    assert [e["lr"] for e in history.to_json()] == [e.lr for e in history.epochs]


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    found = []
    for seed, noise in ((3, 0), (3, 9), (4, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = network()
        train(model, problem(), epochs=2, batch_size=32, seed=seed, lr=0.01)
        assert torch.equal(before, torch.get_rng_state())
        found.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1]))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[2]))


def test_a_frozen_batchnorm_stays_frozen_and_modes_come_back() -> None:
    norm = nn.BatchNorm1d(16)
    model = network(norm=norm)
    norm.eval()
    before = norm.running_mean.clone()
    train(model, problem(), epochs=1, lr=0.01)
    assert torch.equal(norm.running_mean, before)
    assert model.training
    assert not norm.training

    model.eval()
    train(model, problem(), epochs=1, lr=0.01)
    assert not torch.equal(norm.running_mean, before), "a model in eval mode is trained in train mode"
    assert not any(module.training for module in model.modules())


def test_frozen_parameters_do_not_move_and_gradients_are_gone() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    before, last = model[0].weight.clone(), model[-1].weight.clone()
    train(model, problem(), epochs=1, lr=0.01)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[-1].weight, last)
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_it_works_where_gradients_are_off() -> None:
    model = network()
    with torch.no_grad():
        history = train(model, problem(), epochs=3, lr=0.01)
        assert not torch.is_grad_enabled()
    assert history.epochs[-1].loss < history.epochs[0].loss


@dataclass
class Recorder:
    """An attack that adds 1 to everything and notes what it was given."""

    seen: list[tuple[Tensor, Tensor, Tensor, int]]

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, indices: Tensor | None = None, seed: int = 0
    ) -> object:
        assert indices is not None
        self.seen.append((x, y, indices, seed))
        return type("Crafted", (), {"x": x + 1})()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_mixed_loss(alpha: float) -> None:
    """One step of SGD with Nesterov momentum .9 goes 1.9 times along the gradient of the mixture."""
    x, y = problem(20)
    model = nn.Linear(6, 3)
    reference = nn.Linear(6, 3)
    reference.load_state_dict(model.state_dict())
    (alpha * F.cross_entropy(reference(x), y) + (1 - alpha) * F.cross_entropy(reference(x + 1), y)).backward()
    attack = Recorder([])
    history = train(
        model, (x, y), epochs=1, batch_size=20, lr=0.1, optimizer="sgd", schedule="constant", attack=attack, alpha=alpha
    )
    torch.testing.assert_close(model.weight, reference.weight - 0.19 * reference.weight.grad)
    ((batch, labels, numbers, _),) = attack.seen
    assert torch.equal(batch, x[numbers])
    assert torch.equal(labels, y[numbers])
    assert history.epochs[0].adversarial_loss is not None
    assert (history.epochs[0].loss is None) == (alpha == 0)


def test_adversarial_training_gives_up_the_feature_that_does_not_hold() -> None:
    """One feature holds under eps, twenty are better together but smaller than eps (Tsipras et al., 2019)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (1500,), generator=generator)
    sign = (2.0 * y - 1)[:, None]
    strong = sign * torch.where(torch.rand(1500, 1, generator=generator) < 0.9, 1.0, -1.0)
    x = torch.cat([strong, sign * 0.3 + 0.5 * torch.randn(1500, 20, generator=generator)], 1)
    attack = sp.FGSM(sp.Linf(0.5, bounds=None))
    held = []
    for crafted in (None, attack):
        model = nn.Linear(21, 2)
        nn.init.zeros_(model.weight)
        train(model, (x, y), epochs=15, batch_size=100, lr=0.05, attack=crafted, alpha=0.0)
        held.append(1 - attack(model, x, y).success.float().mean().item())
    assert held[0] < 0.3
    assert held[1] > 0.8


def test_norms_stay_below_the_limit() -> None:
    model = network()
    train(model, problem(), epochs=3, lr=0.1, max_norm=0.4)
    assert all(layer.weight.norm(dim=1).max() <= 0.4 + 1e-6 for layer in (model[0], model[-1]))
    free = network()
    train(free, problem(), epochs=3, lr=0.1)
    assert free[0].weight.norm(dim=1).max() > 0.4


def test_augmentation_mirrors_and_shifts_each_image_whole() -> None:
    x = torch.zeros(200, 1, 12, 12)
    x[:, 0, 5, 5], x[:, 0, 5, 6] = 1.0, 2.0
    moved = _mirror_and_shift(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((200,), 3.0))
    ones, twos = ((moved == value).nonzero()[:, 2:] for value in (1, 2))
    assert torch.equal(ones[:, 0], twos[:, 0])
    mirrored = (twos[:, 1] - ones[:, 1]) == -1
    assert 70 < mirrored.sum() < 130
    assert set((ones[:, 0] - 5).tolist()) == set(range(-4, 5))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.8536, 0.5, 0.1464]), ("triangle", [0, 0.625, 0.8333, 0.4167])],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    history = train(nn.Linear(6, 3), problem(8), epochs=4, batch_size=8, lr=1.0, schedule=schedule)
    assert [epoch.lr for epoch in history.epochs] == pytest.approx(expected, abs=1e-4)


def test_a_dataset_is_taken_like_its_tensors() -> None:
    x, y = problem(40)
    found = []
    for data in ((x, y), [(a, int(b)) for a, b in zip(x, y)]):
        model = network()
        train(model, data, epochs=2, lr=0.01)
        found.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected a number above 0"),
        ({"alpha": 1.5}, "alpha=1.5: expected"),
        ({"optimizer": "lion"}, "optimizer='lion': expected 'adam' or 'sgd'"),
        ({"schedule": "step"}, "schedule='step': expected"),
        ({"augment": True}, r"augment=True mirrors and shifts images \(N, C, H, W\)"),
        ({"data": (torch.zeros(3, 6), torch.zeros(2).long())}, "x has 3 samples and y 2"),
        ({"data": (torch.zeros(3, 6), torch.zeros(3))}, "expected float x, integer y"),
        ({"data": []}, "empty"),
    ],
)
def test_bad_input_gets_one_line(settings: dict[str, object], message: str) -> None:
    model = network()
    before = weights(model)
    settings = {"data": problem(8), "epochs": 1, **settings}
    with pytest.raises(ValueError, match=message) as raised:
        train(model, settings.pop("data"), **settings)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model)))
    assert model.training


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    x, y = problem(32)
    x[5, 2] = torch.inf
    model = network().eval()
    with pytest.raises(FloatingPointError, match="lower lr"):
        train(model, (x, y), epochs=1, lr=0.1)
    assert not model.training
