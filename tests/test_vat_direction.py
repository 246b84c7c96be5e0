"""`virtual_perturbation`: the dominant eigenvector of the divergence's Hessian, at any precision, and what it leaves alone."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import data
from sparring.experiments import networks, power
from sparring.noise import Noise
from sparring.training.virtual import unit


def smooth(seed: int = 0, inputs: int = 6, classes: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, classes)).to(dtype).eval()


def points(count: int, inputs: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hessians(model: nn.Module, x: Tensor) -> Tensor:
    """(B, n, n) of KL(p(x) ‖ p(x + r)) at r = 0, formed by torch."""

    def far(r: Tensor, at: Tensor) -> Tensor:
        p, q = model(at[None]).log_softmax(1), model((at + r)[None]).log_softmax(1)
        return (p.detach().exp() * (p.detach() - q)).sum()

    return torch.stack(
        [torch.autograd.functional.hessian(lambda r, at=at: far(r, at), torch.zeros_like(at)) for at in x]
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())


def test_on_a_linear_model_it_is_the_dominant_eigenvector_of_the_known_hessian() -> None:
    """Logits W·x: H = Wᵀ (diag p − p pᵀ) W."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False).double()
    x = points(7, 5)
    p = model(x).softmax(1).detach()
    w = model.weight.detach()
    h = w.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ w
    values, vectors = torch.linalg.eigh(h)
    for options in ({}, {"exact": True}, {"xi": 1e-3}):
        r = sp.virtual_perturbation(model, x, 0.3, iterations=60, **options)
        assert (cosine(r, vectors[:, :, -1]).abs() > 0.999).all()
        torch.testing.assert_close(r.norm(dim=1), torch.full((7,), 0.3, dtype=torch.float64))
        steepest = torch.einsum("bi,bij,bj->b", r, h, r) / 0.3**2
        torch.testing.assert_close(steepest, values[:, -1], rtol=1e-3, atol=0.0)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=6, deadline=None)
def test_on_a_smooth_network_too(seed: int, classes: int, count: int) -> None:
    model, x = smooth(seed, classes=classes), points(count, seed=seed)
    values, vectors = torch.linalg.eigh(hessians(model, x))
    apart = values[:, -2] < 0.8 * values[:, -1]  # where two eigenvalues are nearly equal there is no one direction
    r = sp.virtual_perturbation(model, x, 1.0, iterations=50, seed=seed)
    assert (cosine(r, vectors[:, :, -1]).abs()[apart] > 0.999).all()


@pytest.mark.parametrize("xi", [1e-6, 1e-2, 0.5])
def test_one_iteration_is_the_papers_formula(xi: float) -> None:
    """g = ∇_r KL(p(x) ‖ p(x + r)) at r = ξ·d, r = eps · g / ‖g‖, written out for each sample, in float64."""
    model, x = smooth(), points(5)
    d = Noise(3, torch.arange(5)).normal((6,), "virtual").double()
    wanted = []
    for at, direction in zip(x, d):
        r = (xi * direction / direction.norm()).requires_grad_(True)
        p, q = model(at).softmax(0).detach(), model(at + r).softmax(0)
        (g,) = torch.autograd.grad((p * (p / q).log()).sum(), r)
        wanted.append(2.0 * g / g.norm())
    r = sp.virtual_perturbation(model, x, 2.0, xi, seed=3)
    torch.testing.assert_close(
        r, torch.stack(wanted), rtol=1e-7 if xi > 1e-5 else 1e-4, atol=1e-9 if xi > 1e-5 else 1e-4
    )


def test_the_exact_product_is_the_hessians() -> None:
    model, x = smooth(), points(4)
    d = Noise(0, torch.arange(4)).normal((6,), "virtual").double()
    product = torch.einsum("bij,bj->bi", hessians(model, x), d / d.norm(dim=1, keepdim=True))
    r = sp.virtual_perturbation(model, x, 1.0, exact=True)
    torch.testing.assert_close(r, product / product.norm(dim=1, keepdim=True), rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A network that is sure of some images, and images."""
    torch.manual_seed(0)
    model = networks.zoo.build("small-cnn")
    x, y = data.open("fashion-mnist:bundled", split="train").tensors(1000)
    sp.fit(model, (x, y), sp.Standard(), epochs=3, optimizer="adam", lr=2e-3, validation=False)
    return model.eval(), data.open("fashion-mnist:bundled").tensors(64)[0]


def test_rounding_does_not_eat_the_finite_difference_on_real_images(trained: tuple[nn.Module, Tensor]) -> None:
    model, x = trained
    exact = sp.virtual_perturbation(model, x, 1.0, exact=True)
    found = cosine(sp.virtual_perturbation(model, x, 1.0), exact)
    assert found.median() > 0.99999
    assert found.min() > 0.995, "also where the network is sure, and p and q differ in their last digits"
    eaten = cosine(sp.virtual_perturbation(model, x, 1.0, xi=1e-6), exact)
    assert eaten.median() < 0.7, "the paper's ξ is lost in float32: this test could not see it otherwise"


def test_in_half_precision(trained: tuple[nn.Module, Tensor]) -> None:
    model, x = trained
    exact = sp.virtual_perturbation(model, x, 1.0, exact=True)
    for half, limit in ((torch.bfloat16, 0.9), (torch.float16, 0.99)):
        low = copy.deepcopy(model).to(half)
        r = sp.virtual_perturbation(low, x.to(half), 1.0)
        assert r.dtype == torch.float32
        torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.ones(64))
        assert cosine(r, exact).median() > limit
        assert cosine(sp.virtual_perturbation(low, x.to(half), 1.0, xi=1e-3), exact).median() < 0.7
    _, _, factor = power.dominant(model, x)
    (first,) = power.directions(model, x, 1, 0)[1:]
    caught = (factor @ first[:, :, None]).square().sum((1, 2)) / torch.linalg.matrix_norm(factor, 2).square()
    assert caught.median() > 0.8, "one iteration nearly suffices"


class Answering(nn.Module):
    """Computes in one precision and answers in float32, as mixed precision's wrappers make a network do."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype) if self.dtype is not None else contextlib.nullcontext():
            logits: Tensor = self.model(x)
        return logits.float()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_in_half_precision_with_answers_in_float32(trained: tuple[nn.Module, Tensor], half: torch.dtype) -> None:
    model, x = trained
    exact = sp.virtual_perturbation(model, x, 1.0, exact=True)
    limit = 0.9 if half == torch.bfloat16 else 0.99
    assert cosine(sp.virtual_perturbation(Answering(model, half), x, 1.0), exact).median() > limit
    single = 2**-11.5 * float(x.flatten(1).norm(dim=1).median())  # √u · ‖x‖ of float32
    assert cosine(sp.virtual_perturbation(Answering(model, half), x, 1.0, xi=single), exact).median() < 0.7
    full = sp.virtual_perturbation(Answering(model, None), x, 1.0)
    torch.testing.assert_close(full, sp.virtual_perturbation(model, x, 1.0))
    assert not any(module._forward_hooks for module in model.modules())


class OnCuda(nn.Parameter):
    """Says that it is where cuDNN computes."""

    is_cuda = True


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.out = nn.LSTM(8, 32, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(20 * self.lstm(x)[0][:, -1])
        return logits


@pytest.mark.parametrize("cuda", [False, True])
def test_dropout_between_recurrent_layers_is_the_same_in_both_terms(cuda: bool) -> None:
    """The divergence between two points that hardly differ is none. cuDNN can't draw a mask again: there both have none."""
    model = Recurrent()
    if cuda:
        model.lstm.register_parameter("bias_ih_l0", OnCuda(model.lstm.bias_ih_l0.detach()))
    x = torch.randn(16, 5, 8, generator=torch.Generator().manual_seed(1))
    smoothness = next(iter(sp.VAT(1e-6)(model, sp.Batch(x, torch.zeros(16, dtype=torch.long)))))
    assert smoothness.value.item() == pytest.approx(0.0, abs=1e-6)
    assert model.lstm.dropout == 0.5


class Attending(nn.Module):
    """Its attention's fast kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts, self.out = nn.Linear(8, 3 * 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x).view(len(x), -1, 2, 12).transpose(1, 2).chunk(3, -1)
        seen: Tensor = nn.functional.scaled_dot_product_attention(q, k, v)
        logits: Tensor = self.out(seen.transpose(1, 2).flatten(2)).mean(1)
        return logits


def test_the_exact_product_of_a_network_with_attention() -> None:
    model, x = Attending(), torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
    exact = sp.virtual_perturbation(model, x, 1.0, exact=True)
    assert cosine(exact, sp.virtual_perturbation(model, x, 1.0)).min() > 0.999


def test_gradient_alignment_of_a_network_with_attention() -> None:
    model, x = Attending(), torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(1))
    (loss,) = sp.GradAlign(sp.Linf(0.1))(model, (x, torch.arange(4) % 3))
    loss.value.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_same_dropout_mask_in_both_terms_and_another_one_in_the_next_call() -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out, self.seen = nn.Dropout(0.5), nn.Linear(40, 3), []

        def forward(self, x: Tensor) -> Tensor:
            kept = self.drop(torch.ones_like(x))
            self.seen.append(kept.clone())
            return self.out(x * kept)

    model, x = Masks(), points(6, 40, dtype=torch.float32)
    torch.manual_seed(0)
    sp.virtual_perturbation(model, x, 1.0, iterations=3)
    assert len(model.seen) == 4
    assert all(torch.equal(mask, model.seen[0]) for mask in model.seen)
    sp.virtual_perturbation(model, x, 1.0)
    assert not torch.equal(model.seen[4], model.seen[0])
    torch.manual_seed(0)
    model(x)
    after = torch.rand(1)
    torch.manual_seed(0)
    sp.virtual_perturbation(model, x, 1.0, iterations=3)
    assert torch.equal(torch.rand(1), after), "the generator is where one forward leaves it"


def test_batch_statistics_are_used_and_the_running_ones_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = points(9, 4)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    gradient = torch.randn_like(model[0].weight)
    model[0].weight.grad = gradient.clone()
    r = sp.virtual_perturbation(model, x, 1.0, 1e-6, seed=2)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert torch.equal(model[0].weight.grad, gradient)
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    assert model[1].training

    def by_hand(x: Tensor) -> Tensor:
        hidden = model[0](x)
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
        return model[3](model[2](hidden * model[1].weight + model[1].bias))

    d = Noise(2, torch.arange(9)).normal((4,), "virtual").double()
    step = (1e-6 * d / d.norm(dim=1, keepdim=True)).requires_grad_(True)
    p, q = by_hand(x).softmax(1).detach(), by_hand(x + step).softmax(1)
    (g,) = torch.autograd.grad((p * (p / q).log()).sum(), step)
    assert (cosine(r, g) > 0.9999).all()
    model[1].eval()  # a frozen layer stays frozen
    other = sp.virtual_perturbation(model, x, 1.0, 1e-6, seed=2)
    assert not torch.allclose(other, r)


def test_a_sample_has_the_same_direction_in_any_batch() -> None:
    """To half of float64's digits: the finite difference magnifies the last ones, in which batches of unlike sizes differ."""
    model, x = smooth(), points(9)
    numbers = torch.tensor([5, 1, 8, 3, 0, 2, 7, 6, 4])
    whole = sp.virtual_perturbation(model, x, 1.0, indices=numbers, seed=4)
    parts = [
        sp.virtual_perturbation(model, x[i], 1.0, indices=numbers[i], seed=4) for i in ([0, 3, 4], [8, 7], [1, 2, 5, 6])
    ]
    torch.testing.assert_close(torch.cat(parts), whole[[0, 3, 4, 8, 7, 1, 2, 5, 6]], rtol=1e-5, atol=1e-8)


def test_where_nothing_changes_the_direction_is_random_and_of_length_eps() -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    for options in ({}, {"exact": True}):
        r = sp.virtual_perturbation(model, torch.zeros(5, 4), 0.7, **options)
        torch.testing.assert_close(r.norm(dim=1), torch.full((5,), 0.7))
        assert r.unique(dim=0).shape[0] == 5


@given(st.floats(-300, 300))
@settings(max_examples=30, deadline=None)
def test_unit_vectors_at_any_size(power_of_ten: float) -> None:
    v = torch.tensor([[3.0, -4.0], [0.0, 0.0], [math.inf, 1.0]], dtype=torch.float64)
    v[0] *= 10**power_of_ten
    found = unit(v, torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(3, 2))
    wanted = torch.tensor([[0.6, -0.8], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eps": 0.0}, r"eps=0.0.*above 0"),
        ({"eps": math.inf}, "eps=inf"),
        ({"eps": 1.0, "xi": -1.0}, r"xi=-1.0.*above 0"),
        ({"eps": 1.0, "iterations": 0}, "iterations=0.*at least 1"),
        ({"eps": 1.0, "x": torch.zeros(2, 6, dtype=torch.long)}, "torch.int64.*floats"),
        ({"eps": 1.0, "x": torch.zeros(2, 5)}, "can't take inputs"),
        ({"eps": True}, "eps=True.*finite number"),
    ],
)
def test_one_clear_line(options: dict[str, object], said: str) -> None:
    arguments = {"x": points(2), **options}
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        sp.virtual_perturbation(smooth(), **arguments)
    assert "\n" not in str(caught.value)


def test_batchnorm_needs_more_than_one_sample() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="batch of one sample"):
        sp.virtual_perturbation(model, torch.zeros(1, 4), 1.0)


def test_a_function_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"model is builtin_function_or_method: expected an nn.Module"):
        sp.virtual_perturbation(torch.sin, torch.zeros(2, 3), 1.0)  # type: ignore[arg-type]
