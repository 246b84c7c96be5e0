"""Evaluate against a literal evaluation: the same verdicts and passes, whatever the batches; and nothing is touched."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from networks import SHAPE, Counting, convolutional, inputs, labelled, linear, mlp
from sparring.ascent import Pool
from sparring.evaluation import Progress, estimate
from sparring.evaluation.nearest import STEPS
from sparring.evaluation.stages import OwnStage
from sparring.evaluation.stream import Stream

EPS = 0.02


def chosen(threat: sp.Threat) -> list[Any]:
    return [
        sp.PGD(threat, steps=3, objective="margin", schedule="cosine"),
        sp.PGD(threat, steps=6, restarts=2),
        sp.PGD(threat, steps=5, objective="dlr"),
    ]


@pytest.mark.parametrize("threat", [sp.Linf(EPS), sp.L2(0.08), sp.L1(0.3)], ids=str)
@pytest.mark.parametrize("network", [linear, mlp])
def test_verdicts_and_passes_are_those_of_each_attack_run_by_hand(threat: sp.Threat, network: Any) -> None:
    model = network(SHAPE, 4)
    x, y = labelled(model, 100)
    result = sp.evaluate(model, (x, y), threat, attacks=chosen(threat), batch_size=16, seed=5)
    standing = model(x).argmax(1) == y
    assert torch.equal(result.correct, standing)
    assert result.clean_accuracy.count == int(standing.sum())
    worst = standing.clone()
    for i, attack in enumerate(chosen(threat)):
        seed = 5 + 1_000_003 * i
        alone = attack(model, x, y, seed=seed)  # all samples, every step
        worst &= ~alone.success
        left = standing.nonzero().flatten()
        literal = replace(attack, stop_when_fooled=True)(model, x[left], y[left], indices=left, seed=seed)
        row = result.attacks[i]
        assert (row["attacked"], row["fooled"]) == (len(left), int(literal.success.sum()))
        assert (row["forwards"], row["backwards"]) == (literal.forwards, literal.backwards)
        standing[left[literal.success]] = False
        assert row["robust_accuracy"]["count"] == int(standing.sum())
    assert torch.equal(result.robust, worst)
    assert 0 < result.robust_accuracy.count < result.clean_accuracy.count
    assert result.robust_accuracy.count == int(worst.sum())


def pgds(threat: sp.Threat) -> list[sp.PGD]:
    """A cascade whose passes can be counted beforehand."""
    return [
        sp.PGD(threat, steps=10, objective="margin", schedule="cosine"),
        sp.PGD(threat, steps=40),
        sp.PGD(threat, steps=40, objective="dlr", schedule="cosine"),
        sp.PGD(threat, steps=40, objective="margin", targets="second", schedule="cosine"),
    ]


def comparable(result: sp.EvaluationResult) -> list[tuple[Any, ...]]:
    names = ("index", "correct", "robust", "attack", "forwards", "backwards", "distance", "norm", "prediction")
    return [tuple(round(v, 12) if isinstance(v := row[n], float) else v for n in names) for row in result.samples()]


def test_float64_results_are_the_same_at_any_batch_size_and_in_any_order() -> None:
    model, threat = mlp(SHAPE), sp.Linf(EPS)
    x, y = labelled(model, 80)
    attacks = [sp.FGSM(threat), *(replace(attack, steps=5) for attack in pgds(threat))]
    attacks = attacks[:2] + attacks[3:]
    whole = sp.evaluate(model, (x, y), threat, attacks=attacks, batch_size=500)
    expected = comparable(whole)
    assert len({row[3] for row in expected}) > 2  # several attacks of the cascade fool somebody
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for size in (1, 7, 32):
        straight = sp.evaluate(model, (x, y), threat, attacks=attacks, batch_size=size)
        assert comparable(straight) == expected
        assert straight.document["passes"] == whole.document["passes"]
        assert [{**row, "seconds": 0} for row in straight.attacks] == [{**row, "seconds": 0} for row in whole.attacks]
        for (_, _, a), (_, _, b) in zip(straight.examples, whole.examples, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    shuffled = sp.evaluate(model, (x[order], y[order]), threat, attacks=attacks, batch_size=32, indices=order)
    assert comparable(shuffled) == expected
    assert [index for index, _, _ in shuffled.examples] == sorted(index for index, _, _ in whole.examples)


def test_float32_verdicts_differ_in_at_most_one_of_a_thousand() -> None:
    model, threat = mlp(SHAPE, dtype=torch.float32), sp.Linf(EPS)
    data = labelled(model, 1000, torch.float32)
    attacks = [replace(attack, steps=3) for attack in pgds(threat)[:2]]
    results = [sp.evaluate(model, data, threat, attacks=attacks, batch_size=size) for size in (40, 500)]
    for other in results[1:]:
        assert int((other.robust != results[0].robust).sum()) <= 1


def by_hand(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Somebody else's attack: FGSM, drawing from every global random state."""
    random.random(), np.random.rand()  # noqa: NPY002
    x = (x + 0.001 * torch.randn_like(x)).requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
    return x + EPS * gradient.sign()


def test_passes_are_what_a_module_counts() -> None:
    counting, threat = Counting(mlp(SHAPE)), sp.Linf(EPS)
    data = labelled(counting.model, 130)
    attacks = [by_hand, replace(pgds(threat)[0], steps=4), replace(pgds(threat)[3], steps=4)]
    for limit in (None, 1e-9):
        counting.forwards = counting.backwards = 0
        result = sp.evaluate(counting, data, threat, attacks=attacks, batch_size=32, time_limit=limit)
        assert result.finished == (limit is None)
        assert (result.forwards, result.backwards) == (counting.forwards, counting.backwards)
        passes, rows = result.document["passes"], result.attacks
        parts = passes["clean"] + passes["distance"] + passes["gallery"] + passes["checkup"]
        assert passes["forwards"] == parts + sum(row["forwards"] for row in rows)
        beside = passes["distance_backwards"] + passes["checkup_backwards"]
        assert passes["backwards"] == beside + sum(row["backwards"] for row in rows)
        samples = list(result.samples())
        assert sum(row["forwards"] for row in samples) == passes["forwards"] - passes["gallery"] - passes["checkup"]
        fooled = sum(row["fooled"] for row in rows)
        assert fooled == sum(row["attack"] >= 0 for row in samples)
        # one forward confirms a success, ten steps and a last look find how near failure lies
        assert (passes["distance"], passes["distance_backwards"]) == (12 * fooled, 10 * fooled)
        assert passes["clean"] == len(samples)


def test_the_estimate_is_an_upper_bound() -> None:
    threat = sp.Linf(0.5)
    for model, last in ((linear(SHAPE, 4), 0.5), (linear(SHAPE, 4), 1e-6)):
        threat, counting = sp.Linf(last), Counting(model)
        data = labelled(model, 40, wrong=1000)
        cost = estimate(counting, data, threat, attacks=pgds(threat), batch_size=16)
        result = sp.evaluate(counting, data, threat, attacks=pgds(threat), batch_size=16, checkup=False)
        assert cost.samples == 40
        assert cost.unknown == 0
        assert result.forwards <= 40 * cost.most.each.forwards
        assert result.backwards <= 40 * cost.most.each.backwards
    assert result.robust_accuracy.count == 39  # nobody fell: the bound is met but for what only the fallen cost
    assert result.backwards == 39 * (cost.most.each.backwards - STEPS)


class States:
    """Everything of a model and of the process that must not change."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self.now()

    def now(self) -> list[Any]:
        model = self.model
        return [
            [module.training for module in model.modules()],
            [(id(p), p.requires_grad, id(p.grad), p.detach().clone()) for p in model.parameters()],
            [(id(buffer), buffer.clone()) for buffer in model.buffers()],
            [p.grad.clone() for p in model.parameters() if p.grad is not None],
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_rng_state(),
        ]

    def check(self) -> None:
        torch.testing.assert_close(self.now(), self.before, rtol=0, atol=0)


class Noisy(TensorDataset):
    """A data set whose items cost global random numbers, as augmentations do."""

    def __getitem__(self, i: int) -> Any:
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return super().__getitem__(i)


def borrowed_model() -> nn.Sequential:
    model = convolutional()
    model.train()
    model[1].eval()  # a frozen BatchNorm
    model[0].weight.requires_grad_(False)
    for p in model[-1].parameters():
        p.grad = torch.ones_like(p)
    return model


def test_model_data_and_random_states_are_left_alone() -> None:
    model, (x, y) = borrowed_model(), inputs(60, (3, 6, 5), 3)
    copies, states, threat = (x.clone(), y.clone()), States(model), sp.Linf(EPS)

    def vandal(m: Any, x: Tensor, y: Tensor) -> Tensor:
        adversarial = by_hand(m, x, y)
        x += 0.1
        y.zero_()
        return adversarial

    attacks = [vandal, sp.PGD(threat, steps=2)]
    for data in (
        (x, y),
        DataLoader(Noisy(x, y), batch_size=8, shuffle=True),
        DataLoader(Noisy(x, y), batch_size=8, sampler=torch.utils.data.SubsetRandomSampler(range(30))),
        DataLoader(Noisy(x, y), batch_size=8, num_workers=1),
    ):
        sp.evaluate(model, data, threat, attacks=attacks, batch_size=16, max_samples=40)
        states.check()
        assert torch.equal(x, copies[0])
        assert torch.equal(y, copies[1])


@pytest.mark.parametrize("after", [1, 3, 9, 20])
def test_all_is_left_alone_after_an_exception(after: int, tmp_path: Any) -> None:
    model, (x, y) = borrowed_model(), inputs(60, (3, 6, 5), 3)
    calls = 0

    def fail(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise ArithmeticError("in the middle")

    model[-1].register_forward_pre_hook(fail)
    states = States(model)
    with pytest.raises(ArithmeticError):
        sp.evaluate(model, (x, y), sp.Linf(EPS), batch_size=16, out=tmp_path / "out")
    states.check()
    resumed = sp.evaluate(model, (x, y), sp.Linf(EPS), batch_size=16, out=tmp_path / "out")
    assert resumed.finished
    assert len(resumed.index) == 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to move the model to")
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_moves_to_the_device_and_back(fails: bool) -> None:
    model, (x, y) = borrowed_model(), inputs(60, (3, 6, 5), 3)
    torch.cuda.init()
    cuda, seen = torch.cuda.get_rng_state(), set()

    def look(module: nn.Module, args: Any) -> None:
        seen.add(args[0].device.type)
        if fails and len(seen) and torch.is_grad_enabled():
            raise ArithmeticError("in the middle")

    model[-1].register_forward_pre_hook(look)
    modes = [module.training for module in model.modules()]
    try:
        result = sp.evaluate(model, (x, y), sp.Linf(EPS), attacks=[by_hand, "pgd"], batch_size=16, device="cuda")
        assert result.document["environment"]["device"].startswith("cuda")
        assert all(a.device.type == "cpu" for _, _, a in result.examples)
    except ArithmeticError:
        assert fails
    assert seen == {"cuda"}
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model[-1].parameters())
    assert torch.equal(torch.cuda.get_rng_state(), cuda)


def live(stream: Stream) -> int:
    """Samples whose images an evaluation holds on to."""
    queues = [rows for stage in stream.stages for rows in (stage.queue, *stage.under_way())]  # type: ignore[attr-defined]
    return sum(len(rows) for rows in (*queues, *stream.fallen) if rows is not None)


def test_few_samples_are_held_and_batches_stay_full(monkeypatch: pytest.MonkeyPatch) -> None:
    threat, size = sp.Linf(0.2), 32
    model, sizes, plenty = mlp(SHAPE, dtype=torch.float32), [], True
    attacks = [replace(attack, steps=20) for attack in pgds(threat)]
    most: dict[int, int] = {}
    work, climb = Stream._work, Pool._climb

    def climbed(self: Pool) -> Any:
        assert self.active is not None
        if plenty:
            sizes.append(len(self.active))
        return climb(self)

    def watched(self: Stream) -> bool:
        nonlocal plenty
        count = self.source.total or 0
        plenty = len(self.records) < count
        more = work(self)
        most[count] = max(most.get(count, 0), live(self))
        return more

    monkeypatch.setattr(Stream, "_work", watched)
    monkeypatch.setattr(Pool, "_climb", climbed)
    for count in (500, 2000):
        sizes.clear()
        data = labelled(model, count, torch.float32)
        result = sp.evaluate(model, data, threat, attacks=attacks, batch_size=size)
    assert result.robust_accuracy.value < 0.1  # undefended
    assert len(sizes) > 30
    assert np.mean(sizes) > 0.85 * size
    assert max(sizes) <= size
    assert most[2000] <= 1.5 * most[500] <= 1.5 * 4 * len(attacks) * size


def test_a_hard_cascade_holds_few_samples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody falls: every sample goes the whole way, and no queue may run full."""
    threat, size, model = sp.Linf(1e-6), 8, linear(SHAPE, 4)
    attacks, most = [sp.PGD(threat, steps=steps) for steps in (1, 5, 2, 3)], 0
    step = OwnStage.step

    def watched(self: OwnStage) -> Any:
        nonlocal most
        done = step(self)
        most = max(most, len(self.pool) + (0 if self.queue is None else len(self.queue)))
        return done

    monkeypatch.setattr(OwnStage, "step", watched)
    result = sp.evaluate(model, labelled(model, 400), threat, attacks=attacks, batch_size=size)
    assert result.robust_accuracy.count == 360
    assert most <= 4 * size


def test_progress_only_grows_and_ends_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr("sparring.evaluation.tally.time.monotonic", lambda: float(next(clock)))
    told: list[Progress] = []
    model = mlp(SHAPE)
    result = sp.evaluate(model, labelled(model, 200), sp.Linf(EPS), batch_size=16, progress=told.append)
    assert len(told) > 20
    for name in ("done", "met", "correct", "fooled", "forwards", "backwards", "seconds"):
        values = [getattr(now, name) for now in told]
        assert values == sorted(values)
    last = told[-1]
    assert last.done == last.total == last.met == 200
    assert last.correct == result.clean_accuracy.count
    assert last.robust_accuracy == result.robust_accuracy
    assert any(now.fooled > 0 and now.done < 200 for now in told)  # what falls is told before the end
    passes = result.document["passes"]
    assert last.backwards == result.backwards - passes["checkup_backwards"]  # which comes last
    assert all(now.done <= now.met <= 200 for now in told)


def test_time_limit_ends_with_what_is_known() -> None:
    model = mlp(SHAPE)
    data = labelled(model, 100)
    result = sp.evaluate(model, data, sp.Linf(EPS), batch_size=16, time_limit=1e-9)
    assert not result.finished
    assert len(result.index) == 16
    assert "time-limit" in [warning.code for warning in result.warnings]
    assert result.robust_accuracy.count == result.clean_accuracy.count  # on their way: not fooled
    assert result.unfinished == result.clean_accuracy.count
    with pytest.raises(ValueError, match="time_limit=0"):
        sp.evaluate(model, data, sp.Linf(EPS), time_limit=0)
