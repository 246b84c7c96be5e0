"""Strategies for texts against literal float64 versions: every gradient, every pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import zoo
from sparring.noise import Noise
from sparring.text import EmbeddingPerturber, Encoded, TextClassifier, build_tokenizer
from sparring.training.smart import symmetric_divergence
from sparring.training.strategy import Strategy
from sparring.training.vat import view
from sparring.training.virtual import Clean, Finder, Replay, as_it_learns

TEXTS = ["a good film , really good", "bad", "what a bad film this is , a bad one", "good good"]
Y = torch.tensor([1, 0, 0, 1])


def classifier(dropout: float = 0.0, normalized: bool = False) -> TextClassifier:
    tokenizer = build_tokenizer(TEXTS)
    network = zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), embedding=5, hidden=6, dense=4, dropout=dropout)
    made = TextClassifier(network, tokenizer, ["bad", "good"])
    if normalized:
        made.normalize_embedding(TEXTS)
    return made.double().train()


def literally(model: TextClassifier, x: Encoded, vectors: Tensor) -> Tensor:
    """The network from its word vectors (B, T, D) on, written out."""
    net = model.model
    states, _ = net.lstm(vectors)
    last = states[torch.arange(len(states)), x.mask.sum(1) - 1]
    return net.out(torch.relu(net.dense(last)))


def sequence_step(g: Tensor, x: Encoded, eps: float) -> Tensor:
    g = g * x.words[:, :, None]
    return eps * g / g.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-300)


def literal_adversarial(model: TextClassifier, x: Encoded, strategy: Strategy, start: Tensor) -> Tensor:
    e = model.embedding(x.ids)
    clean = F.cross_entropy(literally(model, x, e), Y)
    (g,) = torch.autograd.grad(clean, e, retain_graph=True)
    return clean + strategy.weight * F.cross_entropy(literally(model, x, e + sequence_step(g, x, strategy.eps)), Y)


def literal_vat(model: TextClassifier, x: Encoded, strategy: Strategy, start: Tensor) -> Tensor:
    e = model.embedding(x.ids)
    logits = literally(model, x, e)
    p = logits.softmax(1).detach()
    d = sequence_step(start, x, strategy.xi).requires_grad_(True)
    kl = (p * (p.log() - literally(model, x, e.detach() + d).log_softmax(1))).sum(1).sum()
    (g,) = torch.autograd.grad(kl, d)
    q = literally(model, x, e + sequence_step(g, x, strategy.eps)).log_softmax(1)
    return F.cross_entropy(logits, Y) + (p * (p.log() - q)).sum(1).mean()


def literal_freelb(model: TextClassifier, x: Encoded, strategy: Strategy, start: Tensor) -> Tensor:
    """In the paper's way: K backwards, the gradients averaged."""
    uniform = EmbeddingPerturber(model).normal(Noise(7 * 1_000_003 + 3, torch.arange(4)), x.words, "start", low=-1.0)
    delta = strategy.start * uniform / (x.words.sum(1) * 5).double().sqrt()[:, None, None]
    total = torch.zeros(())
    for _ in range(strategy.steps):
        delta = delta.detach().requires_grad_(True)
        loss = F.cross_entropy(literally(model, x, model.embedding(x.ids) + delta), Y)
        (g,) = torch.autograd.grad(loss, delta, retain_graph=True)
        total = total + loss / strategy.steps
        delta = delta + sequence_step(g, x, strategy.step_size)
        if strategy.eps is not None:
            norm = delta.flatten(1).norm(dim=1)[:, None, None]
            delta = delta * (strategy.eps / norm).clamp(max=1)
    return total


def literal_smart(model: TextClassifier, x: Encoded, strategy: Strategy, start: Tensor) -> Tensor:
    e = model.embedding(x.ids)
    logits = literally(model, x, e)
    p = logits.softmax(1)
    normal = EmbeddingPerturber(model).normal(Noise(7 * 1_000_003 + 3, torch.arange(4)), x.words, "smart")
    delta = strategy.noise * normal
    for _ in range(strategy.steps):
        delta = delta.detach().requires_grad_(True)
        q, fixed = literally(model, x, e.detach() + delta).softmax(1), p.detach()
        (g,) = torch.autograd.grad(((fixed - q) * (fixed.log() - q.log())).sum(), delta)
        g = g * x.words[:, :, None]
        delta = delta + strategy.step_size * g / g.abs().amax((1, 2), keepdim=True)
        if strategy.eps is not None:
            delta = delta.clamp(-strategy.eps, strategy.eps)
    q = literally(model, x, e + delta.detach()).softmax(1)
    return F.cross_entropy(logits, Y) + strategy.weight * ((p - q) * (p.log() - q.log())).sum(1).mean()


def literal_fgm(model: TextClassifier, x: Encoded, strategy: Strategy, start: Tensor) -> Tensor:
    """As it is pasted around: the matrix itself is moved and put back. Returns a value whose gradient is the sum of both."""
    matrix = model.embedding.weight
    clean = F.cross_entropy(literally(model, x, F.embedding(x.ids, matrix, 0)), Y)
    (g,) = torch.autograd.grad(clean, matrix, retain_graph=True)
    moved = matrix + strategy.eps * g / g.norm()
    return clean + F.cross_entropy(literally(model, x, F.embedding(x.ids, moved, 0)), Y)


def both(model: TextClassifier, x: Encoded, strategy: Strategy, start: Tensor) -> Tensor:
    part = strategy.parts[0]
    smooth = literal_vat(model, x, part, start) - F.cross_entropy(literally(model, x, model.embedding(x.ids)), Y)
    return literal_adversarial(model, x, strategy, start) + smooth


Literal = Callable[[TextClassifier, Encoded, Strategy, Tensor], Tensor]
CASES: list[tuple[Strategy, Literal, tuple[int, int]]] = [
    (sp.TextAdversarial(2.0, weight=0.5, seed=7), literal_adversarial, (2, 2)),
    (sp.TextVAT(2.0, xi=0.1, seed=7), literal_vat, (4, 3)),
    (sp.TextAdversarial(2.0, seed=7).with_(sp.VirtualAdversarial(1.5, xi=0.1)), both, (5, 4)),
    (sp.FGM(1.5, seed=7), literal_fgm, (2, 2)),
    (sp.FreeLB(steps=3, step_size=0.7, start=0.3, seed=7), literal_freelb, (3, 3)),
    (sp.FreeLB(0.9, steps=4, step_size=0.7, start=0.3, seed=7), literal_freelb, (4, 4)),
    (sp.SMART(3.0, noise=0.1, step_size=0.5, seed=7), literal_smart, (3, 3)),
    (sp.SMART(3.0, noise=0.1, step_size=0.5, steps=3, eps=0.8, seed=7), literal_smart, (5, 5)),
]


def backward(
    model: nn.Module, strategy: Strategy, x: Encoded | Tensor, y: Tensor = Y, scale: float = 1.0
) -> list[Tensor]:
    model.zero_grad()
    indices = torch.arange(len(y))
    for loss in strategy(model, sp.Batch(x, y, indices, step=3)):
        (scale * loss.value).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("strategy", "literal", "passes"), CASES, ids=lambda case: getattr(case, "name", None))
@pytest.mark.parametrize("normalized", [False, True])
def test_gradients_are_those_of_the_literal_version(
    strategy: Strategy, literal: Literal, passes: tuple[int, int], normalized: bool
) -> None:
    if normalized and isinstance(strategy, sp.FGM):
        pytest.skip("the matrix of a normalised embedding is not what is looked up")
    strategy = copy.deepcopy(strategy)
    model = classifier(normalized=normalized)
    x = model.encode(TEXTS)
    found = backward(model, strategy, x)
    start = EmbeddingPerturber(model).normal(Noise(7 * 1_000_003 + 3, torch.arange(4)), x.words, "virtual")
    expected = torch.autograd.grad(literal(model, x, strategy, start), list(model.parameters()))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert (strategy.passes.forwards, strategy.passes.backwards) == (4 * passes[0], 4 * passes[1])


@pytest.mark.parametrize(("strategy", "literal", "passes"), CASES, ids=lambda case: getattr(case, "name", None))
def test_a_text_learns_alike_in_any_company(strategy: Strategy, literal: Literal, passes: tuple[int, int]) -> None:
    """Losses are means over texts, perturbations each text's own: padding and neighbours change nothing. (FGM's length is one for
    the batch.)"""
    if isinstance(strategy, sp.FGM):
        pytest.skip("one length for the whole batch")
    model = classifier()
    strategy = copy.deepcopy(strategy)
    whole = backward(model, strategy, model.encode(TEXTS))
    parts = []
    for i in range(4):
        model.zero_grad()
        batch = sp.Batch(model.encode(TEXTS[i : i + 1]), Y[i : i + 1], torch.tensor([i]), step=3)
        for loss in strategy(model, batch):
            loss.value.backward()
        parts.append([p.grad.clone() for p in model.parameters()])
    for gradient, *single in zip(whole, *parts):
        assert torch.allclose(gradient, sum(single) / 4, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strategy", [case[0] for case in CASES], ids=lambda case: case.name)
def test_the_loops_scale_changes_nothing(strategy: Strategy) -> None:
    model = classifier()
    x = model.encode(TEXTS)
    plain = backward(model, copy.deepcopy(strategy), x)
    scaled = backward(model, copy.deepcopy(strategy), x, scale=1024.0)
    for a, b in zip(plain, scaled):
        assert torch.allclose(1024 * a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strategy", [case[0] for case in CASES], ids=lambda case: case.name)
def test_all_forwards_have_the_same_dropout_mask(strategy: Strategy) -> None:
    """With sizes near zero every forward sees the same network, so all logits are equal though dropout is on."""
    model, answers = classifier(dropout=0.5), []
    strategy = copy.deepcopy(strategy)
    for name in ("eps", "step_size", "noise", "start"):
        if getattr(strategy, name, None):
            setattr(strategy, name, 1e-9)
    for part in strategy.parts:
        part.eps, part.xi = 1e-9, 1e-9
    if isinstance(strategy, sp.TextVAT):
        strategy.xi = 1e-9
    model.register_forward_hook(lambda module, inputs, output: answers.append(output.detach()))
    torch.manual_seed(0)
    backward(model, strategy, model.encode(TEXTS))
    if strategy.parts:  # the part's forwards have a mask of their own, all the same one
        assert all(torch.allclose(a, answers[0], atol=1e-6) for a in answers[:1] + answers[-1:])
        answers = answers[1:-1]
    if isinstance(strategy, sp.TextVAT):
        answers = answers[:-1]  # of the supervised forward
    assert all(torch.allclose(a, answers[0], atol=1e-6) for a in answers)
    model.train()
    assert not torch.allclose(model(model.encode(TEXTS)), answers[0], atol=1e-3)


def test_padding_and_special_tokens_are_not_moved_and_texts_without_words_are_learned_from() -> None:
    model = classifier()
    x = model.encode([*TEXTS[:3], ""])
    seen = []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    for strategy in (sp.TextAdversarial(2.0), sp.FreeLB(), sp.SMART(noise=0.1), sp.TextVAT()):
        assert all(bool(g.isfinite().all()) for g in backward(model, strategy, x))
    r = EmbeddingPerturber(model).steepest(torch.randn(*x.words.shape, 5).double(), x.words, 2.0)
    assert bool((r[~x.words] == 0).all())
    assert torch.allclose(r.flatten(1).norm(dim=1), torch.tensor([2.0, 2.0, 2.0, 0.0]).double())


def test_an_overflowed_gradient_makes_no_perturbation() -> None:
    model = classifier()
    x = model.encode(TEXTS)
    losses = iter(sp.TextAdversarial(2.0)(model, (x, Y)))
    loss = next(losses)
    (loss.value * float("inf")).backward()
    clean = loss.value.item()
    assert next(losses).value.item() == pytest.approx(clean, abs=1e-12)


def test_average_weights_hold_smart_back() -> None:
    """θ̃ ← β·θ̃ + (1 − β)·θ after each step, from the first weights; its divergence is part of the loss."""
    model, strategy = classifier(), sp.SMART(weight=1e-9, bregman=2.0, decay=0.9)
    x = model.encode(TEXTS)
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        with torch.no_grad():
            expected = F.cross_entropy(model(x), Y) + 2 * symmetric_divergence(model(x), average(x)).mean()
        for loss in strategy(model, (x, Y)):
            assert loss.value.item() == pytest.approx(expected.item(), abs=1e-8)
            loss.value.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters()):
                old.mul_(0.9).add_(0.1 * new)
    other = sp.SMART(weight=1e-9, bregman=2.0, decay=0.9)
    other.load_state_dict(strategy.state_dict())
    a, b = (next(iter(s(model, (x, Y)))).value for s in (strategy, other))
    assert a.item() == b.item() != pytest.approx(F.cross_entropy(model(x), Y).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sp.TextAdversarial(0.0), "TextAdversarial(eps=0.0): expected a number above 0"),
        (lambda: sp.FreeLB(steps=0), "FreeLB(steps=0): expected a whole number, at least 1"),
        (lambda: sp.FreeLB(start=-1.0), "FreeLB(start=-1.0): expected an L2 length, 0 or more"),
        (lambda: sp.SMART(decay=1.0), "SMART(decay=1.0): expected a number from 0 to below 1"),
        (lambda: sp.TextVAT(float("inf")), "expected a finite number above 0"),
        (lambda: sp.TextAdversarial().with_(sp.AWP()), "AWP can't stand round TextAdversarial"),
    ],
)
def test_settings_that_there_cannot_be_get_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        make()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_images_strategies_refuse_texts_and_the_other_way_round() -> None:
    model = classifier()
    with pytest.raises(TypeError, match="expected a tensor of floats"):
        next(iter(sp.PGDTraining(sp.Linf(0.1))(model, (model.encode(TEXTS), Y))))
    extras = {"unlabelled": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="texts both, or neither"):
        [loss.value.backward() for loss in sp.TextVAT()(model, sp.Batch(model.encode(TEXTS), Y, extras=extras))]


@pytest.mark.parametrize("xi", [None, 0.1])
def test_bf16_does_not_round_the_virtual_direction_away(xi: float | None) -> None:
    """ξ is measured by the word vectors, which r is added to; Miyato's 0.1 stands beside it to show that this test can fail."""
    torch.manual_seed(0)
    model = classifier().float()
    x = model.encode(
        [" ".join([text] * 40) for text in TEXTS]
    )  # of length 14 to 42: 0.1 on so many numbers is little on each
    found = {}
    for name, autocast, exact in (("exact", None, True), ("half", torch.bfloat16, False)):
        batch = sp.Batch(x, Y, torch.arange(4), 0)
        seen_as = view(model, batch)
        delta = seen_as.unlabelled.x
        finder = Finder(0.5, xi, 1, exact, seen_as.start, seen_as.size)
        with as_it_learns(seen_as.model, delta, autocast) as borrowed:
            replay = Replay(delta.device)
            _, clean = Clean.of(lambda at=delta, lent=borrowed: lent.look(at), seen_as.model, delta)
            found[name] = finder(borrowed, delta, Noise(0, torch.arange(4)), replay, clean).flatten(1).double()
    near = F.cosine_similarity(found["exact"], found["half"]).abs()  # the sign is nothing: KL is even at first
    assert (near.min() > 0.99) == (xi is None)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_smart_moves_the_answer_by_itself(autocast: torch.dtype | None) -> None:
    """Left to itself it climbs: the papers' sizes, beside it, leave nothing that float32 or bf16 could tell from zero."""
    torch.manual_seed(0)
    model = classifier().float()
    x = model.encode(TEXTS)
    moved: dict[str, Tensor] = {}
    for name, strategy in (("ours", sp.SMART()), ("papers", sp.SMART(noise=1e-5, step_size=1e-3))):
        made: list[Tensor] = []
        worst = strategy.worst
        strategy.worst = lambda *args, worst=worst, made=made: made.append(worst(*args)) or made[-1]  # type: ignore[method-assign]
        strategy.autocast = autocast
        next(iter(strategy(model, sp.Batch(x, Y)))).value.backward()
        perturber = EmbeddingPerturber(model)
        with torch.no_grad(), perturber.adding(made[0].double(), x):
            far = model.double()(x)
        moved[name] = symmetric_divergence(far, model(x).detach())
        model.float()
        size = model.embedding(x.ids)[x.words].square().mean().sqrt()
        assert (made[0].abs().amax((1, 2)) < size / 2).all()
    assert (moved["ours"] > 300 * moved["papers"]).all()
    assert (moved["papers"] < 1e-8).all()


def test_smart_has_its_own_sizes_in_any_company() -> None:
    """A text's δ does not depend on the others' vectors."""
    model = classifier(normalized=True)
    found = []
    for rows in (slice(None), slice(1, 2)):
        strategy = sp.SMART()
        worst = strategy.worst
        strategy.worst = lambda *args, worst=worst: found.append(worst(*args)) or found[-1]  # type: ignore[method-assign]
        batch = sp.Batch(model.encode(TEXTS[rows]), Y[rows], indices=torch.arange(4)[rows], step=0)
        next(iter(strategy(model, batch))).value.backward()
    width = found[1].shape[1]
    assert torch.allclose(found[0][1:2, :width], found[1], rtol=1e-5, atol=1e-9)
    assert not found[0][1, width:].any()


def test_an_average_that_was_loaded_goes_where_the_network_is() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    strategy = sp.SMART(bregman=1.0)
    strategy._average = {
        name: part.detach() for name, part in model.named_parameters()
    }  # as a file gives it: on the CPU
    x = torch.zeros(2, 3, dtype=torch.long, device="meta")
    forwards = SimpleNamespace(
        model=copy.deepcopy(model).to("meta"), x=x, words=x, y=Y[:2], again=contextlib.nullcontext
    )
    assert strategy._former(forwards).device.type == "meta"  # type: ignore[arg-type]


class Wrapper(nn.Module):
    """As DistributedDataParallel: it holds the network as `module`, and calls it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Tensor:
        logits: Tensor = self.module(*args)
        return logits


@pytest.mark.parametrize("strategy", [case[0] for case in CASES], ids=lambda strategy: strategy.name)
def test_a_wrapper_changes_nothing(strategy: Strategy) -> None:
    """Token numbers are read by the classifier inside: [EOS] stays where it is, and padding is cut."""
    gradients = []
    for wrap in (lambda model: model, Wrapper, lambda model: Wrapper(Wrapper(model))):
        model = classifier()
        numbers = torch.nn.functional.pad(model.numbers(TEXTS), (0, 3), value=model.tokens.fill)
        for loss in strategy.with_()(wrap(model), sp.Batch(numbers, Y, step=0)):
            loss.value.backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other))
