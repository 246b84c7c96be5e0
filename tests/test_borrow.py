"""A borrowed model comes back exactly as it was, after success and after an exception."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from networks import convolutional, inputs, mlp
from sparring.borrow import borrow, looks_like_probabilities
from sparring.objective import margin


class Drifting(nn.Module):
    """Updates its buffers in evaluation mode too: in place, by a new tensor, and through functional.batch_norm."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(features, dtype=torch.float64), persistent=False)
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("var", torch.ones(features, dtype=torch.float64))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return F.batch_norm(x, self.mean, self.var, training=True) if len(x) > 1 else x


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that may not change, with the identity of what is replaced rather than written."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[f"{name}: mode"] = module.training
        state[f"{name}: dropout"] = getattr(module, "p", None)
        for key, buffer in module._buffers.items():
            state[f"{name}.{key}"] = None if buffer is None else (id(buffer), buffer.clone())
        for key, p in module._parameters.items():
            if p is not None:
                grad = None if p.grad is None else (id(p.grad), p.grad.clone())
                state[f"{name}.{key}"] = (id(p), p.requires_grad, p.detach().clone(), grad)
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(u, v) for u, v in zip(a, b))
    return bool(a == b)


def check_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    assert before.keys() == after.keys()
    assert [name for name in before if not same(before[name], after[name])] == []


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """A tree of modules on (B, 4) features, each with its own mode, frozen parameters and gradients."""
    kind = draw(st.sampled_from(["linear", "norm", "dropout", "drifting", *(["sequential"] if depth else [])]))
    module: nn.Module
    if kind == "sequential":
        module = nn.Sequential(*[draw(trees(depth=depth - 1)) for _ in range(draw(st.integers(1, 3)))])
    else:
        module = {
            "linear": lambda: nn.Linear(4, 4, dtype=torch.float64),
            "norm": lambda: nn.BatchNorm1d(4, dtype=torch.float64),
            "dropout": lambda: nn.Dropout(0.5),
            "drifting": Drifting,
        }[kind]()
    module.training = draw(st.booleans())
    for p in module.parameters(recurse=False):
        p.requires_grad_(draw(st.booleans()))
        if p.requires_grad and draw(st.booleans()):
            p.grad = torch.randn_like(p)
    return module


@given(tree=trees(), failure=st.sampled_from(["none", "in the model", "in the block"]))
def test_borrowing_any_tree_leaves_no_trace(tree: nn.Module, failure: str) -> None:
    model = nn.Sequential(tree, nn.Linear(4, 3, dtype=torch.float64))
    before, (x, _) = snapshot(model), inputs(3, (4,))
    calls = 0

    def objective(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if failure == "in the model" and calls == 2:
            raise RuntimeError("as a model would")
        return logits.sum(1)

    with contextlib.suppress(RuntimeError), borrow(model) as borrowed:
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        for _ in range(2):
            borrowed.probe(x, objective)
        if failure == "in the block":
            raise RuntimeError("as a caller would")
    check_unchanged(before, model)


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_frozen_batch_norm_in_a_training_network(interrupt: bool) -> None:
    model = convolutional().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(torch.rand(4, 3, 6, 5, dtype=torch.float64)).sum().backward()
    before, grad = snapshot(model), model[6].weight.grad
    x, y = inputs(4, (3, 6, 5), classes=3)
    if interrupt:
        with pytest.raises(KeyboardInterrupt), borrow(model):
            raise KeyboardInterrupt
    else:
        sp.PGD(sp.Linf(0.1), steps=3)(model, x, y)
    assert model.training
    assert not model[1].training
    assert model[6].weight.grad is grad
    check_unchanged(before, model)


def test_an_attack_sees_the_network_in_evaluation_mode() -> None:
    model = convolutional().train()
    x, y = inputs(4, (3, 6, 5), classes=3)
    found = sp.PGD(sp.L2(0.5), steps=3)(model, x, y)
    again = sp.PGD(sp.L2(0.5), steps=3)(convolutional().eval(), x, y)
    assert torch.equal(found.x, again.x)


def test_global_state_is_not_touched() -> None:
    model = convolutional()
    x, y = inputs(4, (3, 6, 5), classes=3)
    rng, grad = torch.get_rng_state(), torch.is_grad_enabled()
    sp.PGD(sp.Linf(0.1), steps=2, restarts=2)(model, x, y, targets="random")
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.is_grad_enabled() == grad


def plain(net: nn.Module) -> Any:
    return net


def bound(net: nn.Module) -> Any:
    return net.forward


def wrapped(net: nn.Module) -> Any:
    return sp.normalized(net, 0.5, 0.25)


def wrapped_method(net: nn.Module) -> Any:
    return sp.normalized(net.forward, 0.5, 0.25)


def wrapped_twice(net: nn.Module) -> Any:
    return sp.normalized(sp.normalized(net.forward, 0.5, 0.25), 0.0, 1.0)


def partial(net: nn.Module) -> Any:
    return functools.partial(net)


def partial_method(net: nn.Module) -> Any:
    return sp.normalized(functools.partial(net.forward), 0.5, 0.25)


def function(net: nn.Module) -> Any:
    return lambda x: net(2 * x - 1)


def nested_function(net: nn.Module) -> Any:
    inner = function(net)
    return sp.output(lambda x: {"logits": inner(x)}, "logits")


def object_with_call(net: nn.Module) -> Any:
    class Service:
        def __init__(self) -> None:
            self.network = net

        def __call__(self, x: Tensor) -> Tensor:
            return self.network(x)

    return Service()


AROUND = [plain, bound, wrapped, wrapped_method, wrapped_twice, partial, partial_method]
AROUND += [function, nested_function, object_with_call]


@pytest.mark.parametrize("around", AROUND)
def test_the_modules_behind_a_callable_are_found(around: Any) -> None:
    net = nn.Sequential(convolutional(), Drifting(3)).train()
    net[0][6].weight.requires_grad_(False)
    before, (x, y) = snapshot(net), inputs(2, (3, 4, 5), classes=3)
    model = around(net)
    with borrow(model):
        assert not any(m.training for m in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
    sp.FGSM(sp.Linf(0.1))(model, x, y)
    check_unchanged(before, net)


def test_a_plain_function_has_nothing_to_restore() -> None:
    x, y = inputs(3, (5,))
    found = sp.FGSM(sp.Linf(0.1))(lambda v: torch.stack([v.sum(1), -v.sum(1)], 1), x, y)
    step = torch.where(y == 0, -0.1, 0.1).double().round(decimals=1)[:, None]
    assert torch.equal(found.x, (x + step).clamp(0, 1))


def test_a_shared_module_and_tied_parameters() -> None:
    layer = nn.Linear(4, 4, dtype=torch.float64)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 4, dtype=torch.float64))
    model[3].weight = layer.weight
    layer.weight.grad = torch.ones_like(layer.weight)
    before, (x, y) = snapshot(model), inputs(2, (4,))
    sp.PGD(sp.Linf(0.1), steps=2)(model, x, y)
    check_unchanged(before, model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model() -> None:
    model = torch.jit.trace(convolutional().eval(), torch.rand(2, 3, 4, 5, dtype=torch.float64))
    x, y = inputs(2, (3, 4, 5), classes=3)
    found = sp.PGD(sp.Linf(0.1), steps=3)(model, x, y)
    expected = sp.PGD(sp.Linf(0.1), steps=3)(convolutional(), x, y)
    torch.testing.assert_close(found.x, expected.x)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("make", ["PGD", "OptimizerAttack", "LBFGS"])
def test_attacks_work_whatever_the_gradient_mode(mode: Any, make: str) -> None:
    model = mlp((6,))
    x0, y0 = inputs(3, (6,), classes=4)
    eps, mask = torch.full((3,), 0.2), torch.ones(6, dtype=torch.bool)

    def attack(threat: sp.Threat) -> Any:
        if make == "PGD":
            return sp.PGD(threat, steps=3)
        return sp.OptimizerAttack(threat, optimizer="adam" if make == "OptimizerAttack" else "lbfgs", steps=3)

    expected = attack(sp.Linf(eps, mask=mask))(model, x0, y0, targets=(y0 + 1) % 4)
    with mode():
        x, y, targets = x0.clone(), y0.clone(), (y0 + 1) % 4
        found = attack(sp.Linf(eps.clone(), mask=mask.clone()))(model, x, y, targets=targets, indices=torch.arange(3))
        named = attack(sp.Linf(0.2))(model, x, y, targets="least-likely")
    assert torch.equal(found.x, expected.x)
    assert not found.x.requires_grad
    assert bool(named.x.isfinite().all())


def test_inputs_that_require_gradients_get_none() -> None:
    model, (x, y) = mlp((6,)), inputs(3, (6,), classes=4)
    x.requires_grad_(True)
    found = sp.PGD(sp.Linf(0.1), steps=2)(model, x * 1.0, y)
    direct = sp.PGD(sp.Linf(0.1), steps=2)(model, x, y)
    assert x.grad is None
    assert torch.equal(found.x, direct.x)
    assert not direct.x.requires_grad


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (lambda x: {"logits": x, "loss": x}, TypeError, ["dict with keys ['logits', 'loss']", "sp.output(model, 'logits')"]),
        (lambda x: {"features": x, "logits": x}, TypeError, ["sp.output(model, 'logits') (--output on the command line)"]),
        (lambda x: {"features": x[:, :, None], "answers": x}, TypeError, ["sp.output(model, 'answers')"]),
        (lambda x: (x, x), TypeError, ["returned tuple", "sp.output(model, 0)"]),
        (lambda x: x[:, 0], ValueError, ["shape (3,)", "(3, C)"]),
        (lambda x: x[:1], ValueError, ["shape (1, 6)", "(3, C)"]),
        (lambda x: x[:, :1], ValueError, ["1 logit", "torch.cat([-z, z], 1) / 2"]),
        (lambda x: x.argmax(1, keepdim=True).expand(-1, 4), TypeError, ["torch.int64", "floating-point logits"]),
        (lambda x: x.detach(), ValueError, ["no gradient to its input"]),
        (lambda x: torch.ones(3, 2, requires_grad=True) * 2, ValueError, ["do not depend on the attacked input"]),
    ],
)  # fmt: skip
def test_a_model_that_returns_something_else_gets_one_line(model: Any, error: Any, words: list[str]) -> None:
    x, y = inputs(3, (6,))
    with pytest.raises(error) as caught:
        sp.FGSM(sp.Linf(0.1))(model, x, y)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_number_of_classes_that_changes_is_noticed() -> None:
    x, y = inputs(3, (6,))
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(1)
        return v[:, : 4 if len(calls) == 1 else 5]

    with pytest.raises(ValueError, match=r"returned shape \(3, 5\): expected one row of logits a sample, \(3, 4\)"):
        sp.FGSM(sp.Linf(0.1))(model, x, y)


def test_passes_are_counted_in_samples() -> None:
    model, (x, _) = mlp((6,)), inputs(3, (6,))
    with borrow(model) as borrowed:
        borrowed.look(x)
        logits, value, gradient = borrowed.probe(x, lambda z: margin(z, torch.zeros(3, dtype=torch.int64)))
        assert (borrowed.forwards, borrowed.backwards) == (6, 3)
        assert not logits.requires_grad
        assert not value.requires_grad
        v = x.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(margin(model(v), torch.zeros(3, dtype=torch.int64)).sum(), v)
        assert torch.equal(gradient, expected)


def test_probabilities_are_recognised() -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert looks_like_probabilities(z.softmax(1))
    assert looks_like_probabilities(z.softmax(1).half())
    assert not looks_like_probabilities(z)
    assert not looks_like_probabilities(z.log_softmax(1))
    assert not looks_like_probabilities(torch.full((2, 3), 0.5))


def test_autocast_runs_the_model_in_the_lower_precision_and_ends_there() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return F.linear(x, torch.eye(6)[:4])

    x, y = inputs(3, (6,), dtype=torch.float32)
    found = sp.PGD(sp.Linf(0.1), steps=2, autocast=torch.bfloat16)(Spy(), x, y)
    assert seen == [True] * 3
    assert not torch.is_autocast_enabled("cpu")
    assert found.x.dtype == torch.float32


def test_inputs_that_the_model_was_not_made_for_get_one_line() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    with pytest.raises(
        ValueError, match=r"can't take inputs of shape \(2, 1, 8, 8\), float32 on cpu: .*3 channels"
    ) as caught:
        sp.PGD(sp.Linf(0.1))(net, torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="float64"):
        sp.PGD(sp.Linf(0.1))(net, torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.zeros(2, dtype=torch.long))


class Full(RuntimeError):
    """As libraries make their own kinds of it."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("call model.prepare() first"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes of this type"),
        NotImplementedError("no forward of this shape"),
        Full("expected another shape"),
    ],
    ids=["own", "device", "memory", "missing", "kind"],
)
@pytest.mark.parametrize("make", [lambda: sp.Standard(), lambda: sp.FGSMTraining(sp.Linf(0.1))], ids=["learn", "craft"])
def test_what_is_not_the_inputs_fault_is_raised_as_it_came(make: Any, error: RuntimeError) -> None:
    class Failing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(type(error)) as raised:
        next(make()(Failing(4, 2), (torch.rand(3, 4), torch.zeros(3, dtype=torch.long)))).value  # noqa: B018
    assert raised.value is error
