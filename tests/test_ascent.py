"""The loop: nothing depends on the batch a sample came with, passes are counted exactly, the best iterate is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import RowWise, convolutional, inputs, mlp
from sparring.attacks.inputs import prepare
from sparring.borrow import borrow
from sparring.rows import Rows

ATTACKS: dict[str, Any] = {
    "FGSM": sp.FGSM(sp.Linf(0.1)),
    "RFGSM": sp.RFGSM(sp.Linf(0.1)),
    "IFGSM": sp.IFGSM(sp.L2(0.5)),
    "MIFGSM": sp.MIFGSM(sp.Linf(0.1), steps=5),
    "MIFGSM l2": sp.MIFGSM(sp.L2(0.5), steps=5),
    "PGD linf": sp.PGD(sp.Linf(0.1), steps=5, restarts=2),
    "PGD l2": sp.PGD(sp.L2(0.5), steps=5, restarts=2, schedule="cosine"),
    "PGD l1": sp.PGD(sp.L1(2.0), steps=5, restarts=2),
    "PGD dlr": sp.PGD(sp.L2(0.5), steps=5, objective="dlr"),
    "PGD kl": sp.PGD(sp.L2(0.5), steps=5, objective="kl"),
    "PGD least-likely": sp.PGD(sp.L2(0.5), steps=5, targets="least-likely"),
    "PGD random target": sp.PGD(sp.L2(0.5), steps=5, targets="random", objective="margin"),
    "Adam": sp.OptimizerAttack(sp.L2(0.5), lr=0.05, steps=5, random_start=True, restarts=2),
    "momentum": sp.OptimizerAttack(sp.Linf(0.1), "sgd", lr=0.5, steps=5, options={"momentum": 0.9}),
}


def exact(name: str, stop: bool) -> Any:
    """The attack with an objective of sums and comparisons only.

    exp and log round differently in a kernel's vector part and in its tail, so where in the batch a sample stands shows
    in the last bit of a cross-entropy (and then, like the rounding of a network's matrix products, hardly ever beyond).
    """
    attack = ATTACKS[name]
    objective = "dlr" if attack.objective == "dlr" else "margin"
    return replace(attack, stop_when_fooled=stop, objective=objective)


def through_a_small_pool(
    attack: Any, model: nn.Module, x: Tensor, y: Tensor, capacity: int, seed: int = 0, targets: Any = None
) -> list[Rows]:
    """What a stream does: as many samples at a time as there is room for. One row a sample, in the order of x."""
    done: dict[int, Rows] = {}
    with borrow(model) as borrowed:
        pool = attack.pool(borrowed, seed=seed, capacity=capacity, stop_when_fooled=attack.stop_when_fooled)
        coming = 0
        while coming < len(x) or len(pool):
            some = torch.arange(coming, min(len(x), coming + pool.room))
            if len(some):
                name = attack.targets if targets is None else targets
                rows = prepare(borrowed, attack.threat, x[some], y[some], targets=name, indices=some, seed=seed)
                rows.ticket = some
                pool.add(rows)
                coming += len(some)
            finished = pool.step()
            if finished is not None:
                for i, ticket in enumerate(finished.ticket.tolist()):
                    assert ticket not in done
                    done[ticket] = finished[torch.tensor([i])]
    return [done[i] for i in range(len(x))]


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_float64_results_are_bit_equal_at_any_batch_size_and_order(name: str, stop: bool) -> None:
    model, (x, y) = RowWise((3, 3, 5)), inputs(32, (3, 3, 5), classes=3)
    attack = exact(name, stop)
    whole = attack(model, x, y, seed=5)
    for size in (1, 7, 32):
        order = torch.randperm(32, generator=torch.Generator().manual_seed(size))
        for part in order.split(size)[:4]:
            some = attack(model, x[part], y[part], indices=part, seed=5)
            for field in ("x", "success", "prediction", "objective", "norm", "zero_gradients"):
                assert torch.equal(getattr(some, field), getattr(whole, field)[part]), (field, size)


@pytest.mark.parametrize("name", ATTACKS)
def test_verdicts_of_a_convolutional_network_do_not_depend_on_the_batch(name: str) -> None:
    """Here only the network's own matrix products round differently."""
    model, (x, y) = convolutional(), inputs(12, (3, 4, 5), classes=3)
    whole = ATTACKS[name](model, x, y)
    for part in torch.arange(12).split(5):
        some = ATTACKS[name](model, x[part], y[part], indices=part)
        assert torch.equal(some.prediction, whole.prediction[part])
        torch.testing.assert_close(some.objective, whole.objective[part], rtol=1e-7, atol=1e-9)


def test_the_seed_matters_and_so_do_the_indices() -> None:
    model, (x, y) = mlp((6,)), inputs(2, (6,), classes=4)
    attack = sp.PGD(sp.L2(0.5), steps=1)
    first = attack(model, x, y, seed=1)
    assert torch.equal(attack(model, x, y, seed=1).x, first.x)
    assert not torch.equal(attack(model, x, y, seed=2).x, first.x)
    assert not torch.equal(attack(model, x, y, seed=1, indices=torch.tensor([5, 6])).x, first.x)


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (sp.FGSM(sp.Linf(0.1)), 2, 1),
        (sp.RFGSM(sp.Linf(0.1)), 2, 1),
        (sp.IFGSM(sp.Linf(0.1), steps=7), 8, 7),
        (sp.MIFGSM(sp.Linf(0.1), steps=7), 8, 7),
        (sp.PGD(sp.L2(0.1), steps=7, restarts=3), 24, 21),
        (sp.OptimizerAttack(None, steps=7), 8, 7),
        (sp.FGSM(sp.Linf(0.1), targets="second"), 3, 1),  # one look chooses the target
        (sp.PGD(sp.L2(0.1), steps=7, restarts=3, objective="kl"), 25, 21),
    ],
)
def test_k_steps_cost_k_backwards_and_k_plus_one_forwards(attack: Any, forwards: int, backwards: int) -> None:
    inner, (x, y) = mlp((6,)), inputs(5, (6,), classes=4)
    seen = []

    def model(v: Tensor) -> Tensor:
        seen.append(len(v))
        return inner(v)  # type: ignore[no-any-return]

    found = attack(model, x, y)
    assert (found.forwards, found.backwards) == (5 * forwards, 5 * backwards)
    assert sum(seen) == found.forwards


class Scripted(nn.Module):
    """Predicts class 1 from its n-th look at a sample on; the sample's number is its second entry."""

    def __init__(self, falls: list[int]) -> None:
        super().__init__()
        self.falls, self.looks = falls, [0] * len(falls)

    def forward(self, x: Tensor) -> Tensor:
        lift = []
        for number in x[:, 1].detach().mul(100).round().long().tolist():
            self.looks[number] += 1
            lift.append(10.0 if self.looks[number] >= self.falls[number] else -10.0)
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), torch.tensor(lift, dtype=x.dtype) + x[:, 0]], 1)


def scripted(count: int) -> tuple[Tensor, Tensor, sp.Threat]:
    x = torch.stack([torch.full((count,), 0.5), torch.arange(count) / 100], 1).double()
    return x, torch.zeros(count, dtype=torch.int64), sp.Linf(0.2, mask=torch.tensor([True, False]))


@pytest.mark.parametrize("capacity", [None, 1, 2, 3, 100])
def test_stop_when_fooled_costs_what_was_looked_at(capacity: int | None) -> None:
    steps, restarts = 3, 2
    falls = [1, 2, 4, 5, 8, 9, 3, 1]  # 4 looks a restart: the 4th and 8th are last iterates, the 9th never comes
    x, y, threat = scripted(len(falls))
    attack = sp.PGD(threat, steps=steps, restarts=restarts, stop_when_fooled=True)
    model = Scripted(falls)
    if capacity is None:
        found = attack(model, x, y)
        success, forwards, backwards = found.success.tolist(), found.forwards, found.backwards
    else:
        rows = through_a_small_pool(attack, model, x, y, capacity)
        success = [bool(r.fooled) for r in rows]
        assert [int(r.forwards) for r in rows] == [min(f, 8) for f in falls]
        forwards, backwards = (sum(int(getattr(r, n)) for r in rows) for n in ("forwards", "backwards"))
    assert success == [f <= 8 for f in falls]
    assert model.looks == [min(f, 8) for f in falls]
    assert forwards == sum(model.looks)
    # a look at a last iterate (the 4th and the 8th) has no backward
    assert backwards == sum(f - f // 4 for f in model.looks)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("capacity", [1, 3, 8, 40])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_small_pool_with_refills_gives_the_same(name: str, capacity: int, stop: bool) -> None:
    attack = exact(name, stop)
    model, (x, y) = RowWise((3, 5)), inputs(12, (3, 5), classes=3)
    whole = attack(model, x, y)
    rows = through_a_small_pool(attack, model, x, y, capacity)
    for b, row in enumerate(rows):
        assert torch.equal(row.best[0], whole.x[b])
        assert bool(row.fooled) == bool(whole.success[b])
        assert int(row.prediction) == int(whole.prediction[b])
    assert sum(int(r.forwards) for r in rows) == whole.forwards
    assert sum(int(r.backwards) for r in rows) == whole.backwards


@pytest.mark.parametrize("capacity", [1, 4])
@pytest.mark.parametrize("restarts", [1, 3])
def test_no_batch_is_larger_than_the_capacity(capacity: int, restarts: int) -> None:
    inner, (x, y) = mlp((6,)), inputs(15, (6,), classes=4)
    seen: list[int] = []

    class Spy(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            seen.append(len(v))
            return inner(v)  # type: ignore[no-any-return]

    attack = sp.PGD(sp.Linf(0.05), steps=3, restarts=restarts, stop_when_fooled=True)
    through_a_small_pool(attack, Spy(), x, y, capacity)
    assert max(seen) <= capacity


def test_per_sample_eps_and_masks_through_a_pool() -> None:
    model, (x, y) = RowWise((3, 4), classes=4), inputs(10, (3, 4), classes=4)
    eps = torch.linspace(0.02, 0.3, 10, dtype=torch.float64)
    mask = torch.rand(10, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    whole = sp.PGD(sp.Linf(eps, mask=mask), steps=5, stop_when_fooled=True)(model, x, y)
    assert bool((whole.norm <= eps + 1e-12).all())
    assert torch.equal(whole.x[~mask], x[~mask])
    for b in range(10):
        threat = sp.Linf(float(eps[b]), mask=mask[b])
        one = sp.PGD(threat, steps=5, stop_when_fooled=True)(
            model, x[b : b + 1], y[b : b + 1], indices=torch.tensor([b])
        )
        assert torch.equal(one.x[0], whole.x[b])


class Valley(nn.Module):
    """Logit 1 is highest at 0.6, between the first and the last iterate; class 1 never wins."""

    def forward(self, x: Tensor) -> Tensor:
        z = -10 * (x[:, 0] - 0.6).abs() - 1
        return torch.stack([torch.zeros_like(z), z], 1)


def test_the_best_iterate_is_returned_not_the_last() -> None:
    x, y = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0])
    attack = sp.IFGSM(sp.Linf(0.4), steps=3, step_size=0.09, trace=True, objective="margin")  # 0.5 .59 .68 .59
    found = attack(Valley(), x, y)
    assert float(found.x[0, 0]) == pytest.approx(0.59)
    assert float(found.objective) == pytest.approx(-1.1)
    wide = sp.IFGSM(sp.Linf(0.4), steps=1, step_size=0.3, objective="margin")(Valley(), x, y)
    assert float(wide.x[0, 0]) == 0.5  # one step too far: the start was better


def test_fooling_beats_a_higher_objective() -> None:
    class Trap(nn.Module):
        """Fooled in [0.55, 0.65] only, though class 2's logit grows all the way."""

        def forward(self, x: Tensor) -> Tensor:
            a = x[:, 0]
            fooled = ((a > 0.55) & (a < 0.65)).to(a.dtype)
            return torch.stack([5 + 0 * a, 6 * fooled, 4 * a], 1)

    x, y = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0])
    found = sp.IFGSM(sp.Linf(0.4), steps=4, step_size=0.1, objective=lambda z, *_: z[:, 2])(Trap(), x, y)
    assert bool(found.success)
    assert int(found.prediction) == 1
    assert float(found.x[0, 0]) == pytest.approx(0.6)


def test_what_is_reported_is_true_of_the_example() -> None:
    model, (x, y) = mlp((3, 4)), inputs(16, (3, 4), classes=4)
    for attack in ATTACKS.values():
        if attack.objective == "kl" or attack.targets is not None:
            continue
        found = attack(model, x, y)
        logits = model(found.x).detach()
        assert torch.equal(logits.argmax(1), found.prediction)
        assert torch.equal(found.prediction != y, found.success)
        torch.testing.assert_close(found.norm, attack.threat.size(x, found.x))
        assert bool((found.norm <= attack.threat.eps * (1 + 1e-9)).all())


# --- gradients that would stop an attack without a word ---------------------------------------------------------------


class DeadZone(nn.Module):
    """No gradient until entry 0 has passed 0.52: the attack has to be pushed out."""

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(x[:, 0] - 0.52) * 100 - 1
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("make", [sp.IFGSM, sp.MIFGSM, sp.PGD])
@pytest.mark.parametrize("norm", [sp.Linf, sp.L2, sp.L1])
def test_a_zero_gradient_keeps_the_sample_moving_and_is_counted(make: Any, norm: Any) -> None:
    x, y = torch.full((8, 2), 0.5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    settings = {"random_start": False, "sparsity": 0.5} if make is sp.PGD else {}
    found = make(norm(0.2), steps=20, step_size=0.05, **settings)(DeadZone(), x, y)
    assert bool((found.zero_gradients > 0).all())
    assert int(found.success.sum()) >= 6
    assert bool(found.x.isfinite().all())
    assert not bool(found.broken_gradients.any())


def test_a_saturated_network_is_still_attacked() -> None:
    """Scaled a thousandfold, cross-entropy has no gradient at all; margins do."""
    inner, (x, _) = mlp((12,), dtype=torch.float32), inputs(16, (12,), dtype=torch.float32)
    model = lambda v: 1000 * inner(v)  # noqa: E731
    y = inner(x).argmax(1)
    plain = sp.PGD(sp.Linf(0.3), steps=20)(inner, x, y)
    margins = sp.PGD(sp.Linf(0.3), steps=20, objective="margin")(model, x, y)
    entropy = sp.PGD(sp.Linf(0.3), steps=20)(model, x, y)
    assert int(margins.success.sum()) >= int(plain.success.sum())
    assert bool((entropy.zero_gradients[~entropy.success] > 0).all())  # told, not hidden
    assert not bool((margins.zero_gradients > 0).any())
    assert bool((entropy.norm > 0.1).all() | entropy.success.any())


def test_float32_cross_entropy_at_a_large_margin_is_followed() -> None:
    """Margin 30: the usual formula's gradient is exactly zero at the true logit, and 1e-13 elsewhere."""
    weight = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    for norm, entry in ((sp.Linf, 0.6), (sp.L2, 0.6 / math.sqrt(2)), (sp.L1, 0.3)):
        found = sp.PGD(norm(0.6), steps=10, step_size=1.0, random_start=False, sparsity=0.0)(lambda v: v @ weight, x, y)
        assert not bool(found.zero_gradients.any())
        torch.testing.assert_close(found.x, torch.tensor([[1 - entry, entry]]))


class Broken(nn.Module):
    """The gradient of entry 0 is NaN (0 · inf behind a where), that of entry 1 is sound, and logits are finite."""

    def forward(self, x: Tensor) -> Tensor:
        a = torch.where(x[:, 0] < 2, x[:, 0] * 0, torch.sqrt(x[:, 0] * 0 - 0.0) / 0.0)
        z = a + x[:, 1] - 0.6
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("norm", [sp.Linf, sp.L2, sp.L1])
@pytest.mark.parametrize("make", [sp.FGSM, sp.IFGSM, sp.MIFGSM, sp.PGD, sp.OptimizerAttack])
def test_nan_gradients_are_mended_and_counted(make: Any, norm: Any) -> None:
    x, y = torch.full((3, 2), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    found = make(norm(0.3))(Broken(), x, y)
    assert bool(found.x.isfinite().all())
    assert bool((found.broken_gradients > 0).all())
    assert bool(found.success.all())  # the sound entry alone reaches 0.6


def test_nan_logits_are_no_success_and_do_not_spread() -> None:
    inner, (x, y) = mlp((6,)), inputs(4, (6,), classes=4)
    y = inner(x).argmax(1)

    def only_third(v: Tensor) -> Tensor:
        z = inner(v)
        near = ((v - x[2]).abs().amax(1, keepdim=True)) < 0.06
        return z + torch.where(near, math.nan, 0.0)

    found = sp.PGD(sp.Linf(0.05), steps=5, random_start=False)(only_third, x, y)
    healthy = sp.PGD(sp.Linf(0.05), steps=5, random_start=False)(inner, x, y)
    assert not bool(found.success[2])
    assert int(found.prediction[2]) == -1
    assert bool(found.x.isfinite().all())
    keep = torch.tensor([0, 1, 3])
    assert torch.equal(found.x[keep], healthy.x[keep])
    assert torch.equal(found.success[keep], healthy.success[keep])
