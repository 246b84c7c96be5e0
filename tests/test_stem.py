"""The quick way to the image gradient of a first convolution gives the gradient, and leaves the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import stem, zoo
from sparring.borrow import borrow
from sparring.stem import FEW, FEWER, Stem, input_gradient, quick_stems


def conv(stride: int = 2, channels: int = 3, **args: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 5, 4, stride, 1, **args)


def takes_the_quick_way(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the convolution's node in the graph is ours."""
    return "Stem" in layer(x).grad_fn.name()


@pytest.fixture(autouse=True)
def _small_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem, "LEAST", 0)


KERNEL, PADDING, REST = st.integers(1, 7), st.integers(0, 3), st.integers(0, 9)


@given(st.integers(1, 4), KERNEL, KERNEL, PADDING, PADDING, REST, REST)
@settings(max_examples=60, deadline=None)
def test_it_is_the_gradient(stride: int, height: int, width: int, top: int, left: int, rows: int, columns: int) -> None:
    """Any kernel, padding and size, also where the last window does not reach the end."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, height, width, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 2, height + rows, width + columns, dtype=torch.float64, generator=generator, requires_grad=True)
    out = F.conv2d(x, weight, stride=stride, padding=(top, left))
    gradient = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    (wanted,) = torch.autograd.grad(out, x, gradient)
    given_back = input_gradient(gradient, weight, (x.shape[2], x.shape[3]), stride, (top, left))
    torch.testing.assert_close(given_back, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_all_derivatives_of_first_and_second_order(stride: int, bias: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=not frozen)
    offset = torch.randn(3, dtype=torch.float64, requires_grad=not frozen) if bias else None

    def run(*parts: Tensor) -> Tensor:
        return Stem.apply(parts[0], parts[1], parts[2] if bias else None, stride, (1, 0))

    parts = (x, weight, offset) if offset is not None else (x, weight)
    torch.testing.assert_close(run(*parts), F.conv2d(x, weight, offset, stride, (1, 0)))
    assert torch.autograd.gradcheck(run, parts, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, parts)


def test_functions_of_functions_see_through_it() -> None:
    """A model may differentiate in its own forward."""
    layer, x = conv(), torch.randn(4, 3, 8, 8, requires_grad=True)

    def energy(one: Tensor) -> Tensor:
        return layer(one[None]).square().sum()

    wanted = torch.func.vmap(torch.func.grad(energy))(x)
    with quick_stems([layer]):
        found = torch.func.vmap(torch.func.grad(energy))(x)
        _, tangent = torch.func.jvp(layer, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tangent, F.conv2d(torch.ones_like(x), layer.weight, None, 2, 1))


@pytest.mark.parametrize(
    ("layer", "quick"),
    [
        (conv(), True),
        (conv(stride=4, bias=False), True),
        (conv(channels=FEW), True),
        (conv(channels=FEW + 1), False),
        (conv(stride=1), True),
        (conv(stride=1, channels=FEWER + 1), False),
        (nn.Conv2d(3, 5, 1), False),
        (nn.Conv2d(3, 5, (1, 3)), False),
        (nn.Conv2d(3, 5, 1, 2), True),
        (conv(dilation=2), False),
        (conv(padding_mode="reflect"), False),
        (nn.Conv2d(3, 6, 4, 2, groups=3), False),
        (nn.Conv2d(3, 5, 4, (2, 1)), False),
        (conv().double(), False),
    ],
)
def test_where_it_is_taken(layer: nn.Conv2d, quick: bool) -> None:
    x = torch.randn(2, layer.in_channels, 12, 12, dtype=layer.weight.dtype, requires_grad=True)
    with quick_stems([layer]):
        assert takes_the_quick_way(layer, x) is quick
        assert layer(input=x).shape == layer(x).shape  # as some call it
    assert "forward" not in vars(layer)
    assert not takes_the_quick_way(layer, x)


def test_not_where_nobody_asks_for_the_image_gradient_or_under_autocast() -> None:
    layer, x = conv(), torch.randn(2, 3, 12, 12)
    with quick_stems([layer]):
        assert not takes_the_quick_way(layer, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x.requires_grad_())
    assert out.dtype == torch.bfloat16
    assert "Stem" not in out.grad_fn.name()


def test_not_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem, "LEAST", 2 * 3 * 12 * 12)
    layer, x = conv(), torch.randn(2, 3, 12, 12, requires_grad=True)
    with quick_stems([layer]):
        assert takes_the_quick_way(layer, x)
        assert not takes_the_quick_way(layer, x[:1])


@pytest.mark.parametrize("name", ["stride", "padding"])
@pytest.mark.parametrize("value", [1, (1,)], ids=str)
def test_settings_that_were_changed_by_hand_to_what_torch_takes(name: str, value: Any) -> None:
    """Who takes a network apart writes `conv.padding = 1`, which torch accepts."""
    layer, x = conv(), torch.randn(2, 3, 12, 12, requires_grad=True)
    setattr(layer, name, value)
    wanted = layer(x)
    with quick_stems([layer]):
        torch.testing.assert_close(layer(x), wanted)


def test_what_is_compiled_inside_a_model_stays_compiled() -> None:
    """A function that a model compiles by itself is traced once with gradients and once without, however often it is attacked."""
    traced = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(channels=1), nn.Linear(5 * 14 * 14, 10)
            self.inner = torch.compile(self.body, backend=self.backend, fullgraph=True)

        def backend(self, graph: Any, inputs: Any) -> Any:
            traced.append(graph)
            return graph.forward

        def body(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).relu().flatten(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model, x, y = Model(), torch.rand(3, 1, 28, 28), torch.arange(3)
    for _ in range(4):
        sp.PGD(sp.Linf(0.1), steps=2)(model, x, y)
    assert 1 <= len(traced) <= 2


def test_a_wrapper_that_the_model_sets_meanwhile_stays() -> None:
    layer, x = conv(), torch.randn(2, 3, 12, 12)
    with quick_stems([layer]):
        inner = layer.forward
        layer.forward = lambda input: 2 * inner(input)  # type: ignore[method-assign]
    torch.testing.assert_close(layer(x), 2 * nn.Conv2d.forward(layer, x))


def test_a_copy_that_is_made_meanwhile_is_a_model_of_its_own(tmp_path: Path) -> None:
    model, x = nn.Sequential(conv(), nn.ReLU()), torch.randn(2, 3, 12, 12, requires_grad=True)
    with quick_stems(model.modules()):
        copied = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copied, loaded):
        with torch.no_grad():
            other[0].weight.zero_()
        torch.testing.assert_close(other[0](x)[:, :, 0, 0], other[0].bias.expand(2, 5))
    assert model[0].weight.any()


def test_a_forward_of_the_users_own_stays() -> None:
    """As libraries that move weights between devices set one."""
    layer = conv()
    layer.forward = lambda x: x.flatten(1)[:, :2]  # type: ignore[method-assign]
    with quick_stems([layer]):
        assert layer(torch.ones(2, 3, 4, 4)).shape == (2, 2)
    assert "forward" in vars(layer)


def test_a_borrowed_model_takes_it_with_its_hooks_and_is_as_it_was_after_an_error() -> None:
    model, seen = zoo.build("small-cnn"), []
    model[0].register_forward_hook(lambda module, given, out: seen.append(out.grad_fn.name()))

    def objective(logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with borrow(model) as borrowed, pytest.raises(KeyboardInterrupt):
        borrowed.probe(torch.rand(3, 1, 28, 28), objective)
    assert seen == ["StemBackward"]
    assert "forward" not in vars(model[0])
    with borrow(model) as borrowed:
        with borrow(model):  # one within the other
            pass
        borrowed.probe(torch.rand(3, 1, 28, 28), lambda logits: logits.sum(1))
    assert seen == ["StemBackward"] * 2
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_a_borrowed_model_are_those_of_the_model(channels_last: bool) -> None:
    model, x = zoo.build("small-cnn", in_channels=3, size=32), torch.rand(5, 3, 32, 32)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    y = torch.arange(5)
    with borrow(model) as borrowed:
        _, _, gradient = borrowed.probe(x, lambda logits: F.cross_entropy(logits, y, reduction="none"))
    point = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", [sp.Free(sp.Linf(0.1), 2), sp.YOPO(sp.Linf(0.1), 2, 2)], ids=["Free", "YOPO"])
def test_strategies_whose_own_backward_reaches_the_image_take_it(strategy: sp.Strategy) -> None:
    """And leave the weights the gradients that they have without it."""
    x, y = torch.rand(4, 1, 28, 28), torch.arange(4)
    found: list[list[Tensor]] = []
    for quick in (True, False):
        model, made = zoo.build("small-cnn"), copy.deepcopy(strategy)
        if not quick:  # a forward of its own is left alone
            model[0].forward = lambda x, conv=model[0]: nn.Conv2d.forward(conv, x)
        nodes: list[str] = []
        model[0].register_forward_hook(lambda module, given, out, nodes=nodes: nodes.append(str(out.grad_fn)))
        loss = next(iter(made(model, sp.Batch(x, y, torch.arange(4)))))
        value = loss.value
        value.backward()
        found.append([p.grad for p in model.parameters()])
        assert ("Stem" in nodes[-1]) is quick
    for ours, wanted in zip(*found, strict=True):
        if wanted is not None:
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_is_left_alone() -> None:
    model = torch.compile(zoo.build("small-cnn"), backend="eager")
    with quick_stems(model.modules()):
        assert not any("forward" in vars(module) for module in model.modules() if type(module) is nn.Conv2d)
