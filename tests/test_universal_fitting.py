"""The loop that all learned attacks share: batches, the held-out choice, passes, and what a sample pulls."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from networks import inputs, linear, mlp
from sparring.borrow import Borrowed, borrow
from sparring.learned import fitting
from sparring.noise import Noise
from sparring.rows import Rows


class Counting(nn.Module):
    """Counts the samples that pass through in each direction."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def rows_of(model: nn.Module, x: Tensor, y: Tensor, threat: sp.Threat, target: int | None = None) -> Rows:
    with borrow(model) as borrowed:
        return fitting.gather(borrowed, threat, (x, y), target, None, 0)


@pytest.mark.parametrize(("steps", "batch_size"), [(25, 8), (3, 64), (1, 1)])
def test_passes_are_those_of_the_steps_the_checks_and_one_look(steps: int, batch_size: int) -> None:
    x = inputs(50, (12,))[0]
    model = Counting(mlp((12,)))
    y = model(x).argmax(1)
    y[:10] = (y[:10] + 1) % 4
    model.forwards = 0
    record = sp.UniversalPerturbation(sp.Linf(0.1)).fit(model, (x, y), steps=steps, batch_size=batch_size).record
    assert record is not None
    assert (record.samples, record.held_out) == (32, 8)
    assert len(record.fooled) == min(steps, fitting.CHECKS)
    learned = steps * min(batch_size, 32)
    assert record.forwards == model.forwards == 50 + learned + len(record.fooled) * 8
    assert record.backwards == model.backwards == learned


@dataclass
class Shift:
    """A fitted attack that fools as many samples of the model below as it is told."""

    many: int

    def apply(self, rows: Rows, noise: Noise, draw: int | Tensor = 0) -> Tensor:
        return torch.where((rows.index < self.many)[:, None], -rows.original, rows.original)


class Scripted:
    """A learner whose snapshots go through a known series."""

    def __init__(self, series: list[int]) -> None:
        self.series, self.made = series, 0

    def step(self, model: Borrowed, rows: Rows, number: int, steps: int) -> None:
        self.number = number

    def snapshot(self) -> Shift:
        return Shift(self.series[self.number])


def test_the_best_on_held_out_samples_comes_back() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1)

    x, y = torch.ones(40, 1), torch.zeros(40, dtype=torch.int64)
    with borrow(model) as borrowed:
        rows = fitting.gather(borrowed, sp.Linf(1.0, bounds=None), (x, y), None, None, 0)
        series = [0, 3, 12, 40, 7, 22, 40, 1, 5, 9]
        said: list[tuple[str, float]] = []
        attack, record = fitting.learn(
            borrowed, Scripted(series), rows[torch.arange(30)], rows, steps=10, batch_size=8, seed=0,
            progress=lambda message, done: said.append((message, done)),
        )  # fmt: skip
    assert attack.many == 40
    assert record.fooled == tuple(series)
    assert said[3] == ("step 4/10, 40 of 40 held-out samples fooled", 0.4)
    assert said[-1][1] == 1.0


def test_held_out_samples_go_by_their_numbers() -> None:
    model = linear((12,))
    x, y = inputs(50, (12,))
    rows = rows_of(model, x, y, sp.Linf(0.1))
    train, held = fitting.divided(rows, 0.2, seed=3)
    assert (len(train), len(held)) == (40, 10)
    assert sorted([*train.index.tolist(), *held.index.tolist()]) == list(range(50))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    _, again = fitting.divided(rows[order], 0.2, seed=3)
    assert set(again.index.tolist()) == set(held.index.tolist())
    assert set(fitting.divided(rows, 0.2, seed=4)[1].index.tolist()) != set(held.index.tolist())


def test_every_sample_is_used_as_often_as_any_other() -> None:
    seen = torch.cat(list(fitting.batches(10, 4, 15, seed=0)))
    assert seen.bincount(minlength=10).tolist() == [6] * 10
    assert [len(b) for b in fitting.batches(3, 8, 2, seed=0)] == [3, 3]
    assert not torch.equal(seen, torch.cat(list(fitting.batches(10, 4, 15, seed=1))))


def test_what_there_is_to_win() -> None:
    model = mlp((12,))
    x = inputs(60, (12,))[0]
    seen = model(x).argmax(1)
    y = seen.clone()
    y[::3] = (y[::3] + 1) % 4
    with borrow(model) as borrowed:
        found, margins = fitting.attackable(borrowed, rows_of(model, x, y, sp.Linf(0.1)), 7)
        assert found.index.tolist() == (seen == y).nonzero().flatten().tolist()
        assert bool((margins < 0).all())
        found, margins = fitting.attackable(borrowed, rows_of(model, x, y, sp.Linf(0.1), target=1), 7)
    assert found.index.tolist() == ((seen != 1) & (y != 1)).nonzero().flatten().tolist()
    assert bool((margins < 0).all())


def test_what_a_sample_pulls() -> None:
    """The sigmoid's gradient, but nothing that the box or the mask would swallow; NaN pulls nowhere."""
    model = linear((4,))
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    weight = model[1].weight.detach()
    with torch.no_grad():
        value = (model(x)[[0, 1], [1, 0]] - model(x)[[0, 1], [0, 1]]) / 3
    expected = (value.sigmoid() * (1 - value.sigmoid()) / 3)[:, None] * (weight[1 - y] - weight[y])
    swallowed = ((x == 0) & (expected < 0)) | ((x == 1) & (expected > 0))
    assert 0 < int(swallowed.sum()) < 4
    expected = expected.masked_fill(swallowed, 0.0)
    expected[:, 3] = 0
    threat = sp.Linf(0.1, mask=torch.tensor([True, True, True, False]))
    with borrow(model) as borrowed:
        rows = fitting.gather(borrowed, threat, (x, y), None, None, 0)
        torch.testing.assert_close(fitting.pull(borrowed, rows, x, 3.0), expected)
    with borrow(lambda z: model(z) * torch.tensor([1.0, torch.nan])) as borrowed:
        assert torch.equal(fitting.pull(borrowed, rows, x, 3.0), torch.zeros_like(x))


def test_the_scale_of_the_logits_does_not_matter() -> None:
    model = mlp((12,))
    x = inputs(60, (12,))[0]
    y = model(x).argmax(1)
    attack = sp.UniversalPerturbation(sp.Linf(0.1))
    a, b = (attack.fit(lambda z, k=k: k * model(z), (x, y), steps=9).delta for k in (1.0, 1024.0))
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b)


def test_data_in_any_form_gives_the_same_perturbation() -> None:
    model = mlp((12,))
    x = inputs(40, (12,))[0]
    y = model(x).argmax(1)
    attack = sp.UniversalPerturbation(sp.Linf(0.1))
    expected = attack.fit(model, (x, y), steps=5).delta
    dataset = TensorDataset(x, y)
    assert expected is not None
    for data in (dataset, DataLoader(dataset, batch_size=7, shuffle=True)):
        delta = attack.fit(model, data, steps=5).delta
        assert delta is not None
        assert torch.equal(delta, expected)
    small = attack.fit(model, dataset, steps=5, max_samples=20).record
    assert small is not None
    assert small.samples + small.held_out == 20


def test_a_seed_fixes_everything() -> None:
    model = mlp((12,))
    x = inputs(60, (12,))[0]
    y = model(x).argmax(1)
    attack = sp.UniversalPerturbation(sp.L2(0.5))
    a, b, c = (attack.fit(model, (x, y), steps=7, batch_size=8, seed=seed).delta for seed in (1, 1, 2))
    assert a is not None
    assert b is not None
    assert c is not None
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
