"""`straight_through`: forward as it is, backward as if it were something smooth; what it wins on a quantised network."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from networks import inputs, mlp


def quantise(x: Tensor) -> Tensor:
    return (x * 7).round() / 7


def jpeg(x: Tensor) -> Tensor:
    """As people write it: through numpy and PIL, sample by sample; x (B, 3, H, W) in [0, 1]."""
    out = []
    for image in x:
        file = io.BytesIO()
        array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(array).save(file, "jpeg", quality=50)
        out.append(torch.from_numpy(np.asarray(Image.open(file), dtype=np.float64) / 255).permute(2, 0, 1))
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forward_is_the_function_and_backward_the_identity(dtype: torch.dtype) -> None:
    x = torch.rand(3, 5, 4).to(dtype).requires_grad_()
    weight = torch.randn(3, 5, 4).to(dtype)
    out = sp.straight_through(quantise)(x)
    assert out.dtype == dtype
    assert torch.equal(out, quantise(x.detach())), "bit for bit, in half precision too"
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(gradient, weight)


def test_backward_is_the_stand_in_at_the_same_point() -> None:
    x = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    soft = sp.straight_through(lambda x: (x > 0.5).double(), backward=lambda x: (10 * x - 5).sigmoid())
    weight = torch.randn(4, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((soft(x) * weight).sum(), x)
    s = (10 * x - 5).sigmoid()
    assert torch.allclose(gradient, weight * 10 * s * (1 - s), rtol=1e-12)


def test_second_derivatives_are_those_of_the_path_back() -> None:
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    plain = sp.straight_through(quantise)(x).pow(3).sum()
    (first,) = torch.autograd.grad(plain, x, create_graph=True)
    assert torch.allclose(first, 3 * quantise(x) ** 2)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, 6 * quantise(x)), "the identity's gradient goes back through the value again"
    curved = sp.straight_through(quantise, backward=lambda x: x**2)(x).sum()
    (first,) = torch.autograd.grad(curved, x, create_graph=True)
    assert torch.allclose(torch.autograd.grad(first.sum(), x)[0], torch.full_like(x, 2))


def test_under_functorch() -> None:
    x = torch.rand(5, 3, dtype=torch.float64)
    step = sp.straight_through(quantise)
    gradients = torch.vmap(torch.func.grad(lambda row: (step(row) ** 2).sum()))(x)
    assert torch.allclose(gradients, 2 * quantise(x))


def test_another_shape_needs_a_stand_in() -> None:
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)

    def thermometer(x: Tensor) -> Tensor:
        return (x[..., None] > levels).double().flatten(1)

    x = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"returned shape \(2, 12\), its input has \(2, 4\): give as `backward`"):
        sp.straight_through(thermometer)(x)
    soft = sp.straight_through(thermometer, lambda x: (4 * (x[..., None] - levels)).sigmoid().flatten(1))
    assert torch.equal(soft(x), thermometer(x))
    assert bool((torch.autograd.grad(soft(x).sum(), x)[0] > 0).all())
    with pytest.raises(ValueError, match=r"`backward` returned \(2, 4\)"):
        sp.straight_through(thermometer, lambda x: 2 * x)(x)


def test_what_is_no_step_is_said_so() -> None:
    with pytest.raises(TypeError, match="returned ndarray, expected a tensor"):
        sp.straight_through(lambda x: x.numpy())(torch.rand(1, 2))
    with pytest.raises(TypeError, match=r"straight_through\(function=3\): expected a function"):
        sp.straight_through(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backward=3"):
        sp.straight_through(quantise, 3)  # type: ignore[arg-type]


def test_pgd_is_blind_to_quantisation_until_it_is_straightened() -> None:
    """The gradient through a rounding is zero: PGD walks at random. Straightened, it fools what it fools without rounding."""
    x, _ = inputs(100, (1, 6, 6), seed=1)
    net = mlp((1, 6, 6), seed=2)
    blind = nn.Sequential(Quantised(), net)
    seeing = nn.Sequential(sp.straight_through(quantise), net)
    y = blind(x).argmax(1)
    threat, settings = sp.Linf(0.1), {"steps": 10, "random_start": False}
    found = sp.PGD(threat, **settings)(blind, x, y)
    assert bool((found.zero_gradients == 10).all())
    straight = sp.PGD(threat, **settings)(seeing, x, y)
    assert not bool(straight.zero_gradients.any())
    undefended = sp.PGD(threat, **settings)(net, x, net(x).argmax(1))
    assert torch.equal(blind(straight.x).argmax(1), straight.prediction), "the answers are those of the model as it was"
    fooled, blindly, bare = (int(a.success.sum()) for a in (straight, found, undefended))
    assert bare > 50
    assert fooled >= 0.95 * bare
    assert blindly < 0.6 * fooled, f"{blindly} of {fooled}"


class Quantised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return quantise(x)


def test_jpeg_through_numpy() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 144, 3)).double()
    x = torch.rand(20, 3, 16, 16, dtype=torch.float64)
    model = nn.Sequential(sp.straight_through(jpeg), net)
    y = model(x).argmax(1)
    found = sp.PGD(sp.Linf(0.12), steps=10)(model, x, y)
    assert int(found.success.sum()) >= 15
    result = sp.evaluate(model, (x, y), sp.Linf(0.12), attacks=sp.PGD(sp.Linf(0.12), steps=10))
    assert result.robust_accuracy.count <= 5


def test_a_module_inside_is_borrowed_like_any_other() -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.9)

        def forward(self, x: Tensor) -> Tensor:
            return quantise(self.drop(x))

    inner = Drops()
    closure = sp.straight_through(lambda x: inner(x))
    x, _ = inputs(30, (6,), seed=1)
    net = mlp((6,), seed=0)
    for step in (closure, sp.straight_through(inner)):
        inner.train()
        y = net(quantise(x)).argmax(1)
        found = sp.FGSM(sp.Linf(1e-9))(nn.Sequential(step, net), x, y)
        assert not bool(found.success.any()), "in evaluation mode nothing is dropped"
        assert inner.drop.training, "and the mode is put back"
