"""YOPO against literal float64 versions of the algorithm, its passes against theory, its collapse against the loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import pages
import sparring as sp
from sparring.noise import Noise
from sparring.training.first import Costate, First, first_layer, with_parameters
from sparring.training.losses import Batch
from sparring.training.yopo import YOPO

EPS, STEP = 0.1, 0.04


class Network(nn.Module):
    """Normalisation, a first layer, and the rest."""

    def __init__(self, first: nn.Module, features: int, norm: bool = False) -> None:
        super().__init__()
        self.first = first
        self.rest = nn.Sequential(
            nn.BatchNorm1d(features) if norm else nn.Identity(), nn.Tanh(), nn.Linear(features, 3)
        )

    def before(self, x: Tensor) -> Tensor:
        return (x - 0.4) / 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(self.before(x)).flatten(1))


def network(kind: str) -> Network:
    torch.manual_seed(0)
    if kind == "affine":
        made = Network(nn.Conv2d(1, 4, 3), 64)
    elif kind == "curved":
        made = Network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ELU()), 64)
    else:
        made = Network(nn.Conv2d(1, 4, 3), 64, norm=True)
    return made.double().train()


def samples(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(count) % 3


def start(threat: sp.Threat, x: Tensor, strategy: YOPO) -> Tensor:
    return threat.random(x, Noise(strategy.draw_seed(Batch(x, x, step=0)), torch.arange(len(x))), "start")


def stepped(threat: sp.Threat, x: Tensor, moved: Tensor, slope: Tensor) -> Tensor:
    """One inner step, literally."""
    if threat.norm == "linf":
        return torch.clamp(torch.clamp(moved + STEP * slope.sign(), x - EPS, x + EPS), 0, 1)
    unit = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    return threat.project(x, moved + STEP * unit)


def refined(model: Network, threat: sp.Threat, x: Tensor, moved: Tensor, p: Tensor, n: int) -> Tensor:
    for _ in range(n):
        at = moved.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad((p * model.first(model.before(at))).sum(), at)
        moved = stepped(threat, x, moved, slope)
    return moved.detach()


def hamiltonian(model: Network, threat: sp.Threat, x: Tensor, y: Tensor, moved: Tensor, m: int, n: int) -> list[Tensor]:
    """Zhang et al. (2019), as it is written: gradients of all parameters after one batch."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    for _ in range(m):
        a = model.first(model.before(moved)).detach().requires_grad_(True)
        loss = F.cross_entropy(model.rest(a.flatten(1)), y)
        rest = [p for name, p in model.named_parameters() if name.startswith("rest")]
        p, *gradients = torch.autograd.grad(loss, [a, *rest])
        for name, gradient in zip([n for n in names if n.startswith("rest")], gradients):
            total[names.index(name)] += gradient
        moved = refined(model, threat, x, moved, p, n)
        own = [q for name, q in model.named_parameters() if name.startswith("first")]
        value = (p * model.first(model.before(moved))).sum()
        for name, gradient in zip([n for n in names if n.startswith("first")], torch.autograd.grad(value, own)):
            total[names.index(name)] += gradient
    return total


def gradient_form(
    model: Network, threat: sp.Threat, x: Tensor, y: Tensor, moved: Tensor, m: int, n: int
) -> list[Tensor]:
    """All weight gradients at the refined points; the first full pass only gives p."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    a = model.first(model.before(moved))
    (p,) = torch.autograd.grad(F.cross_entropy(model.rest(a.flatten(1)), y), a)
    for _ in range(m):
        moved = refined(model, threat, x, moved, p, n)
        a = model.first(model.before(moved))
        p, *gradients = torch.autograd.grad(F.cross_entropy(model.rest(a.flatten(1)), y), [a, *model.parameters()])
        total = [t + g for t, g in zip(total, gradients)]
    return total


def learned(strategy: YOPO, model: nn.Module, x: Tensor, y: Tensor, scale: float = 1.0) -> list[Tensor]:
    """Parameter gradients after one batch in a plain loop that scales its losses."""
    updates = []
    for loss in strategy(model, (x, y)):
        (scale * loss.value).backward()
        updates.append(loss.update)
    assert updates == [False] * (len(updates) - 1) + [True]
    gradients = [p.grad / scale for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return gradients


def same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-10) -> bool:
    return len(a) == len(b) and all(torch.allclose(u, v, rtol=0, atol=tolerance) for u, v in zip(a, b))


LITERAL = {"hamiltonian": hamiltonian, "gradient": gradient_form}


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("kind", ["affine", "curved", "batchnorm"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 2), (2, 4)])
def test_the_gradient_is_the_literal_algorithms(form: str, kind: str, m: int, n: int) -> None:
    threat, (x, y) = sp.Linf(EPS), samples()
    strategy = YOPO(threat, m, n, step_size=STEP, form=form, first="first")
    model = network(kind)
    expected = LITERAL[form](copy.deepcopy(model), threat, x, y, start(threat, x, strategy), m, n)
    assert same(learned(strategy, model, x, y), expected)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("kind", ["affine", "curved"])
def test_under_l2_too(form: str, kind: str) -> None:
    threat, (x, y) = sp.L2(EPS), samples()
    strategy = YOPO(threat, 2, 3, step_size=STEP, form=form, first="first")
    model = network(kind)
    expected = LITERAL[form](copy.deepcopy(model), threat, x, y, start(threat, x, strategy), 2, 3)
    assert same(learned(strategy, model, x, y), expected)


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("kind", ["affine", "curved"])
def test_one_that_keeps_begins_where_the_samples_were(form: str, kind: str) -> None:
    """Two batches of the same samples, the second in another order and with one that is new."""
    threat, (x, y) = sp.Linf(EPS), samples()
    strategy = YOPO(threat, 2, 3, step_size=STEP, form=form, first="first", keep=True)
    model = network(kind)
    shown: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].detach().clone()))

    def batch(order: list[int], step: int) -> list[Tensor]:
        model.zero_grad()
        part = torch.tensor(order)
        for loss in strategy(model, Batch(x[part], y[part], part, step)):
            loss.value.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    batch([3, 1, 4, 0], 0)
    ends = dict(zip([3, 1, 4, 0], shown[-1]))  # the last point that anything ran at
    order = [0, 5, 3, 1]
    fresh = threat.random(x[order], Noise(strategy.draw_seed(Batch(x, x, step=1)), torch.tensor(order)), "start")
    begin = [
        fresh[place] if i not in ends else x[i] + (ends[i] - x[i]).half().double() for place, i in enumerate(order)
    ]
    begun = threat.project(x[order], torch.stack(begin))
    expected = LITERAL[form](copy.deepcopy(model), threat, x[order], y[order], begun, 2, 3)
    assert same(batch(order, 1), expected)
    with pytest.raises(ValueError, match="keeps something for every sample"):
        next(strategy(model, (x, y)))


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("norm", [sp.Linf, sp.L2])
def test_the_collapsed_steps_are_the_loops(form: str, norm: object) -> None:
    x, y = samples()
    results = []
    for collapse in (True, False):
        strategy = YOPO(norm(EPS), 3, 5, step_size=STEP, form=form, collapse=collapse)  # type: ignore[operator]
        results.append(learned(strategy, network("affine"), x, y))
        assert strategy._affine == collapse
    assert same(*results)


def relu(inplace: bool, curved: bool = False) -> nn.Sequential:
    """As in torchvision's VGG: what follows the first layer may write over the first layer's output."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus()) if curved else nn.Conv2d(1, 4, 3)
    shift = nn.Hardtanh(-0.3, 0.6, inplace=inplace)
    return nn.Sequential(stem, shift, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(64, 3)).double()


STRATEGIES = [
    (sp.YOPO, {"form": "hamiltonian"}),
    (sp.YOPO, {"form": "gradient"}),
    (sp.TRADESYOPO, {}),
]


@pytest.mark.parametrize(("strategy", "settings"), STRATEGIES)
@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("curved", [False, True])
def test_a_layer_that_works_in_place_behind_the_first_changes_nothing(
    strategy: type[YOPO], settings: dict[str, str], collapse: bool, curved: bool
) -> None:
    x, y = samples()
    made = (strategy(sp.Linf(EPS), 3, 3, first="0", collapse=collapse, **settings) for _ in range(2))  # type: ignore[arg-type]
    there, apart = (learned(each, relu(inplace, curved), x, y) for each, inplace in zip(made, (True, False)))
    assert max(float(g.abs().max()) for g in apart) > 1e-3
    assert same(there, apart, 1e-14)


@pytest.mark.parametrize(("strategy", "settings"), STRATEGIES)
@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("kind", ["affine", "curved"])
def test_what_is_frozen_is_spared_and_the_rest_learns_the_same(
    strategy: type[YOPO], settings: dict[str, str], collapse: bool, kind: str
) -> None:
    """A first layer alone, and all but the head."""
    x, y = samples()
    whole = network(kind)
    learned(strategy(sp.Linf(EPS), 2, 2, first="first", collapse=collapse, **settings), whole, x, y)  # type: ignore[arg-type]
    for part in ("rest", "rest.2"):
        model = network(kind).requires_grad_(False)
        model.get_submodule(part).requires_grad_(True)
        for loss in strategy(sp.Linf(EPS), 2, 2, first="first", collapse=collapse, **settings)(model, (x, y)):  # type: ignore[arg-type]
            loss.value.backward()
        for there, here in zip(whole.parameters(), model.parameters(), strict=True):
            assert (here.grad is not None) == here.requires_grad
            assert here.grad is None or (here.grad - there.grad).abs().max() < 1e-14  # type: ignore[operator]


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("kind", ["affine", "curved"])
def test_scaled_losses_change_nothing(form: str, kind: str) -> None:
    """A gradient scaler, or one over the batches that are accumulated."""
    x, y = samples()
    plain, scaled = (learned(YOPO(sp.Linf(EPS), 2, 2, form=form), network(kind), x, y, s) for s in (1.0, 1024.0))
    assert same(plain, scaled)


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("kind", ["affine", "curved"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_overflow_of_the_scaler_leaves_points_that_exist(form: str, kind: str, norm: str) -> None:
    x, y = samples()
    model, seen = network(kind).float(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(bool(inputs[0].isfinite().all())))
    for loss in YOPO(sp.Threat(norm, EPS), 3, 2, form=form, first="first")(model, (x.float(), y)):
        (loss.value * 3e38 * 10).backward()
    assert len(seen) > 3
    assert all(seen)


def test_a_small_co_state_survives_half_precision() -> None:
    costate = Costate()
    costate.gradients.append(torch.full((2,), 2.0**-10, dtype=torch.float16))
    assert costate.p(torch.tensor(2.0**16)).tolist() == [2.0**-26] * 2


class Counter:
    """Samples through a module, counted by hooks: forwards, backwards to its output or through it."""

    def __init__(self, module: nn.Module) -> None:
        self.forwards = self.backwards = 0
        module.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.forwards += len(output)
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@pytest.mark.parametrize(("form", "m", "n"), [("hamiltonian", 5, 3), ("gradient", 5, 3), ("hamiltonian", 2, 1)])
@pytest.mark.parametrize("kind", ["affine", "curved"])
def test_passes_are_those_of_theory(form: str, m: int, n: int, kind: str) -> None:
    x, y = samples(4)
    model = network(kind)
    strategy = YOPO(sp.Linf(EPS), m, n, step_size=STEP, form=form, first="first")
    learned(strategy, copy.deepcopy(model), x, y)  # finds the first layer, which looks at it a few times
    strategy._first, passes, copied = None, copy.copy(strategy.passes), copy.deepcopy(model)
    strategy._find(copied, Batch(x, y))
    whole, first = Counter(copied.rest), Counter(copied.first)
    learned(strategy, copied, x, y)
    full = m if form == "hamiltonian" else m + 1
    assert whole.forwards == whole.backwards == 4 * full
    inner = m * n if kind == "curved" else 0
    extra = m if form == "hamiltonian" else 0
    assert first.forwards == 4 * (full + inner + extra)
    assert strategy.passes.forwards - passes.forwards == strategy.passes.backwards - passes.backwards == 4 * full
    assert strategy.passes.first_forwards - passes.first_forwards == 4 * (inner + extra)
    backwards = inner + extra + (m if kind == "affine" and form == "hamiltonian" else 0)
    assert strategy.passes.first_backwards - passes.first_backwards == 4 * backwards
    if kind == "curved":
        assert inner + extra == (m * (n + 1) if form == "hamiltonian" else m * n)  # as the paper counts


def test_the_first_layer_is_found() -> None:
    x, _ = samples()
    model = network("curved")
    assert first_layer(model, x) is model.first[0]
    assert first_layer(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double(), x).in_features == 36
    with pytest.raises(ValueError, match="no module with parameters ran that a gradient"):
        first_layer(nn.Sequential(nn.Flatten()), x)


class Positions(nn.Module):
    """What runs first never sees the image."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.patches = nn.Embedding(9, 4), nn.Conv2d(1, 4, 2, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = self.positions(torch.arange(9))
        return self.head((self.patches(x).flatten(2).mT + places).tanh().mean(1))


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
def test_the_first_layer_is_the_first_that_the_image_meets(form: str) -> None:
    x, y = samples()
    strategy, model = YOPO(sp.Linf(EPS), 2, 2, form=form), Positions().double()
    learned(strategy, model, x, y)
    assert strategy._first is not None
    assert strategy._first.layer is model.patches


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
def test_a_parametrised_layer_is_one_layer(form: str) -> None:
    """weight_norm's own modules run before the layer does; the layer is the first."""
    x, y = samples()
    layer = weight_norm(nn.Linear(36, 8))
    model = nn.Sequential(nn.Flatten(), layer, nn.Tanh(), nn.Linear(8, 3)).double()
    assert with_parameters(model) == [layer, model[3]]
    found = YOPO(sp.Linf(EPS), 2, 2, form=form)
    named = YOPO(sp.Linf(EPS), 2, 2, form=form, first="1")
    assert same(learned(found, model, x, y), learned(named, copy.deepcopy(model), x, y))


def test_a_first_layer_that_answers_with_a_tuple_is_refused_in_a_line() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.LSTM(36, 4)).double()
    with pytest.raises(ValueError, match="LSTM, answers with a tuple, not a tensor: name a layer") as raised:
        learned(YOPO(sp.Linf(EPS)), model, *samples())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["hamiltonian", "gradient"])
@pytest.mark.parametrize("bn", ["auto", "batch", "eval", "train"])
def test_behind_a_norm_of_the_batch_nothing_collapses(form: str, bn: str) -> None:
    """BatchNorm as input normalisation: affine in eval mode, which is not the mode that learns."""
    x, y = samples(8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    made = (
        YOPO(sp.Linf(EPS), 2, 3, form=form, bn=bn, step_size=EPS / 5, collapse=collapse) for collapse in (True, False)
    )
    one, other = (learned(strategy, copy.deepcopy(model), x, y) for strategy in made)
    assert same(one, other)


def test_a_norm_that_is_frozen_later_lets_the_steps_collapse() -> None:
    x, y = samples(8)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    strategy = YOPO(sp.Linf(EPS), 2, 3, first="1")
    state = torch.get_rng_state()
    learned(strategy, model, x, y)
    assert not strategy._affine
    model[0].eval()
    learned(strategy, model, x, y)
    assert strategy._affine
    assert torch.equal(torch.get_rng_state(), state)  # nothing of the training's random numbers was used up


class Clamped(nn.Module):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high) * self.weight


@pytest.mark.parametrize(
    ("layer", "affine"),
    [
        (nn.Conv2d(1, 2, 3), True),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), True),
        (nn.Sequential(nn.Conv2d(1, 16, 3), nn.AvgPool2d(2)), True),
        (nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU()), False),
        (nn.Sequential(nn.Conv2d(1, 16, 3), nn.Dropout(0.5)), False),
        (nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)), False),
        (Clamped(0.0, 1.0), True),  # inside the box nothing is cut
        (Clamped(0.1, 0.9), False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_affine_on_the_box(layer: nn.Module, affine: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer), nn.Flatten()).to(dtype).train()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    assert First(model, model[0]).affine(samples()[0].to(dtype), (0.0, 1.0)) == affine


def test_nothing_but_gradients_and_the_training_forwards_buffers_changes() -> None:
    x, y = samples()
    model = network("batchnorm")
    model.first.bias.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    for loss in YOPO(sp.Linf(EPS), 3, 2, collapse=False)(model, (x, y)):
        loss.value.backward()
    assert int(model.rest[0].num_batches_tracked) == 3  # one for each full pass, none for the first layer's
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert hooks == {name: len(module._forward_hooks) for name, module in model.named_modules()}
    assert not model.first.bias.requires_grad
    assert model.first.bias.grad is None


def test_a_compiled_model_learns_the_same() -> None:
    x, y = samples()
    expected = learned(YOPO(sp.Linf(EPS), 2, 2), network("affine"), x, y)
    compiled = torch.compile(network("affine"), backend="aot_eager")
    assert same(learned(YOPO(sp.Linf(EPS), 2, 2), compiled, x, y), expected)
    ran = torch.compile(network("affine"), backend="aot_eager")
    ran(x)
    assert same(learned(YOPO(sp.Linf(EPS), 2, 2), ran, x, y), expected)  # also where it ran before the hook was there


class Idle(Network):
    """A module that no forward meets."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), 64)
        self.idle = nn.Linear(2, 2)


def test_a_first_layer_that_does_not_run_is_refused() -> None:
    with pytest.raises(RuntimeError, match="hook did not fire"):
        learned(YOPO(sp.Linf(EPS), first="idle"), Idle().double(), *samples())


def test_a_loop_that_forgets_the_backward_is_told() -> None:
    losses = YOPO(sp.Linf(EPS), 2, 2)(network("affine"), samples())
    assert next(losses).value.requires_grad
    with pytest.raises(RuntimeError, match=r"without loss\.value\.backward"):
        next(losses)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 36)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x.flatten(1)).tanh())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m": 0}, "YOPO(m=0): expected a whole number, at least 1"),
        ({"n": 1.5}, "YOPO(n=1.5): expected a whole number, at least 1"),
        ({"form": "hamilton"}, "YOPO(form='hamilton'): expected 'hamiltonian' or 'gradient'"),
        ({"step_size": -1}, "YOPO(step_size=-1): expected a number above 0"),
        ({"bn": "both"}, "bn='both': expected one of"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        YOPO(sp.Linf(EPS), **settings)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_first_layer_that_runs_twice_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Linear, ran twice in one forward"):
        learned(YOPO(sp.Linf(EPS)), Twice().double(), *samples())


def test_distributed_data_parallel_is_told_of_the_form_that_it_takes() -> None:
    """Its reducer would count the first layer's second backward as an iteration of its own."""

    class DistributedDataParallel(nn.parallel.DistributedDataParallel):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    with pytest.raises(ValueError, match=r"form='gradient', or sp\.fit with the bare model") as raised:
        learned(YOPO(sp.Linf(EPS)), DistributedDataParallel(), *samples())
    assert "\n" not in str(raised.value)


def test_an_unknown_first_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"first='stem'.: the model has no such module"):
        learned(YOPO(sp.Linf(EPS), first="stem"), network("affine"), *samples())


def test_the_page_about_yopo() -> None:
    names, blocks = pages.run("yopo.md")
    assert blocks == 1
    passes, batches = names["strategy"].passes, 2560
    assert passes.forwards == passes.backwards == 5 * batches
    with torch.no_grad():
        assert float((names["model"](names["x"]).argmax(1) == names["y"]).float().mean()) > 0.4
