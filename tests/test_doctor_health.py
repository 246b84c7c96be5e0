"""HealthCheck: what it says and takes back while `fit` trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.training import health
from sparring.training.findings import Finding
from sparring.training.health import safer
from sparring.training.validation import Validation

THREAT = sp.Linf(0.1)
OVERFITTED = Finding("catastrophic-overfitting", "it withstands one step", "90% after one step, 0% after ten", "N-FGSM")


def samples(n: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    return torch.rand(n, 4, generator=generator) * 0.5 + 0.5 * y[:, None], y


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_catastrophic_overfitting_is_taken_back_and_training_goes_on_with_a_safer_strategy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found after epoch 2: the weights after it are those after epoch 1, and N-FGSM trains epoch 3."""
    weights: list[Tensor] = []
    names: list[str] = []

    class Watch:
        def after_epoch(self, run: Any) -> None:
            weights.append(run.model[0].weight.detach().clone())
            names.append(run.strategy.name)

    monkeypatch.setattr(health, "judge", lambda *_: [OVERFITTED] if len(weights) == 1 else [])
    result = train(sp.FGSMTraining(THREAT, alpha=0.25, bn="batch", seed=3), sp.HealthCheck(16), Watch())
    assert names == ["FGSMTraining", "NFGSM", "NFGSM"]
    assert torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[2], weights[1])
    assert any("catastrophic-overfitting: it withstands one step" in note for note in result.notes)
    assert any("training goes on with NFGSM(k=2.0)" in note for note in result.notes)
    assert (result.strategy.alpha, result.strategy.bn, result.strategy.seed) == (0.25, "batch", 3)
    assert result.strategy.batches == 3 * 3


def test_an_epoch_in_which_robust_accuracy_fell_to_less_than_half_is_none_to_go_back_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It begins in epoch 2, and is recognised after epoch 3: the weights are those after epoch 1."""
    weights: list[Tensor] = []

    class Watch:
        def after_epoch(self, run: Any) -> None:
            weights.append(run.model[0].weight.detach().clone())

    robust = iter([0.5, 0.2, 0.1])
    monkeypatch.setattr(Validation, "__call__", lambda *_: (0.9, next(robust)))
    monkeypatch.setattr(health, "judge", lambda *_: [OVERFITTED] if len(weights) == 2 else [])
    train(sp.FGSMTraining(THREAT), sp.HealthCheck(16), Watch())
    assert not torch.equal(weights[1], weights[0])
    assert torch.equal(weights[2], weights[0])


@pytest.mark.parametrize(
    ("bn", "stale", "said"), [("eval", True, True), ("eval", False, False), ("batch", True, False)]
)
def test_gradients_of_stale_statistics_are_found_while_training(bn: str, stale: bool, said: bool) -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(width, momentum=0.001 if stale else 0.5) for width in (3, 4)]
    model = nn.Sequential(norms[0], nn.Conv2d(3, 4, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    for norm in norms if stale else ():
        norm.running_var.mul_(1e4)  # type: ignore[union-attr]
    data = torch.rand(200, 3, 8, 8), torch.arange(200) % 4
    result = sp.fit(model, data, sp.PGDTraining(sp.Linf(0.05), 2, bn=bn), epochs=2, batch_size=20, validation=data)
    assert any("mode-gradients" in note for note in result.notes) == said


def test_told_only_to_say_so_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "judge", lambda *_: [OVERFITTED])
    result = train(sp.FGSMTraining(THREAT), sp.HealthCheck(16, act=False))
    assert result.strategy.name == "FGSMTraining"
    assert sum("catastrophic-overfitting" in note for note in result.notes) == 1, "said once, while it lasts"


def train(strategy: sp.Strategy, *callbacks: Any) -> Any:
    return sp.fit(
        network(), samples(), strategy, epochs=3, batch_size=32, lr=0.05, validation=samples(32), health=False,
        callbacks=callbacks,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "then"),
    [
        (sp.FGSMTraining(THREAT), [("NFGSM", 2.0), ("NFGSM", 4.0), ("PGDTraining", 2), ("PGDTraining", 4)]),
        (
            sp.FastFGSM(sp.L2(1.0)),
            [("PGDTraining", 2), ("PGDTraining", 4), ("PGDTraining", 8), ("PGDTraining", 10), None],
        ),
        (sp.GradAlign(THREAT), [("GradAlign", 0.4), ("GradAlign", 0.8)]),
        (sp.Free(THREAT, 8), [("PGDTraining", 7), ("PGDTraining", 10), None]),
        (sp.Free(THREAT, 2), [("PGDTraining", 2)]),
        (sp.TRADES(THREAT, steps=1), [("TRADES", 2), ("TRADES", 4), ("TRADES", 8), ("TRADES", 10), None]),
        (sp.MART(THREAT, steps=6), [("MART", 10), None]),
        (sp.TRADESYOPO(THREAT, 3, 2), [("TRADESYOPO", 6), ("TRADESYOPO", 10), None]),
        (sp.Mixed(sp.PGD(THREAT, 40)), [None]),
        (sp.YOPO(THREAT, 3, 2), [("YOPO", 6), ("YOPO", 10), None]),
        (sp.GeneratorTraining(THREAT), [None]),
        (sp.Standard(), [None]),
    ],
)
def test_what_is_safer_than_what(strategy: sp.Strategy, then: list[Any]) -> None:
    strategy.passes.forwards = 7
    for expected in then:
        following = safer(strategy)
        if expected is None:
            assert following is None
            return
        name, setting = expected
        assert following is not None
        assert following.name == name
        assert (
            getattr(following, {"NFGSM": "k", "GradAlign": "weight", "YOPO": "m", "TRADESYOPO": "m"}.get(name, "steps"))
            == setting
        )
        assert following.passes is strategy.passes, "what was counted and kept goes on"
        assert following.statistics is strategy.statistics
        strategy = following


@pytest.mark.parametrize(
    ("attack", "steps"),
    [
        (sp.FGSM(THREAT), [2, 4, 8, 10, None]),
        (sp.RFGSM(THREAT, objective="margin"), [2]),
        (sp.FGSM(THREAT, targets="least-likely"), [2]),
        (sp.PGD(THREAT, 1, 0.1), [2]),
        (sp.MIFGSM(THREAT, 3), [6, 10]),
        (sp.PGD(THREAT, 20), [None]),
    ],
)
@pytest.mark.parametrize(
    "around",
    [
        lambda attack: sp.Mixed(attack, alpha=0.25, fraction=0.5, bn="batch", seed=3),
        lambda attack: sp.EnsembleTraining(attack, [network()], alpha=0.25, seed=3),
        lambda attack: sp.AdvProp(attack, alpha=0.25, seed=3),
    ],
)
def test_an_attack_of_few_steps_inside_a_strategy_gets_more(around: Any, attack: Any, steps: list[int | None]) -> None:
    """All other settings, the attack's and the strategy's, are as they were."""
    strategy = around(attack).with_(sp.EMA(0.9))
    for expected in steps:
        following = safer(strategy)
        if expected is None:
            assert following is None
            return
        assert following is not None
        assert type(following) is type(strategy)
        assert isinstance(following.attack, sp.PGD | sp.MIFGSM)
        assert following.attack.steps == expected
        for name in ("threat", "targets", "objective", "keep"):
            assert getattr(following.attack, name) == getattr(attack, name)
        assert {**following.settings(), "attack": None} == {**strategy.settings(), "attack": None}
        assert following.parts == strategy.parts
        strategy = following


def test_a_schedule_of_steps_is_doubled_and_stays_clean_where_it_was() -> None:
    first = safer(sp.PGDTraining(THREAT, 1, schedule={0: 0, 10: 1, 20: 8}))
    assert isinstance(first, sp.PGDTraining)
    assert (first.steps, first.schedule) == (1, {0: 0, 10: 2, 20: 10})
    late = safer(sp.PGDTraining(THREAT, 1, schedule={10: 10}))
    assert isinstance(late, sp.PGDTraining)
    assert (late.steps, late.schedule) == (2, {10: 10})
    assert safer(sp.PGDTraining(THREAT, 1, schedule={0: 0, 10: 10})) is None


def test_the_same_strategy_with_more_steps_keeps_its_other_settings() -> None:
    own = {"alpha": 0.25, "random_start": False, "stop_when_fooled": True, "tau": 1, "keep": True, "bn": "batch"}
    strategy = sp.PGDTraining(THREAT, 1, 0.02, seed=3, label_smoothing=0.1, **own)
    strategy.crew, strategy.parts = object(), (sp.EMA(0.9),)
    strategy.kept.put(torch.arange(2), torch.ones(2, 4))
    following = safer(strategy)
    assert isinstance(following, sp.PGDTraining)
    assert following.settings() == {**strategy.settings(), "steps": 2}
    assert following.kept is strategy.kept, "what was kept for each sample is where it goes on"
    assert following.crew is strategy.crew, "the processes that train together still do"
    assert safer(sp.NFGSM(THREAT, step_size=0.02, fraction=0.5, alpha=0.5)).settings()["step_size"] == 0.02  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (sp.PGDTraining(THREAT, 1, 0.02, keep=True), "PGDTraining(steps=2) in place of PGDTraining(steps=1)"),
        (sp.NFGSM(THREAT), "NFGSM(k=4.0) in place of NFGSM(k=2.0)"),
        (sp.FGSMTraining(THREAT), "NFGSM(k=2.0) in place of FGSMTraining"),
        (sp.FastFGSM(THREAT, 0.07), "NFGSM(k=2.0) in place of FastFGSM, without its step_size=0.07"),
        (sp.FastFGSM(sp.L2(1.0), 0.5), "PGDTraining(steps=2) in place of FastFGSM, without its step_size=0.5"),
        (sp.Free(THREAT, 4, 0.05), "PGDTraining(steps=3) in place of Free(m=4), without its step_size=0.05"),
        (sp.Mixed(sp.FGSM(THREAT)), "Mixed(PGD(steps=2)) in place of Mixed(FGSM(steps=1))"),
        (
            sp.PGDTraining(THREAT, schedule={0: 1}),
            "PGDTraining(schedule={0: 2}) in place of PGDTraining(schedule={0: 1})",
        ),
        (
            sp.Mixed(sp.PGD(THREAT, 10)),
            "Mixed(PGD(steps=10)) as it was, for no safer setting of it is known: another strategy, a lower lr or a "
            "smaller eps may prevent it",
        ),
        (sp.YOPO(THREAT, 2, 2), "YOPO(m=4) in place of YOPO(m=2)"),
        (sp.NFGSM(THREAT, 4.0), "PGDTraining(steps=2) in place of NFGSM(k=4.0)"),
    ],
)
def test_the_note_says_what_changed(strategy: sp.Strategy, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "judge", lambda _, __, history: [OVERFITTED] if len(history) == 2 else [])
    notes = train(strategy, sp.HealthCheck(16)).notes
    assert f"the weights are those of the last good epoch; training goes on with {said}" in notes


def test_yopo_with_more_passes_goes_on_from_what_is_kept() -> None:
    strategy = sp.YOPO(THREAT, 2, 3, form="gradient", keep=True)
    strategy.kept.put(torch.arange(2), torch.ones(2, 4))
    following = safer(strategy)
    assert isinstance(following, sp.YOPO)
    assert following.settings() == {**strategy.settings(), "m": 4}
    assert following.kept is strategy.kept


def test_yopo_with_more_passes_steps_as_far() -> None:
    """A step adds up the gradients of m passes: the rate that was chosen for some is too high for the sum of more."""

    class Again:
        def after_epoch(self, run: Any) -> None:
            if run.epoch == 0:
                run.roll_back()
                run.strategy = sp.YOPO(THREAT, 6, 2)

    ends = []
    for m, lr in ((2, 0.06), (3, 0.04), (6, 0.02)):
        net = network().double()
        x, y = samples()
        sp.fit(
            net, (x.double(), y), sp.YOPO(THREAT, m, 2), epochs=2, batch_size=32, lr=lr, schedule="constant", validation=False,
            callbacks=[Again()],
        )  # fmt: skip
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[1], ends[2], rtol=0, atol=1e-12)


def test_a_resumed_training_has_the_strategy_it_had() -> None:
    class Run:
        strategy = sp.FGSMTraining(THREAT)

    check, run = sp.HealthCheck(16), Run()
    check.load_state_dict({"said": ["few-updates"], "rescues": 2}, run)  # type: ignore[arg-type]
    assert run.strategy.k == 4.0
    assert check.state_dict() == {"said": ["few-updates"], "rescues": 2}
