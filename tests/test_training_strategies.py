"""Every strategy's gradients against a literal float64 version of its algorithm, and its passes against theory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from networks import Counting
from sparring.noise import Noise
from sparring.training import Strategy

EPS, SIZE, RATE, SMOOTH = 0.1, 0.03, 0.2, 0.1
THREAT = sp.Linf(EPS)
Gradients = list[Tensor]


def network(kind: str = "plain", seed: int = 0) -> nn.Sequential:
    """Smooth, so that no rounding decides about a sign."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = [nn.BatchNorm2d(4)] if kind == "norm" else []
        layers = [nn.Conv2d(2, 4, 3), *norm, nn.ELU(), nn.Flatten(), nn.Linear(36, 3)]
        return nn.Sequential(*layers).double().train()


def samples(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=generator)


def gradients(value: Tensor, model: nn.Module) -> Gradients:
    return list(torch.autograd.grad(value, list(model.parameters())))


def slope(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    at = x.detach().requires_grad_(True)
    return torch.autograd.grad(loss(copy.deepcopy(model)(at)), at)[0]


def clipped(x: Tensor, moved: Tensor) -> Tensor:
    return torch.clamp(torch.maximum(torch.minimum(moved, x + EPS), x - EPS), 0, 1)


def climbed(model: nn.Module, x: Tensor, y: Tensor, moved: Tensor, steps: int, size: float) -> Tensor:
    for _ in range(steps):
        moved = clipped(x, moved + size * slope(model, moved, lambda z: F.cross_entropy(z, y)).sign())
    return moved


def noise(count: int = 6) -> Noise:
    return Noise(0, torch.arange(count))


def uniform(x: Tensor, draw: str = "start") -> Tensor:
    """The random start: U(±eps) by the sample's number."""
    parts = (draw, 0) if draw == "start" else (draw,)
    moved = x + (2 * noise(len(x)).uniform(x.shape[1:], *parts, like=x) - 1) * EPS
    return torch.clamp(moved, 0, 1)


def beside(x: Tensor) -> Tensor:
    return clipped(x, x + 1e-3 * noise(len(x)).normal(x.shape[1:], "beside", like=x))


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    p, q = clean.softmax(1), adversarial.softmax(1)
    return (p * (p / q).log()).sum(1)


# one batch, literally: model, x, y → the gradients of each update; the model steps in between


def standard(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    return [gradients(F.cross_entropy(model(x), y), model)]


def of(made: Callable[[nn.Module, Tensor, Tensor], Tensor], smoothing: float = 0.0) -> Callable[..., list[Gradients]]:
    def literal(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
        return [gradients(F.cross_entropy(model(made(model, x, y)), y, label_smoothing=smoothing), model)]

    return literal


def fgsm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return climbed(model, x, y, x, 1, EPS)


def pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return climbed(model, x, y, uniform(x), 3, SIZE)


def fast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return climbed(model, x, y, uniform(x), 1, 1.25 * EPS)


def nfgsm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    draw = 2 * noise(len(x)).uniform(x.shape[1:], "noise", like=x) - 1
    noisy = (x + 2 * EPS * draw).clamp(0, 1)
    return (noisy + EPS * slope(model, noisy, lambda z: F.cross_entropy(z, y)).sign()).clamp(0, 1)


def mixed(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    both = model(torch.cat([x, fgsm(model, x, y)]))
    value = 0.3 * F.cross_entropy(both[: len(x)], y) + 0.7 * F.cross_entropy(both[len(x) :], y)
    return [gradients(value, model)]


def kurakin(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    """1 / (m − k + λk) · (Σ L(clean) + λ Σ L(adversarial)), λ = 0.3, a third of the batch adversarial."""
    k, weight = len(x) // 3, 0.3
    logits = model(torch.cat([x[k:], fgsm(model, x[:k], y[:k])]))
    clean = F.cross_entropy(logits[: len(x) - k], y[k:], reduction="sum")
    adversarial = F.cross_entropy(logits[len(x) - k :], y[:k], reduction="sum")
    return [gradients((clean + weight * adversarial) / (len(x) - k + weight * k), model)]


def gradalign(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    g = slope(model, x, lambda z: F.cross_entropy(z, y, reduction="sum"))
    learned = F.cross_entropy(model(clipped(x, x + EPS * g.sign())), y)
    near = uniform(x, "near").requires_grad_(True)
    (h,) = torch.autograd.grad(
        F.cross_entropy(without_buffers(model)(near), y, reduction="sum"), near, create_graph=True
    )
    cosines = [(a * b).sum() / (a.norm() * b.norm()) for a, b in zip(g, h)]
    return [gradients(learned + 0.4 * (1 - torch.stack(cosines).mean()), model)]


def without_buffers(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model on a copy of its buffers, the parameters its own."""
    held = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return lambda x: torch.func.functional_call(model, held, (x,))


def free(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    found, change = [], torch.zeros_like(x)
    for _ in range(3):
        at = (x + change).detach().requires_grad_(True)
        *learned, g = torch.autograd.grad(F.cross_entropy(model(at), y), [*model.parameters(), at])
        change = clipped(x, x + change + SIZE * g.sign()) - x
        stepped(model, learned)
        found.append(learned)
    return found


def trades(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    reference, moved = copy.deepcopy(model)(x).detach(), beside(x)
    for _ in range(3):
        moved = clipped(x, moved + SIZE * slope(model, moved, lambda z: divergence(reference, z).sum()).sign())
    clean, adversarial = model(torch.cat([x, moved])).chunk(2)
    return [gradients(F.cross_entropy(clean, y) + 4 * divergence(clean, adversarial).mean(), model)]


def trades_yopo(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    """m = 2, n = 3, the first layer the convolution."""
    other = copy.deepcopy(model)
    reference, moved = other(x).detach(), beside(x)
    for _ in range(2):
        at = other[0](moved).detach().requires_grad_(True)
        (p,) = torch.autograd.grad(divergence(reference, other[1:](at)).sum(), at)
        for _ in range(3):
            point = moved.detach().requires_grad_(True)
            (g,) = torch.autograd.grad((p * other[0](point)).sum(), point)
            moved = clipped(x, moved + SIZE * g.sign())
    clean, adversarial = model(torch.cat([x, moved])).chunk(2)
    return [gradients(F.cross_entropy(clean, y) + 4 * divergence(clean, adversarial).mean(), model)]


def mart(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    moved = climbed(model, x, y, beside(x), 3, SIZE)
    clean, adversarial = model(torch.cat([x, moved])).chunk(2)
    p, q = clean.softmax(1), adversarial.softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(y.tolist()):
        others = torch.stack([q[i, k] for k in range(3) if k != label])
        total = total - q[i, label].log() - (1 - others.max()).log()
        total = total + 4 * (p[i] * (p[i] / q[i]).log()).sum() * (1 - p[i, label])
    return [gradients(total / len(y), model)]


def stepped(model: nn.Module, found: Gradients) -> None:
    with torch.no_grad():
        for p, g in zip(model.parameters(), found):
            p -= RATE * g


SOURCE = network(seed=9)


def ensemble(model: nn.Module, x: Tensor, y: Tensor) -> list[Gradients]:
    """The first batch is the model's own turn."""
    both = model(torch.cat([x, fgsm(model, x, y)]))
    return [gradients(0.5 * F.cross_entropy(both[: len(x)], y) + 0.5 * F.cross_entropy(both[len(x) :], y), model)]


CASES: dict[str, tuple[Callable[[], Strategy], Callable[..., list[Gradients]]]] = {
    "Standard": (lambda: sp.Standard(), standard),
    "Mixed": (lambda: sp.Mixed(sp.FGSM(THREAT), 0.3), mixed),
    "Mixed by part": (lambda: sp.Mixed(sp.FGSM(THREAT), 1 / 1.3, fraction=1 / 3), kurakin),
    "FGSMTraining": (lambda: sp.FGSMTraining(THREAT), of(fgsm)),
    "PGDTraining": (lambda: sp.PGDTraining(THREAT, 3, SIZE), of(pgd)),
    "PGDTraining smoothed": (lambda: sp.PGDTraining(THREAT, 3, SIZE, label_smoothing=SMOOTH), of(pgd, SMOOTH)),
    "FastFGSM": (lambda: sp.FastFGSM(THREAT), of(fast)),
    "NFGSM": (lambda: sp.NFGSM(THREAT), of(nfgsm)),
    "GradAlign": (lambda: sp.GradAlign(THREAT, 0.4), gradalign),
    "Free": (lambda: sp.Free(THREAT, 3, SIZE), free),
    "TRADES": (lambda: sp.TRADES(THREAT, 4.0, 3, SIZE), trades),
    "TRADESYOPO": (lambda: sp.TRADESYOPO(THREAT, 2, 3, 4.0, step_size=SIZE), trades_yopo),
    "TRADESYOPO literal": (lambda: sp.TRADESYOPO(THREAT, 2, 3, 4.0, step_size=SIZE, collapse=False), trades_yopo),
    "MART": (lambda: sp.MART(THREAT, 4.0, 3, SIZE), mart),
    "EnsembleTraining": (lambda: sp.EnsembleTraining(sp.FGSM(THREAT), [SOURCE]), ensemble),
}


def learned(strategy: Strategy, model: nn.Module, batch: sp.Batch, scale: float = 1.0) -> list[Gradients]:
    """The gradients of each update of a plain loop that scales its losses, as one in mixed precision does."""
    found = []
    for loss in strategy(model, batch):
        (scale * loss.value).backward()
        if loss.update:
            found.append([p.grad / scale for p in model.parameters() if p.grad is not None])
            stepped(model, found[-1])
            model.zero_grad()
    return found


def same(a: list[Gradients], b: list[Gradients], tolerance: float = 1e-10) -> bool:
    assert [len(g) for g in a] == [len(g) for g in b]
    return all(torch.allclose(u, v, rtol=0, atol=tolerance) for g, h in zip(a, b) for u, v in zip(g, h))


@pytest.mark.parametrize("kind", ["plain", "norm"])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_literal_algorithms(name: str, kind: str) -> None:
    make, literal = CASES[name]
    x, y = samples()
    model, reference = network(kind), network(kind)
    expected = literal(reference, x, y)
    assert max(float(g.abs().max()) for g in expected[0]) > 1e-3
    assert same(learned(make(), model, sp.Batch(x, y), scale=128.0), expected)
    for buffer, other in zip(model.buffers(), reference.buffers()):
        assert torch.allclose(buffer, other, rtol=0, atol=1e-12), "only what is learned from moves running statistics"


def test_free_that_keeps_begins_where_the_sample_was() -> None:
    """Two batches of the same samples in another order: literally, with float16 between them."""
    x, y = samples()
    model, strategy = network("plain"), sp.Free(THREAT, 2, SIZE, keep=True)
    reference, shown, expected = network("plain"), [], []
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].detach().clone()))
    kept: dict[int, Tensor] = {}
    for step, order in enumerate(([3, 1, 4, 0, 5, 2], [0, 2, 1, 3, 5, 4])):
        indices = torch.tensor(order)
        a, b = x[indices], y[indices]
        learned(strategy, model, sp.Batch(a, b, indices, step))
        if not step:
            moved = THREAT.random(a, Noise(0, indices), "start")
        else:
            moved = torch.stack([x[i] + kept[i] for i in order])
        for _ in range(2):
            at = clipped(a, moved).requires_grad_(True)
            expected.append(at.detach())
            *found, g = torch.autograd.grad(F.cross_entropy(reference(at), b), [*reference.parameters(), at])
            moved = clipped(a, at.detach() + SIZE * g.sign())
            stepped(reference, found)
        kept = {i: change.half().double() for i, change in zip(order, moved - a)}
    assert len(shown) == len(expected) == 4
    assert all(torch.allclose(u, v, rtol=0, atol=1e-10) for u, v in zip(shown, expected))
    with pytest.raises(ValueError, match="keeps something for every sample"):
        next(strategy(model, (x, y)))


@pytest.mark.parametrize("name", ["PGDTraining", "Free", "FastFGSM", "GradAlign", "TRADES"])
def test_l2_steps_are_of_unit_length_and_stay_in_the_ball(name: str) -> None:
    """Where the box is far away, one step from the input leads to x + size · g / ‖g‖."""
    threat = sp.L2(EPS, bounds=None)
    x, y = samples()
    model = network()
    made: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: made.append(inputs[0].detach()))
    strategy = {
        "PGDTraining": lambda: sp.PGDTraining(threat, 1, SIZE, random_start=False),
        "Free": lambda: sp.Free(threat, 2, SIZE),
        "FastFGSM": lambda: sp.FastFGSM(threat),
        "GradAlign": lambda: sp.GradAlign(threat),
        "TRADES": lambda: sp.TRADES(threat, steps=4, step_size=2 * EPS),
    }[name]()
    expected = x + SIZE * unit(slope(model, x, lambda z: F.cross_entropy(z, y, reduction="sum")))
    made.clear()
    learned(strategy, model, sp.Batch(x, y))
    handle.remove()
    seen = torch.stack([m[-len(x) :] for m in made])
    lengths = (seen - x).flatten(2).norm(dim=2)
    assert float(lengths.max()) <= EPS + 1e-12
    if name in ("PGDTraining", "Free"):
        assert torch.allclose(made[1], expected, rtol=0, atol=1e-12)
    else:
        assert float((lengths > 0.99 * EPS).double().mean()) > 0.2, "and some reach its end"


def test_gradalign_adds_nothing_where_gradients_are_aligned() -> None:
    """A linear model of two classes has one direction of gradients only."""
    x, y = samples()
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 2)).double()
    (loss,) = sp.GradAlign(THREAT, 10.0)(model, (x, y % 2))
    (alone,) = sp.FGSMTraining(THREAT)(model, (x, y % 2))
    assert torch.allclose(loss.value, alone.value, rtol=0, atol=1e-12)


def unit(g: Tensor) -> Tensor:
    return g / g.flatten(1).norm(dim=1)[:, None, None, None]


THEORY = {  # a sample's forwards and backwards, whole network
    "Standard": (1, 1),
    "Mixed": (1 + 2, 1 + 2),
    "Mixed by part": (1 + 1 / 3, 1 + 1 / 3),
    "FGSMTraining": (2, 2),
    "PGDTraining": (3 + 1, 3 + 1),
    "PGDTraining smoothed": (3 + 1, 3 + 1),
    "FastFGSM": (2, 2),
    "NFGSM": (2, 2),
    "GradAlign": (3, 4),
    "Free": (3, 3),
    "TRADES": (1 + 3 + 2, 3 + 2),
    "TRADESYOPO": (1 + 2 + 2, 2 + 2),
    "TRADESYOPO literal": (1 + 2 + 2, 2 + 2),
    "MART": (3 + 2, 3 + 2),
    "EnsembleTraining": (1 + 2, 1 + 2),
}


@pytest.mark.parametrize("name", THEORY)
def test_passes_are_those_of_theory(name: str) -> None:
    x, y = samples()
    model = Counting(network())
    strategy = CASES[name][0]()
    updates = len(learned(strategy, model, sp.Batch(x, y)))
    forwards, backwards = THEORY[name]
    assert (model.forwards, model.backwards) == (round(6 * forwards), round(6 * backwards))
    assert (strategy.passes.forwards, strategy.passes.backwards) == (model.forwards, model.backwards)
    assert updates == (3 if name == "Free" else 1)
    first = 6 * 2 * 3 if name == "TRADESYOPO literal" else 0
    assert (strategy.passes.first_forwards, strategy.passes.first_backwards) == (first, first)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("Free", "Mixed by part")])
def test_a_sample_is_crafted_alike_in_any_company(name: str) -> None:
    """The gradient of a batch is the mean of those of its halves: nothing but the mean couples samples."""
    x, y = samples(8)
    numbers = torch.tensor([5, 0, 31, 7, 2, 99, 4, 1])

    def gradient(part: slice) -> Gradients:
        batch = sp.Batch(x[part], y[part], numbers[part], step=4)
        return learned(CASES[name][0](), network(), batch)[0]

    whole, one, two = gradient(slice(0, 8)), gradient(slice(0, 4)), gradient(slice(4, 8))
    assert same([whole], [[(a + b) / 2 for a, b in zip(one, two)]])


@pytest.mark.parametrize("name", CASES)
def test_the_seed_decides_and_the_global_generator_does_not(name: str) -> None:
    x, y = samples()
    found = []
    for seed, outside in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        strategy = CASES[name][0]()
        strategy.seed = seed
        found.append(learned(strategy, network(), sp.Batch(x, y)))
        assert torch.equal(before, torch.get_rng_state())
    assert same(found[0], found[1], 0.0)
    random = name.startswith(("PGD", "Fast", "NFGSM", "GradAlign", "TRADES", "MART"))
    assert same(found[0], found[2], 0.0) != random


def test_an_ensembles_sources_take_turns_and_stay_as_they_are() -> None:
    x, y = samples()
    sources = [Counting(network("norm", seed)) for seed in (3, 4)]
    before = [copy.deepcopy(s.state_dict()) for s in sources]
    strategy = sp.EnsembleTraining(sp.FGSM(THREAT), sources, 0.0)
    for number in range(6):
        model = Counting(network())
        expected = network()
        turn = number % 3
        crafted_on = expected if turn == 0 else copy.deepcopy(sources[turn - 1]).eval()
        literal = of(lambda m, x, y, on=crafted_on: fgsm(on, x, y))(expected, x, y)
        assert same(learned(strategy, model, sp.Batch(x, y)), literal)
        assert [s.forwards for s in sources] == [6 * (number // 3 + (turn > i)) for i in range(2)]
        assert model.forwards == (12 if turn == 0 else 6)
    assert strategy.passes.forwards == strategy.passes.backwards == 6 * 12
    for source, state in zip(sources, before):
        assert source.training
        assert all(torch.equal(v, state[k]) for k, v in source.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in source.parameters())


def test_advprop_keeps_two_sets_of_statistics_and_says_which_accuracy_is_whose() -> None:
    x, y = samples()
    model, reference = network("norm"), network("norm")
    strategy = sp.AdvProp(sp.FGSM(THREAT), 0.3)
    made = fgsm(reference, x, y)
    clean, adversarial = reference(x), copy.deepcopy(network("norm"))(made)
    other = network("norm")
    value = 0.3 * F.cross_entropy(clean, y)
    second = 0.7 * F.cross_entropy(other(made), y)
    expected = [[a + b for a, b in zip(gradients(value, reference), gradients(second, other))]]
    (loss,) = strategy(model, (x, y))
    loss.value.backward()
    assert same([[p.grad for p in model.parameters()]], expected)
    right = {name: int(count) for name, (count, _) in loss.seen.right.items()}
    assert right == {
        name: int((z.argmax(1) == y).sum()) for name, z in (("clean", clean), ("adversarial", adversarial))
    }
    assert torch.allclose(model[1].running_mean, reference[1].running_mean)
    with strategy.statistics.branch(model, "adversarial"):
        assert torch.allclose(model[1].running_mean, other[1].running_mean)
    assert not torch.allclose(reference[1].running_mean, other[1].running_mean)


def test_a_generator_and_the_classifier_learn_in_turn() -> None:
    x, y = samples()
    generator = nn.Conv2d(2, 2, 3, padding=1).double()
    twin = copy.deepcopy(generator)
    strategy = sp.GeneratorTraining(THREAT, alpha=0.5, generator=generator)
    assert strategy.modules() == {"generator": generator}
    model, reference = Counting(network()), network()

    moved = x + EPS * twin(2 * x - 1)
    made = moved + (moved.clamp(0, 1) - moved).detach() + (clipped(x, moved) - moved.clamp(0, 1)).detach()
    z = reference(made)
    others = torch.stack([torch.cat([z[i, :label], z[i, label + 1 :]]).max() for i, label in enumerate(y.tolist())])
    ahead = z.gather(1, y[:, None]).squeeze(1) - others
    fool = (1 + ahead.exp()).log().mean()
    wanted = torch.autograd.grad(fool, list(twin.parameters()))

    losses = strategy(model, (x, y))
    loss = next(losses)
    assert loss.owner == "generator"
    loss.value.backward()
    assert same([[p.grad for p in generator.parameters()]], [list(wanted)])
    assert all(p.grad is None for p in model.parameters()), "it is not the classifier's loss"
    with torch.no_grad():
        for p, q, g in zip(generator.parameters(), twin.parameters(), wanted):
            p -= RATE * g
            q -= RATE * g
    made = clipped(x, x + EPS * twin(2 * x - 1)).detach()
    both = reference(torch.cat([x, made]))
    expected = gradients(0.5 * F.cross_entropy(both[:6], y) + 0.5 * F.cross_entropy(both[6:], y), reference)
    loss = next(losses)
    assert loss.owner == "model"
    loss.value.backward()
    assert same([[p.grad for p in model.parameters()]], [expected])
    assert list(losses) == []
    assert (model.forwards, model.backwards) == (18, 18) == (strategy.passes.forwards, strategy.passes.backwards)


def test_a_loss_says_what_it_is() -> None:
    model = nn.Linear(2, 2)
    (loss,) = sp.Standard()(model, (torch.rand(4, 2), torch.arange(4) % 2))
    assert repr(loss) == "Loss(not computed yet, update=True, owner='model')"
    assert loss.value.requires_grad  # computed now
    count, samples = loss.seen.right["clean"]
    assert (
        repr(loss) == f"Loss({loss.value.item():.4g}, clean {int(count)}/{samples} right, update=True, owner='model')"
    )
