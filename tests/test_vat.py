"""`VAT` and `VirtualAdversarial`: the loss, its passes, labelled and unlabelled samples together, and where it goes on."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from sparring.training.unlabelled import Pairs

INPUTS = 5
BALL = sp.Linf(0.1, bounds=None)


def network(dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(INPUTS, 12), *([nn.BatchNorm1d(12)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(12, 3)).double()


def samples(labelled: int = 30, others: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(labelled + others, INPUTS, generator=g, dtype=torch.float64)
    return x[:labelled], torch.arange(labelled) % 3, x[labelled:]


def gradients(strategy: sp.training.Strategy, model: nn.Module, batch: sp.Batch) -> dict[str, Tensor]:
    model.zero_grad()
    for loss in strategy(model, batch):
        loss.value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("entropy", [False, True])
def test_the_gradient_is_that_of_the_loss_written_out(entropy: bool) -> None:
    x, y, u = samples()
    numbers = torch.arange(100, 150)
    strategy = sp.VAT(0.8, weight=0.7, entropy_minimisation=entropy)
    model = network()
    batch = sp.Batch(x, y, step=3, extras={"unlabelled": sp.Unlabelled(u, numbers)})
    found = gradients(strategy, model, batch)
    r = sp.virtual_perturbation(model, u, 0.8, indices=numbers, seed=strategy.draw_seed(batch))
    model.zero_grad()
    p = model(u).softmax(1)
    far = F.kl_div(model(u + r).log_softmax(1), p.detach(), reduction="batchmean")
    doubt = -(p * p.log()).sum(1).mean() if entropy else 0.0
    (F.cross_entropy(model(x), y) + 0.7 * (far + doubt)).backward()
    close(found, {name: p.grad for name, p in model.named_parameters()})


@pytest.mark.parametrize(("iterations", "entropy"), [(1, False), (3, False), (1, True)])
def test_passes_are_those_of_theory(iterations: int, entropy: bool) -> None:
    x, y, u = samples()
    calls: list[int] = []
    model = network()
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    strategy = sp.VAT(1.0, iterations=iterations, entropy_minimisation=entropy)
    gradients(strategy, model, sp.Batch(x, y, extras={"unlabelled": u}))
    assert strategy.passes.forwards == sum(calls) == 30 + (iterations + 2) * 50
    assert strategy.passes.backwards == 30 + (iterations + 1 + entropy) * 50


def test_round_standard_training_it_is_vat_and_round_others_it_adds_up() -> None:
    x, y, u = samples()
    batch = sp.Batch(x, y, step=0, extras={"unlabelled": u})
    model = network()
    alone = gradients(sp.VAT(1.0), model, batch)
    close(gradients(sp.Standard().with_(sp.VirtualAdversarial(1.0)), model, batch), alone)
    clean = gradients(sp.Standard(), model, batch)
    attack = sp.PGDTraining(BALL, steps=2)
    robust = gradients(attack, model, batch)
    close(
        gradients(attack.with_(sp.VirtualAdversarial(1.0)), model, batch),
        {name: robust[name] + alone[name] - clean[name] for name in alone},
    )


@pytest.mark.parametrize(
    "strategy",
    [
        sp.Free(BALL, 2),
        sp.YOPO(BALL, 2, 2),
        sp.TRADES(BALL, steps=2),
        sp.PGDTraining(BALL, steps=1).with_(sp.EMA(0.9)),
    ],
)
def test_once_for_every_step_of_the_optimiser(strategy: Any) -> None:
    x, y, u = samples()
    made = (
        strategy.with_(sp.VirtualAdversarial(1.0), sp.AWP(0.01))
        if strategy.name == "TRADES"
        else strategy.with_(sp.VirtualAdversarial(1.0))
    )
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = added = 0
    for loss in made(model, sp.Batch(x, y, extras={"unlabelled": u})):
        loss.value.backward()
        added += not loss.update and not loss.seen.right
        if loss.update:
            steps += 1
            optimizer.step()
            optimizer.zero_grad()
    assert steps >= 1
    assert added >= steps, "the divergence comes before each step"
    averages = [part for part in made.parts if isinstance(part, sp.EMA)]
    assert all(part.count == steps for part in averages)


def test_running_statistics_and_the_dropout_of_the_labelled_samples_only() -> None:
    x, y, u = samples()
    torch.manual_seed(3)
    model, twin = network(0.5, norm=True), network(0.5, norm=True)
    gradients(sp.VAT(1.0), model, sp.Batch(x, y, extras={"unlabelled": u}))
    twin(x)
    assert torch.equal(model[1].running_mean, twin[1].running_mean)
    assert torch.equal(model[1].running_var, twin[1].running_var)
    assert int(model[1].num_batches_tracked) == 1


def test_agreement_comes_from_one_mask() -> None:
    """At r = 0 the divergence of one mask is zero; of two it is not."""
    x, y, u = samples()
    strategy = sp.VAT(1e-7)
    torch.manual_seed(0)
    loss = next(iter(strategy(network(0.5), sp.Batch(x, y, extras={"unlabelled": u}))))
    assert abs(loss.value.item()) < 1e-12


@pytest.mark.parametrize("others", [7, 50])
def test_fit_with_fewer_and_with_more_unlabelled_samples(others: int) -> None:
    x, y, u = samples(others=others)
    result = sp.fit(
        network(), (x, y), sp.VAT(1.0), unlabelled=u, epochs=3, batch_size=8, unlabelled_batch_size=5, validation=False
    )
    batches = -(-others // 5)
    assert result.history[-1].batches == 3 * batches
    assert result.strategy.passes.forwards == sum(e.forwards for e in result.history)
    labelled = result.strategy.passes.forwards - 3 * 3 * others
    assert 6 * 3 * batches <= labelled <= 8 * 3 * batches


def test_labelled_samples_come_equally_often_and_unlabelled_ones_once_an_epoch() -> None:
    x, y, u = samples(others=53)
    feed = Pairs((x, y), 8, 1, u, 5)
    labelled, others = [], []
    for epoch in range(8):
        chunks = list(feed.batches(epoch, feed.order(epoch)))
        assert all(
            torch.equal(c.x, x[c.indices]) and torch.equal(c.unlabelled.x, u[c.unlabelled.indices]) for c in chunks
        )
        others.append(torch.cat([c.unlabelled.indices for c in chunks]))
        labelled += [c.indices for c in chunks]
        tail = list(feed.batches(epoch, feed.order(epoch)[4:]))
        assert all(torch.equal(a.indices, b.indices) for a, b in zip(tail, chunks[4:], strict=True))
    assert all(torch.equal(epoch.sort().values, torch.arange(53)) for epoch in others)
    assert not torch.equal(others[0], others[1])
    counts = torch.bincount(torch.cat(labelled), minlength=30)
    assert counts.max() - counts.min() <= 1


def test_a_processs_share_of_either_kind_counts_as_its_samples_do() -> None:
    """Two processes whose batches divide unevenly: means over their gradients weigh every unlabelled sample alike."""
    x, y, u = samples(others=53)
    crew = [Pairs((x, y), 7, 1, u, 5, rank=rank, size=2) for rank in range(2)]
    whole = crew[0].order(0)
    parts = [list(feed.batches(0, feed.order(0))) for feed in crew]
    weights = set()
    for pair, *own in zip(whole, *parts, strict=True):
        assert sum(len(part.unlabelled.indices) for part in own) == len(pair.unlabelled)
        for part in own:
            labelled = len(part.indices) / len(pair.labelled)  # what the process's mean loss counts
            unlabelled = len(part.unlabelled.indices) / len(pair.unlabelled)
            assert part.unlabelled.weight * labelled == pytest.approx(unlabelled)
            weights.add(round(part.unlabelled.weight, 6))
    assert len(weights) > 1
    model, batch = network(), sp.Batch(x, y, step=0, extras={"unlabelled": sp.Unlabelled(u, weight=0.25)})
    close(
        gradients(sp.VAT(0.8), model, batch),
        gradients(sp.VAT(0.8, weight=0.25), model, sp.Batch(x, y, step=0, extras={"unlabelled": u})),
    )


@pytest.mark.parametrize(
    "form",
    [
        lambda u: u,
        lambda u: (u, torch.zeros(len(u), dtype=torch.long)),
        lambda u: TensorDataset(u),
        lambda u: list(u),
        lambda u: [(row, "who knows") for row in u],
        lambda u: DataLoader(TensorDataset(u), batch_size=10, shuffle=True),
    ],
)
def test_unlabelled_samples_in_any_form(form: Any) -> None:
    x, y, u = samples()
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "unlabelled_batch_size": 10, "validation": False}
    model, wanted = network(), network()
    sp.fit(wanted, (x, y), sp.VAT(1.0), unlabelled=u, **settings)
    sp.fit(model, (x, y), sp.VAT(1.0), unlabelled=form(u), **settings)
    close(dict(model.named_parameters()), dict(wanted.named_parameters()))


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    x, y, u = samples()
    settings: dict[str, Any] = {
        "unlabelled": u, "epochs": 2, "batch_size": 8, "unlabelled_batch_size": 7, "validation": False, "optimizer": "adam",
        "loggers": ["csv"],
    }  # fmt: skip

    class Stop:
        def after_epoch(self, run: Any) -> None:
            pass

        def after_step(self, run: Any) -> None:
            if armed and run.step == 10:
                signal.raise_signal(
                    signal.SIGINT
                )  # fit stops behind the next batch, in the middle of an epoch, and saves

    def trained(out: Path) -> nn.Module:
        model = network(0.3)
        strategy = sp.VAT(1.0, entropy_minimisation=True).with_(sp.EMA(0.9))
        sp.fit(model, (x, y), strategy, callbacks=[Stop()], out=out, **settings)
        return model

    armed = False
    whole = trained(tmp_path / "whole")
    armed = True
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed")
    armed = False
    again = trained(tmp_path / "killed")
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="unlabelled"):
        sp.fit(
            network(0.3), (x, y), sp.VAT(1.0, entropy_minimisation=True).with_(sp.EMA(0.9)), callbacks=[Stop()],
            out=tmp_path / "killed", **{**settings, "unlabelled": u[:20]},
        )  # fmt: skip


def test_augmentation_moves_both_kinds_and_not_alike() -> None:
    seen: list[tuple[int, Tensor]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append((len(x), x))
        return x + 1

    x, y, u = samples()
    sp.fit(
        network(), (x, y), sp.VAT(1.0), unlabelled=u, epochs=1, batch_size=30, unlabelled_batch_size=50, augment=watch,
        validation=False,
    )  # fmt: skip
    assert [count for count, _ in seen] == [30, 50]


def test_half_precision_training_has_the_direction_of_full_precision() -> None:
    x, y, u = samples(others=200)
    model = network().float()
    batch = sp.Batch(x.float(), y, step=0, extras={"unlabelled": u.float()})
    full, half = sp.VAT(1.0), sp.VAT(1.0)
    half.autocast = torch.bfloat16
    a, b = gradients(full, model, batch), gradients(half, model, batch)
    flat = [torch.cat([g.flatten() for g in each.values()]) for each in (a, b)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99


def test_it_learns_what_labels_alone_do_not() -> None:
    """Two bands with one label each: the labels spread along them."""
    from sparring.data import two_moons

    x, y = two_moons(300, 0.05, seed=1)
    few = torch.cat([(y == c).nonzero().flatten()[:3] for c in (0, 1)])
    errors = {}
    for name, strategy in (("labels", sp.Standard()), ("vat", sp.VAT(0.2))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2))
        given: dict[str, Any] = {"unlabelled": x, "unlabelled_batch_size": 300} if name == "vat" else {}
        sp.fit(model, (x[few], y[few]), strategy, epochs=150, optimizer="adam", lr=0.01, validation=False, **given)
        errors[name] = float((model(x).argmax(1) != y).float().mean())
    assert errors["vat"] < 0.03 < errors["labels"]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: sp.VAT(0.0), r"VAT\(eps=0.0\).*above 0"),
        (lambda: sp.VAT(-1.0), r"VAT\(eps=-1.0\)"),
        (lambda: sp.VAT(1.0, weight=0.0), r"VAT\(weight=0.0\)"),
        (lambda: sp.VAT(1.0, xi=0.0), r"VAT\(xi=0.0\)"),
        (lambda: sp.VirtualAdversarial(1.0, iterations=0), r"VirtualAdversarial\(iterations=0\)"),
        (lambda: fitted(sp.VAT(1.0), []), "unlabelled has no sample"),
        (
            lambda: fitted(sp.VAT(1.0), DataLoader(torch.zeros(0, INPUTS).double().split(1)[:0])),
            "unlabelled has no sample",
        ),
        (lambda: fitted(sp.VAT(1.0), 5), "unlabelled is int: expected a tensor x"),
        (lambda: fitted(sp.VAT(1.0), torch.zeros(9, INPUTS, dtype=torch.long)), "expected texts both, or neither"),
        (lambda: fitted(sp.VAT(1.0), torch.zeros(9, 4)), r"shape \(4,\), labelled ones of \(5,\)"),
        (lambda: fitted(sp.Standard(), torch.zeros(9, INPUTS)), "Standard learns nothing from samples without labels"),
        (lambda: fitted(sp.VAT(1.0), None, unlabelled_batch_size=5), "there are no unlabelled samples"),
        (
            lambda: gradients(sp.VAT(1.0), network(), sp.Batch(*samples()[:2], extras={"unlabelled": 3})),
            "int: expected a tensor",
        ),
    ],
)
def test_one_clear_line(act: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        act()
    assert "\n" not in str(caught.value)


def fitted(strategy: Any, unlabelled: Any, **settings: Any) -> None:
    x, y, _ = samples()
    sp.fit(network(), (x, y), strategy, unlabelled=unlabelled, epochs=1, validation=False, **settings)


def test_without_unlabelled_samples_the_labelled_ones_are_smoothed() -> None:
    x, y, _ = samples()
    model = network()
    own = gradients(sp.VAT(1.0), model, sp.Batch(x, y, step=0))
    close(own, gradients(sp.VAT(1.0), model, sp.Batch(x, y, step=0, extras={"unlabelled": x})))


def test_settings_and_state_go_through_a_copy() -> None:
    strategy = sp.VAT(1.5, entropy_minimisation=True)
    assert strategy.settings()["eps"] == 1.5
    x, y, u = samples()
    gradients(strategy, network(), sp.Batch(x, y, extras={"unlabelled": u}))
    other = sp.VAT(1.5, entropy_minimisation=True)
    other.load_state_dict(copy.deepcopy(strategy.state_dict()))
    assert other.passes == strategy.passes
    assert other.batches == 1
