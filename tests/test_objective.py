"""Objectives against their literal formulas in float64, and their gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring import objective as o


def literal(name: str, z: list[float], y: int, target: int | None, clean: list[float]) -> float:
    """One sample, in plain Python."""
    label = y if target is None else target
    total = math.log(math.fsum(math.exp(v - max(z)) for v in z)) + max(z)
    rivals = [v for c, v in enumerate(z) if c != label]
    top = sorted(z, reverse=True)
    if name == "cross-entropy":
        return total - z[y] if target is None else z[target] - total
    if name in ("margin", "soft-margin"):
        return max(rivals) - z[y] if target is None else z[target] - max(rivals)
    if name == "logit-difference":
        return max(rivals) - z[y] if target is None else z[target] - z[y]
    if name == "logit":
        return -z[y] if target is None else z[target]
    if name == "kl":
        base = math.log(math.fsum(math.exp(v - max(clean)) for v in clean)) + max(clean)
        return math.fsum(math.exp(c - base) * ((c - base) - (v - total)) for c, v in zip(clean, z))
    difference = max(rivals) - z[y] if target is None else z[target] - z[y]
    if len(z) == 2:
        return difference
    lower = top[2] if target is None or len(z) == 3 else (top[2] + top[3]) / 2
    return difference / (top[0] - lower)


@st.composite
def logits(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    classes, batch = draw(st.sampled_from([2, 3, 4, 10])), draw(st.sampled_from([1, 4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    z = torch.randn(batch, classes, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 1.0, 8.0]))
    y = torch.randint(0, classes, (batch,), generator=generator)
    targets = (y + 1 + torch.randint(0, classes - 1, (batch,), generator=generator)) % classes
    return z, y, targets, torch.randn(batch, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", list(o.OBJECTIVES))
@given(case=logits())
def test_objective_is_its_formula(name: str, targeted: bool, case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    z, y, targets, clean = case
    if name == "kl" and targeted:
        with pytest.raises(ValueError, match="kl has no targeted form"):
            o.kl(z, y, targets, clean)
        return
    value = o.resolve(name)(z, y, targets if targeted else None, clean)
    expected = [
        literal(name, z[i].tolist(), int(y[i]), int(targets[i]) if targeted else None, clean[i].tolist())
        for i in range(len(z))
    ]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["cross-entropy", "margin", "dlr", "kl", "logit"])
def test_gradient_is_the_derivative(name: str, targeted: bool, classes: int) -> None:
    if name == "kl" and targeted:
        return
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(3, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    clean = torch.randn(3, classes, generator=generator, dtype=torch.float64)
    y = torch.arange(3) % classes
    targets = (y + 1) % classes if targeted else None
    assert torch.autograd.gradcheck(lambda v: o.resolve(name)(v, y, targets, clean), (z,))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_soft_margin_leads_where_cross_entropy_does_and_never_fades(classes: int, targeted: bool) -> None:
    z = 2 * torch.randn(4, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    y = torch.arange(4) % classes
    targets = (y + 1) % classes if targeted else None
    ways = []
    for objective in (o.soft_margin, o.cross_entropy):
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf, y, targets).sum(), leaf)
        ways.append(gradient / gradient.abs().amax(1, keepdim=True))
    torch.testing.assert_close(*ways)
    far = torch.tensor([[9000.0, 0.0, -4000.0]], requires_grad=True)  # cross-entropy has no gradient there
    (gradient,) = torch.autograd.grad(o.soft_margin(far, torch.tensor([0])).sum(), far)
    assert gradient.tolist() == [[-1, 1, 0]]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("gap", [5.0, 17.5, 30.0, 60.0])
def test_cross_entropy_gradient_does_not_vanish_in_float32(gap: float, targeted: bool) -> None:
    row = [gap, 0.3, -1.0, 0.0]
    y, targets = (torch.tensor([1]), torch.tensor([0])) if targeted else (torch.tensor([0]), None)
    narrow = torch.tensor([row], requires_grad=True)
    (ours,) = torch.autograd.grad(o.cross_entropy(narrow, y, targets).sum(), narrow)
    # literal: d/dz of log(Σ exp) − z_label, with 1 − p summed from the other classes
    exps = [math.exp(v - gap) for v in row]
    expected = [e / math.fsum(exps) for e in exps]
    expected[0] = -math.fsum(exps[1:]) / math.fsum(exps)
    sign = -1.0 if targeted else 1.0
    assert bool((ours != 0).all())
    torch.testing.assert_close(ours[0], sign * torch.tensor(expected), rtol=2e-5, atol=0)
    usual = torch.tensor([row], requires_grad=True)
    (vanished,) = torch.autograd.grad(torch.nn.functional.cross_entropy(usual, torch.tensor([0])), usual)
    if gap > 17:
        assert float(vanished[0, 0]) == 0.0  # the trap that the form above avoids


@pytest.mark.parametrize("name", ["cross-entropy", "margin", "dlr", "logit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor([[60000.0, 3.0, -60000.0, 1.0], [0.5, 0.25, -1.0, 2.0]]).clamp(-3e4, 3e4).to(dtype)
    y = torch.tensor([0, 1])
    value = o.resolve(name)(z, y, None, None)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, o.resolve(name)(z.double(), y, None, None).float())


def test_dlr_does_not_change_with_shift_and_scale_and_survives_a_tie_of_the_top() -> None:
    z = torch.randn(5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, targets = torch.arange(5), torch.arange(5) + 1
    for t in (None, targets):
        torch.testing.assert_close(o.dlr(z * 7 + 3, y, t), o.dlr(z, y, t), rtol=1e-9, atol=1e-9)
    flat = torch.zeros(1, 5, requires_grad=True)
    value = o.dlr(flat, torch.tensor([2]))
    (gradient,) = torch.autograd.grad(value.sum(), flat)
    assert value.tolist() == [0.0]
    assert bool(gradient.isfinite().all())


def test_nothing_that_is_not_finite_counts_as_fooled() -> None:
    nan, inf = math.nan, math.inf
    z = torch.tensor([[nan, nan, nan], [1.0, nan, 0.0], [0.0, inf, 1.0], [-inf, -inf, -inf], [-inf, 2.0, 1.0]])
    prediction = o.predict(z)
    assert prediction.tolist() == [-1, -1, -1, -1, 1]
    y = torch.tensor([1, 1, 0, 1, 0])
    assert o.fooled(prediction, y).tolist() == [False, False, False, False, True]
    assert o.fooled(prediction, y, torch.tensor([-1, 1, 1, 0, 1])).tolist() == [False, False, False, False, True]


def test_a_tie_is_decided_by_the_prediction_not_by_the_margin() -> None:
    z = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    y = torch.tensor([0, 1])
    assert o.margin(z, y).tolist() == [0.0, 0.0]
    assert o.fooled(o.predict(z), y).tolist() == [False, True]  # exactly what argmax says
    assert torch.equal(o.predict(z), z.argmax(1))


def test_unknown_objective_and_missing_reference_get_one_line() -> None:
    with pytest.raises(
        ValueError,
        match=r"objective='ce': expected one of cross-entropy, margin, soft-margin, logit-diff.*, dlr, kl, logit",
    ):
        o.resolve("ce")
    with pytest.raises(ValueError, match=r"kl needs the clean logits: pass reference=model\(x\)"):
        o.kl(torch.zeros(1, 2), torch.tensor([0]))
