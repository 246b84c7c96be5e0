"""Compiled models and models in channels_last: the verdicts of the plain model, with few graphs, and exact counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import SHAPE, Counting, convolutional, labelled, mlp
from sparring.borrow import borrow
from sparring.cli.evaluate import EvaluateSettings, _faster

BATCH = 16
THREAT = sp.Linf(0.05)
L2 = sp.L2(0.3)
ATTACKS = [
    sp.FGSM(THREAT),
    sp.PGD(THREAT, steps=4, restarts=2),
    sp.APGD(THREAT, steps=6),
    sp.MarginAscent(THREAT, steps=4),
    sp.FAB(THREAT, steps=3),
    sp.Square(THREAT, queries=12),
    sp.DeepFool(L2, steps=3),
    sp.CarliniWagner(L2, steps=6, search_steps=2),
    sp.DDN(L2, steps=4),
    sp.FMN(L2, steps=4),
    sp.HopSkipJump(L2, queries=60),
    sp.OptimizerAttack(THREAT, steps=4),
]


class Shapes:
    """A backend that runs what it gets as it is, and notes the batch size of each graph."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        self.sizes += [len(part) for part in inputs if isinstance(part, Tensor) and part.shape[1:] == SHAPE]
        forward: Callable[..., Any] = graph.forward
        return forward


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return convolutional()


@pytest.fixture(scope="module")
def compiled(plain: nn.Module) -> Any:
    return torch.compile(plain, backend="aot_eager", dynamic=False)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_finds_the_same(attack: Any, plain: nn.Module, compiled: Any) -> None:
    x, y = labelled(plain, 9)
    expected, found = attack(plain, x, y), attack(compiled, x, y)
    assert torch.equal(found.success, expected.success)
    assert (found.forwards, found.backwards) == (expected.forwards, expected.backwards)
    assert torch.allclose(found.x, expected.x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attacks", ["adaptive", [sp.PGD(THREAT, steps=5, restarts=2), sp.APGD(THREAT, steps=5)]])
def test_an_evaluation_comes_to_the_same_with_a_graph_for_each_of_three_sizes(attacks: Any, plain: nn.Module) -> None:
    x, y = labelled(plain, 40)
    threat = sp.Linf(0.02)
    attacks = attacks if attacks == "adaptive" else [sp.PGD(threat, steps=5, restarts=2), sp.APGD(threat, steps=5)]
    settings: dict[str, Any] = {"attacks": attacks, "batch_size": BATCH, "checkup": False}
    if attacks == "adaptive":
        x, y = x[:12], y[:12]
    expected, backend = sp.evaluate(plain, (x, y), threat, **settings), Shapes()
    found = sp.evaluate(torch.compile(plain, backend=backend, dynamic=False), (x, y), threat, **settings)
    assert list(found.samples()) == list(expected.samples())
    assert found.document["passes"] == expected.document["passes"]
    assert found.document["identity"] == expected.document["identity"]
    assert found.document["environment"]["compiled"]
    assert not expected.document["environment"]["compiled"]
    assert set(backend.sizes) <= {BATCH, BATCH // 4, BATCH // 16}
    assert len(backend.sizes) <= 6  # with a graph for gradients and without


def test_without_fixed_sizes_there_would_be_more_graphs(plain: nn.Module) -> None:
    backend = Shapes()
    compiled = torch.compile(plain.eval(), backend=backend, dynamic=False)
    with borrow(compiled, batch=BATCH) as model:
        for count in range(1, BATCH + 1):
            x = torch.rand(count, *SHAPE, dtype=torch.float64)
            assert torch.allclose(model.look(x), plain(x), rtol=0, atol=1e-12)
        assert model.forwards == sum(range(1, BATCH + 1))  # what fills a batch up is no pass
    assert backend.sizes == [1, 4, 16]


def test_strides_make_no_graphs(plain: nn.Module) -> None:
    backend = Shapes()
    with borrow(torch.compile(plain, backend=backend, dynamic=False), batch=4) as model:
        x = torch.rand(4, *SHAPE, dtype=torch.float64)
        model.look(x)
        model.look(x.to(memory_format=torch.channels_last))
        model.look(x.transpose(2, 3).contiguous().transpose(2, 3))
    assert backend.sizes == [4]


def compiled_in_place() -> nn.Module:
    model = convolutional()
    model.compile(backend="eager", dynamic=False)
    return model


FORMS: dict[str, Callable[[], Any]] = {
    "in place": compiled_in_place,
    "a part": lambda: sp.normalized(torch.compile(convolutional(), backend="eager", dynamic=False), 0.0, 1.0),
    "a function": lambda: torch.compile(convolutional().forward, backend="eager", dynamic=False),
    "a function held": lambda: sp.normalized(
        torch.compile(convolutional().forward, backend="eager", dynamic=False), 0.0, 1.0
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_way_to_compile_is_seen(form: str, plain: nn.Module) -> None:
    x, y = labelled(plain, 6)
    attack = sp.PGD(THREAT, steps=3)
    found = attack(FORMS[form](), x, y)
    assert torch.allclose(found.x, attack(plain, x, y).x, rtol=0, atol=1e-10)
    with borrow(FORMS[form]()) as model:
        assert model.layout.compiled


def test_other_inputs_are_filled_up_too() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, scale: Tensor) -> Tensor:
            return torch.stack([image.flatten(1).sum(1) * scale, image.flatten(1).mean(1)], 1)

    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    scale = torch.linspace(-1, 1, 5, dtype=torch.float64)
    model, attack = Two(), sp.PGD(THREAT, steps=3, restarts=2, stop_when_fooled=True)
    y = model(x, scale).argmax(1)
    data = {"image": x, "scale": scale}
    expected = attack(sp.attacked_input(model, "image"), data, y)
    found = attack(sp.attacked_input(torch.compile(model, backend="eager", dynamic=False), "image"), data, y)
    assert torch.equal(found.x, expected.x)
    assert found.forwards == expected.forwards


@pytest.mark.parametrize("combine", ["logits", "loss"])
def test_an_ensemble_of_compiled_members(combine: str) -> None:
    members = [convolutional(seed=0), convolutional(seed=1)]
    x, y = labelled(members[0], 7)
    attack = sp.PGD(THREAT, steps=4, restarts=2, stop_when_fooled=True)
    expected = attack(sp.ensemble(members, combine=combine), x, y)
    compiled = [torch.compile(member, backend="eager", dynamic=False) for member in members]
    found = attack(sp.ensemble(compiled, combine=combine), x, y)
    assert torch.allclose(found.x, expected.x, rtol=0, atol=1e-10)
    assert (found.forwards, found.backwards) == (expected.forwards, expected.backwards)


def test_random_numbers_stay_those_of_the_sample(plain: nn.Module) -> None:
    x, y = labelled(plain, 7)
    attack = sp.PGD(THREAT, steps=4, stop_when_fooled=True)

    def random(model: nn.Module) -> nn.Module:
        return sp.expectation(model, samples=3, transform=sp.rotated(20))

    expected = attack(random(plain), x, y)
    found = attack(random(torch.compile(plain, backend="eager", dynamic=False)), x, y)
    assert torch.allclose(found.x, expected.x, rtol=0, atol=1e-10)
    assert found.forwards == expected.forwards


@pytest.mark.parametrize("make", [lambda m: sp.ensemble([m]), lambda m: nn.Sequential(sp.rotated(9), m)])
def test_what_keeps_account_by_sample_is_not_compiled(make: Callable[[nn.Module], nn.Module], plain: nn.Module) -> None:
    x, y = labelled(plain, 4)
    with pytest.raises(ValueError, match=r"^torch.compile round .* compile the model that it holds"):
        sp.FGSM(THREAT)(torch.compile(make(plain), backend="eager"), x, y)


def test_a_foreign_attack_counts_samples_not_rows(plain: nn.Module) -> None:
    def signs(model: Any, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
        return (x + THREAT.eps * gradient.sign()).detach()

    x, y = labelled(plain, 6)
    settings: dict[str, Any] = {"attacks": [signs], "batch_size": BATCH, "checkup": False}
    expected = sp.evaluate(plain, (x, y), THREAT, **settings)
    found = sp.evaluate(torch.compile(plain, backend="eager", dynamic=False), (x, y), THREAT, **settings)
    assert found.document["passes"] == expected.document["passes"]
    assert list(found.samples()) == list(expected.samples())


def test_a_compiler_that_fails_is_told_in_a_line(plain: nn.Module) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such machine\nand a long story")

    x, y = labelled(plain, 4)
    with pytest.raises(ValueError, match=r"^torch.compile fails on this model: .*no such machine; use it uncompiled$"):
        sp.FGSM(THREAT)(torch.compile(plain, backend=broken), x, y)


def test_inputs_of_the_wrong_shape_are_not_laid_to_the_compiler(plain: nn.Module) -> None:
    x, y = labelled(plain, 4)
    with pytest.raises(ValueError, match=r"^the model can't take inputs of shape \(4, 1, 4, 5\).*3 channels") as raised:
        sp.FGSM(THREAT)(torch.compile(plain, backend="eager"), x[:, :1], y)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor() -> None:
    model = mlp(SHAPE, dtype=torch.float32)
    x, y = labelled(model, 24, torch.float32)
    attack = sp.PGD(THREAT, steps=5, stop_when_fooled=True)
    expected, found = attack(model, x, y), attack(torch.compile(model, dynamic=False), x, y)
    assert torch.equal(found.success, expected.success)
    assert found.forwards == expected.forwards
    assert torch.allclose(found.x, expected.x, rtol=0, atol=1e-5)


def test_the_command_line_compiles_and_reorders(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def note(model: nn.Module, **options: Any) -> nn.Module:
        asked.append(options)
        return model

    monkeypatch.setattr(torch, "compile", note)
    chosen = EvaluateSettings(model="m", data="d", compile="reduce-overhead", channels_last=True)
    model = _faster(convolutional(), chosen)
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(TypeError, match=r"--channels-last needs an nn.Module, but m gave a function"):
        _faster(lambda x: x, chosen)


class Seeing(Counting):
    """Notes whether the images that it gets are in channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.is_contiguous(memory_format=torch.channels_last)
        return super().forward(x)


def test_filters_in_channels_last_get_images_in_channels_last(plain: nn.Module) -> None:
    x, y = labelled(plain, 40)
    attacks = [sp.PGD(THREAT, steps=5), sp.Square(THREAT, queries=20)]
    settings: dict[str, Any] = {"attacks": attacks, "batch_size": BATCH, "checkup": False}
    model = Seeing(convolutional().to(memory_format=torch.channels_last))
    expected, found = (sp.evaluate(m, (x, y), THREAT, **settings) for m in (plain, model))
    assert model.last
    assert [s["attack"] for s in found.samples()] == [s["attack"] for s in expected.samples()]
    passes = found.document["passes"]
    assert (passes["forwards"], passes["backwards"]) == (model.forwards, model.backwards)
    assert passes == expected.document["passes"]
    assert found.document["identity"] == sp.evaluate(Seeing(plain), (x, y), THREAT, **settings).document["identity"]


def test_gradients_come_in_the_usual_order(plain: nn.Module) -> None:
    model = convolutional().to(memory_format=torch.channels_last)
    x, _ = labelled(plain, 8)
    with borrow(model) as borrowed, borrow(plain) as usual:
        _, _, gradient = borrowed.probe(x, lambda logits: logits[:, 0])
        _, _, expected = usual.probe(x, lambda logits: logits[:, 0])
    assert gradient.is_contiguous()
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)


def test_feature_vectors_have_no_such_order() -> None:
    model = nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)).double()
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(5, 12, dtype=torch.float64)
    found = sp.PGD(THREAT, steps=3)(model, x, model(x).argmax(1))
    assert found.x.shape == x.shape
