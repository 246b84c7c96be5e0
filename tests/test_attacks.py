"""The attacks against literal implementations, in every form that inputs, labels and targets come in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import convolutional, inputs, mlp
from sparring.objective import cross_entropy, margin


def gradient(model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Of the mean loss over the batch, as a textbook has it."""
    x = x.clone().requires_grad_(True)
    loss = (
        nn.functional.cross_entropy(model(x), y) if targets is None else -nn.functional.cross_entropy(model(x), targets)
    )
    return torch.autograd.grad(loss, x)[0]


def better(model: nn.Module, iterates: list[Tensor], y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Of each sample the iterate that fools, then the one with the highest loss, the earliest of equals."""
    best = iterates[0].clone()
    for b in range(len(y)):
        goal = None if targets is None else targets[b : b + 1]
        keys = []
        for x in iterates:
            z = model(x[b : b + 1]).detach()
            fooled = bool(z.argmax(1) != y[b]) if goal is None else bool(z.argmax(1) == goal)
            keys.append((fooled, float(cross_entropy(z, y[b : b + 1], goal))))
        best[b] = iterates[max(range(len(keys)), key=lambda i, k=keys: (k[i], -i))][b]
    return best


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_its_formula(targeted: bool) -> None:
    model, (x, y) = mlp((3, 4)), inputs(8, (3, 4), classes=4)
    targets = (y + 1) % 4 if targeted else None
    step = (x + 0.07 * gradient(model, x, y, targets).sign()).clamp(0, 1)
    found = sp.FGSM(sp.Linf(0.07))(model, x, y, targets)
    torch.testing.assert_close(found.x, better(model, [x, step], y, targets), rtol=0, atol=1e-15)


@pytest.mark.parametrize("first", [None, 0.02])
def test_rfgsm_is_its_formula(first: float | None) -> None:
    from sparring.noise import Noise

    model, (x, y) = mlp((3, 4)), inputs(8, (3, 4), classes=4)
    eps, alpha = 0.1, 0.05 if first is None else first
    start = (
        x + alpha * Noise(3, torch.arange(8)).sign((3, 4), "sign", torch.zeros(8, dtype=torch.int64), like=x)
    ).clamp(0, 1)
    step = (start + (eps - alpha) * gradient(model, start, y).sign()).clamp(0, 1)
    found = sp.RFGSM(sp.Linf(eps), random_step=first)(model, x, y, seed=3)
    torch.testing.assert_close(found.x, better(model, [start, step], y), rtol=0, atol=1e-12)
    assert bool(((start - x).abs() <= alpha + 1e-12).all())


@pytest.mark.parametrize("decay", [0.0, 1.0, 0.5])
def test_mifgsm_is_its_formula(decay: float) -> None:
    model, (x, y) = mlp((3, 4)), inputs(8, (3, 4), classes=4)
    eps, steps = 0.1, 6
    iterates, velocity = [x], torch.zeros_like(x)
    for _ in range(steps):
        g = gradient(model, iterates[-1], y)
        velocity = decay * velocity + g / g.abs().sum((1, 2), keepdim=True)
        moved = iterates[-1] + eps / steps * velocity.sign()
        iterates.append(torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1))
    found = sp.MIFGSM(sp.Linf(eps), steps=steps, decay=decay)(model, x, y)
    torch.testing.assert_close(found.x, better(model, iterates, y), rtol=0, atol=1e-12)


def test_named_targets_are_never_the_true_class() -> None:
    model, (x, y) = mlp((5,), classes=6), inputs(60, (5,), classes=6)
    z = model(x).detach()
    others = z.scatter(1, y[:, None], -math.inf)
    found = {
        name: sp.FGSM(sp.Linf(0.1), targets=name)(model, x, y).targets for name in ("least-likely", "second", "random")
    }
    for targets in found.values():
        assert targets is not None
        assert bool((targets != y).all())
    assert torch.equal(found["second"], others.argmax(1))  # type: ignore[arg-type]
    assert torch.equal(found["least-likely"], z.scatter(1, y[:, None], math.inf).argmin(1))  # type: ignore[arg-type]
    chosen = ((found["random"] - y) % 6).bincount(minlength=6)  # type: ignore[operator]
    assert chosen[0] == 0
    assert bool((chosen[1:] >= 4).all())


def test_targeted_success_is_to_reach_the_target() -> None:
    model, (x, y) = mlp((5,), seed=2), inputs(20, (5,), classes=4)
    targets = (y + 2) % 4
    found = sp.PGD(sp.Linf(0.5), steps=20)(model, x, y, targets)
    assert torch.equal(found.success, model(found.x).argmax(1) == targets)
    assert int(found.success.sum()) > 0
    assert bool((~found.success & (found.prediction != y)).any())  # wrong, but not where it was sent: no success


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (2, 9), (3, 4, 6), (1, 2, 3, 5)])
@pytest.mark.parametrize("norm", [sp.Linf, sp.L2, sp.L1])
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...], norm: Any) -> None:
    model, (x, y) = mlp(shape, dtype=dtype), inputs(4, shape, classes=4, dtype=dtype)
    before = x.clone(), y.clone()
    eps = 0.2
    for attack in (
        sp.FGSM(norm(eps)),
        sp.PGD(norm(eps), steps=3),
        sp.MIFGSM(norm(eps)),
        sp.OptimizerAttack(norm(eps), steps=3, lr=0.05),
    ):
        found = attack(model, x, y)
        assert found.x.dtype == dtype
        assert found.x.shape == x.shape
        assert bool(found.x.isfinite().all())
        assert float(found.x.min()) >= 0
        assert float(found.x.max()) <= 1
        assert float(found.norm.max()) <= eps * (1 + 1e-5) + 1e-6
        assert float(found.norm.max()) > 0.05
        assert torch.equal(model(found.x).argmax(1), found.prediction)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_memory_layout_does_not_matter() -> None:
    model, (x, y) = convolutional(), inputs(4, (3, 4, 5), classes=3)
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    for norm in (sp.Linf, sp.L2, sp.L1):
        expected = sp.PGD(norm(0.3), steps=4)(model, x, y)
        for other in (x.contiguous(memory_format=torch.channels_last), strided, x.flip(3).flip(3)):
            torch.testing.assert_close(sp.PGD(norm(0.3), steps=4)(model, other, y).x, expected.x)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    model, (x, y) = mlp((5,)), inputs(4, (5,), classes=4)
    expected = sp.PGD(sp.L2(0.3), steps=3)(model, x, y, (y + 1) % 4)
    found = sp.PGD(sp.L2(0.3), steps=3)(model, x, y.to(dtype), ((y + 1) % 4).to(dtype))
    assert torch.equal(found.x, expected.x)
    assert torch.equal(sp.FGSM(sp.L2(0.3))(model, x, y.tolist()).x, sp.FGSM(sp.L2(0.3))(model, x, y).x)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("objective", ["cross-entropy", "margin", "dlr", "logit"])
@pytest.mark.parametrize("targets", [None, "second"])
def test_few_classes(classes: int, objective: str, targets: str | None) -> None:
    model, (x, _) = mlp((9,), classes=classes), inputs(12, (9,))
    y = model(x).argmax(1)
    found = sp.PGD(sp.Linf(0.6), steps=15, objective=objective, targets=targets)(model, x, y)
    assert float(found.success.double().mean()) > (0.2 if objective == "logit" else 0.5)  # a logit alone is no margin


def test_an_empty_batch_gives_an_empty_result() -> None:
    found = sp.PGD(sp.Linf(0.1))(mlp((5,)), torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert len(found) == 0
    assert (found.forwards, found.backwards) == (0, 0)
    assert "0 of 0" in repr(found)


def test_eps_zero_changes_nothing() -> None:
    model, (x, y) = mlp((5,)), inputs(4, (5,), classes=4)
    for norm in (sp.Linf, sp.L2, sp.L1):
        for attack in (sp.FGSM(norm(0)), sp.PGD(norm(0), steps=2), sp.MIFGSM(norm(0))):
            assert torch.equal(attack(model, x, y).x, x)


X, Y = inputs(3, (4,), classes=4)


@pytest.mark.parametrize(
    ("x", "y", "targets", "error", "words"),
    [
        (X * 255, Y, None, ValueError, ["x lies in [0, 255]", "[0, 1]", "sp.normalized(model, mean, std)"]),
        (X - 0.5, Y, None, ValueError, ["outside the box", "sp.normalized(model, mean, std)"]),
        (X.masked_fill(X[1, 2] == X, math.nan), Y, None, ValueError, ["NaN or inf in 1 of 3 samples (first: 1)"]),
        (X.masked_fill(X[2, 2] == X, math.inf), Y, None, ValueError, ["NaN or inf", "first: 2"]),
        ((X * 255).to(torch.uint8), Y, None, TypeError, ["torch.uint8", "expected floats: divide by 255 first"]),
        (X[0], Y[:1], None, ValueError, ["shape (4,)", "x[None]"]),
        (X.numpy(), Y, None, TypeError, ["x is ndarray", "expected a tensor (B, ...)"]),
        (X, Y[:2], None, ValueError, ["y of shape (2,) for 3 samples", "(3,)"]),
        (X, torch.eye(4)[Y], None, ValueError, ["not one-hot", "y.argmax(1)"]),
        (X, Y.double(), None, TypeError, ["y of dtype torch.float64", "y.long()"]),
        (X, Y == 1, None, TypeError, ["y of dtype torch.bool"]),
        (X, Y + 4, None, ValueError, ["y holds classes from", "the model has 4 (0 to 3)", "the data set"]),
        (X, Y - 4, None, ValueError, ["y holds classes from -", "the model has 4 (0 to 3)"]),
        (X, Y, Y + 9, ValueError, ["targets holds classes", "the model has 4"]),
        (X, Y, "likely", ValueError, ["targets='likely'", "least-likely, second, random"]),
        (X, Y, Y[:2], ValueError, ["targets of shape (2,) for 3 samples"]),
    ],
)
def test_bad_inputs_get_one_line(x: Any, y: Any, targets: Any, error: Any, words: list[str]) -> None:
    for attack in (sp.FGSM(sp.Linf(0.1)), sp.PGD(sp.L2(0.1), steps=2, objective="dlr")):
        with pytest.raises(error) as caught:
            attack(mlp((4,)), x, y, targets)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sp.PGD(0.1), "threat=0.1.*expected a threat model such as"),
        (lambda: sp.PGD(sp.Linf(0.1), steps=0), "steps=0.*at least 1"),
        (lambda: sp.PGD(sp.Linf(0.1), steps=2.5), "steps=2.5.*whole number"),
        (lambda: sp.PGD(sp.Linf(0.1), step_size=-1), "step_size=-1.*above 0"),
        (lambda: sp.PGD(sp.Linf(0.1), schedule="linear"), "schedule='linear'.*'constant' or 'cosine'"),
        (lambda: sp.PGD(sp.Linf(0.1), restarts=2, random_start=False), "restarts need random starts"),
        (lambda: sp.PGD(sp.L1(0.1), sparsity=1), "sparsity=1"),
        (lambda: sp.PGD(sp.L0(3)), "PGD has no form for l0"),
        (lambda: sp.RFGSM(sp.L2(3)), "RFGSM has no form for l2: expected linf"),
        (lambda: sp.RFGSM(sp.Linf(0.1), random_step=0.2), "random_step=0.2.*from 0 to eps=0.1"),
        (lambda: sp.MIFGSM(sp.Linf(0.1), decay=-1), "decay=-1"),
        (lambda: sp.FGSM(sp.Linf(0.1), objective="ce"), "objective='ce'"),
        (lambda: sp.FGSM(sp.L2(math.inf)), "finite eps"),
        (lambda: sp.PGD(sp.L2(math.inf)), "finite eps"),
        (lambda: sp.FGSM(sp.Linf(8)), "did you mean 8/255"),
    ],
)
def test_bad_settings_get_one_line(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_objective_of_ones_own_must_give_one_value_a_sample() -> None:
    with pytest.raises(ValueError, match=r"the objective returned shape \(\): expected one value a sample, \(3,\)"):
        sp.FGSM(sp.Linf(0.1), objective=lambda z, y, t, r: margin(z, y).mean())(mlp((4,)), X, Y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up_in_half_precision(dtype: torch.dtype) -> None:
    """A step below the spacing of the dtype must not be lost: the optimum of a linear model is reached all the same."""
    weight = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0)
    net = nn.Linear(12, 2, bias=False).to(dtype)
    with torch.no_grad():
        net.weight.copy_(torch.stack([weight, -weight]).to(dtype))
    x, y, eps = torch.full((3, 12), 0.7, dtype=dtype), torch.zeros(3, dtype=torch.long), 8 / 255
    for attack in (
        sp.PGD(sp.Linf(eps), steps=200, step_size=eps / 100, random_start=False, objective="margin"),
        sp.OptimizerAttack(sp.Linf(eps), lr=eps / 100, steps=200, objective="margin"),
    ):
        adv = attack(net, x, y)
        change = (adv.x.float() - x.float()) * -weight
        assert adv.x.dtype == dtype
        assert bool((change >= 0).all())
        assert change.mean() > eps - 2 * torch.finfo(dtype).eps * 0.8
        assert bool((adv.norm <= eps).all())


@pytest.mark.parametrize("stop", [False, True])
def test_keep_last_returns_the_last_iterate_of_the_best_restart(stop: bool) -> None:
    """Three steps to the right on a hill: the loss is highest after the first, and the walk ends behind it."""

    def hill(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.where(x < 0.3, x - 0.5, -0.2 - (x - 0.3)) + 0.6 * (x > 5)], 1)

    x, y = torch.tensor([[0.2]]), torch.tensor([0])
    threat = sp.Linf(0.5)
    attack = sp.PGD(threat, steps=1, step_size=0.4, random_start=False, objective="margin", stop_when_fooled=stop)
    assert attack(hill, x, y).x.item() == pytest.approx(0.2)
    last = replace(attack, keep="last")(hill, x, y)
    assert last.x.item() == pytest.approx(0.6)
    assert last.objective.item() == pytest.approx(-0.5)
    assert (last.forwards, last.backwards) == (2, 1)
