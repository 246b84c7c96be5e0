"""The adaptive cascade: margin ascent, the pilot, the plan that it makes, and what the plan does to an evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import SHAPE, Counting, labelled, linear, mlp
from sparring.borrow import borrow
from sparring.evaluation import adaptive, load_result, pilot
from sparring.evaluation.claims import check_totals
from sparring.evaluation.pilot import Gains, Plan
from sparring.evaluation.study import ruggedness, study
from sparring.objective import margin
from sparring.report import words
from sparring.rows import Rows

EPS = 0.05


def literal(model: Any, x: Tensor, y: int, eps: float, rivals: int, steps: int) -> float:
    """Margin ascent on one sample under linf, step by step as its docstring says; the best difference that it met."""
    with torch.no_grad():
        clean = model(x[None])[0]
    order = [int(c) for c in clean.argsort(descending=True) if int(c) != y][:rivals]
    best, at = -math.inf, x.clone()
    for round_, rival in enumerate(order):
        z, velocity = (at.clone() if round_ else x.clone()), torch.zeros_like(x)
        for step in range(steps + 1):
            z = z.detach().requires_grad_()
            logits = model(z[None])[0]
            value = logits[rival] - logits[y]
            if value.item() > best:
                best, at = value.item(), z.detach().clone()
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(value, z)
            velocity = 0.75 * velocity + gradient / gradient.abs().mean()
            size = 2 * eps * (1 + math.cos(math.pi * step / steps)) / 2
            z = (z.detach() + size * velocity.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return best


def test_margin_ascent_is_its_literal_version() -> None:
    model = mlp(SHAPE)
    x, y = labelled(model, 6)
    adv = sp.MarginAscent(sp.Linf(EPS), steps=7, rivals=2)(model, x, y)
    expected = [literal(model, x[i], int(y[i]), EPS, 2, 7) for i in range(len(x))]
    with torch.no_grad():
        fools = model(adv.x).argmax(1) != y
    assert adv.success.equal(fools)
    for i in (~adv.success).nonzero().flatten().tolist():
        assert float(adv.objective[i]) == pytest.approx(expected[i], rel=1e-5)
    assert adv.forwards == len(x) * (1 + 2 * 8)  # the clean logits, and steps + 1 for each rival
    assert adv.backwards == len(x) * 2 * 7


@pytest.mark.parametrize("threat", [sp.Linf(0.02), sp.L2(0.1), sp.L1(0.3)], ids=str)
def test_on_a_linear_model_the_likeliest_rivals_margin_is_maximal(threat: sp.Threat) -> None:
    model = linear(SHAPE, 4)
    x, y = labelled(model, 8)
    x = 0.3 + 0.4 * x  # the box is far away
    y = model(x).argmax(1)
    adv = sp.MarginAscent(threat, steps=30, rivals=3)(model, x, y)
    weight = model[1].weight.detach()
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[threat.norm]
    logits = model(x).detach()
    for i in range(len(x)):
        apart = weight - weight[y[i]]
        reach = logits[i] - logits[i, y[i]] + threat.eps * apart.norm(dual, dim=1)
        reach[y[i]] = -math.inf
        assert float(adv.objective[i]) <= float(reach.max()) + 1e-9
        if threat.norm != "l1":  # an l1 step shares itself out among entries
            assert float(adv.objective[i]) == pytest.approx(
                float(reach.max()), abs=0.02 * abs(float(reach.max())) + 1e-6
            )


def test_two_classes_have_one_rival() -> None:
    model = linear(SHAPE, 2)
    x, y = labelled(model, 4)
    adv = sp.MarginAscent(sp.Linf(1e-6), steps=3, rivals=3)(model, x, y)
    assert adv.backwards == 4 * 3
    result = sp.evaluate(model, (x, y), sp.Linf(1e-6), checkup=False)
    assert result.robust_accuracy.count == 3
    assert [row["attacked"] for row in result.attacks][:3] == [3, 0, 0]  # there is no second rival to go for
    assert result.plan is not None
    assert result.plan.reached[:3] == (3, 0, 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"decay": 1.0}, "decay=1.0"),
        ({"reach": 0.0}, "reach=0.0"),
        ({"first": -1}, "first=-1"),
        ({"start": "there"}, "expected 'input' or 'given'"),
        ({"rivals": 0}, "rivals=0"),
    ],
)
def test_bad_settings_get_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        sp.MarginAscent(sp.Linf(EPS), **settings)
    assert "\n" not in str(caught.value)


def test_gains_are_means_and_what_was_lost_counts_as_nothing() -> None:
    gains = Gains([0])
    before = torch.ones(30)
    gains.see(0, before, before - torch.arange(-10, 20) / 100, torch.zeros(30, dtype=torch.bool))
    assert gains.gain(0) == pytest.approx(sum(range(20)) / 100 / 30)
    assert Gains([0]).gain(0) == 0
    some = Gains([1, 3])  # a pilot of two attacks of four
    some.see(1, before, before - 0.5, before > 0)
    assert [some.gain(number) for number in range(4)] == [0, 0, 0, 0.5]
    assert some.fooled == [0, 0, 0, 30]


def test_a_plan_follows_the_gains_and_survives_json() -> None:
    steps = adaptive.steps(sp.Linf(EPS))
    still, moving = Gains(range(6)), Gains(range(6))
    for number in range(6):
        same = torch.full((10,), 0.8)
        still.see(number, same, same, same < 0)
        moving.see(number, same, same - 0.3, same < 0)
    closed, open_ = (pilot.plan(steps, gains, 32, 10, 5) for gains in (still, moving))
    assert closed.gates[0] is None
    assert open_.gates[0] is None
    assert closed.gates == tuple(None if step.gate.near >= 1 else step.gate.near for step in steps)
    assert closed.gates[9] == 0  # where searching brings nothing nobody is searched for long
    assert open_.gates[7] == steps[7].gate.most
    assert (closed.raised, open_.raised) == (0, 1)
    blind = [i for i, step in enumerate(steps) if step.gate.blind]
    assert [steps[i].attack.name for i in blind] == ["APGD", "Square"]
    assert closed.blind == tuple(blind)
    assert open_.blind == (blind[1],)  # a search says more than another climb where gradients are masked for everybody
    assert open_.gates[8] == steps[8].gate.most
    assert Plan.from_json(json.loads(json.dumps(open_.to_json()))) == open_


def test_a_gain_that_opens_no_gate_is_no_raised_budget() -> None:
    """A hair over what is usual: every gate stays where it is, and so the result must not speak of a raised budget."""
    steps = adaptive.steps(sp.Linf(EPS))
    gains, same = Gains(range(6)), torch.full((10,), 0.8)
    for number in range(6):
        gains.see(number, same, same - (adaptive.USUAL + 1e-4 if number == 5 else 0), same < 0)
    made = pilot.plan(steps, gains, 32, 10, 5)
    assert made.gates == tuple(
        None if step.gate.near >= 1 else pytest.approx(step.gate.near, abs=0.002) for step in steps
    )
    assert made.raised == 0
    assert made.blind == tuple(i for i, step in enumerate(steps) if step.gate.blind)


def test_the_plan_decides_who_is_attacked_by_what() -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.02)
    x, y = labelled(model, 60)
    attacks = [sp.MarginAscent(threat, rivals=1), sp.Square(threat, queries=20, start="given")]
    gate = 0.6
    plan = Plan((None, gate), 0, (), (), (), 0, 0)
    result = sp.evaluate(model, (x, y), threat, attacks=attacks, plan=plan, checkup=False)
    everybody = sp.evaluate(model, (x, y), threat, attacks=attacks[:1], checkup=False)
    left = {row["index"]: row["closeness"] for row in everybody.samples() if row["correct"] and row["robust"]}
    assert 0 < sum(value <= gate for value in left.values()) < len(left)
    assert result.attacks[1]["attacked"] == sum(value <= gate for value in left.values())
    for row in result.samples():
        if row["index"] in left and left[row["index"]] > gate:
            assert row["robust"]
            assert row["closeness"] == left[row["index"]]
    with pytest.raises(ValueError, match="a plan for 2 attacks, and 1"):
        sp.evaluate(model, (x, y), threat, attacks=attacks[:1], plan=plan)


def test_closeness_is_what_is_left_of_the_margin() -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.01)
    x, y = labelled(model, 20)
    attack = sp.MarginAscent(threat, rivals=1)
    result = sp.evaluate(model, (x, y), threat, attacks=attack, checkup=False)
    adv = attack(model, x, y)
    with torch.no_grad():
        clean = margin(model(x), y)
    for row in result.samples():
        if row["robust"]:
            i = row["index"]
            assert row["closeness"] == pytest.approx(float(adv.objective[i] / clean[i]), rel=1e-4)


class Rounded(nn.Module):
    """A network that sees its input in steps: the gradient is zero everywhere."""

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * self.levels).round() / self.levels + 0 * x)


def test_a_network_that_hides_its_gradients_gets_a_search_and_a_warning() -> None:
    open_, threat = mlp(SHAPE), sp.Linf(0.1)
    x, y = labelled(open_, 30)
    masked = Rounded(open_, 12)
    plain = sp.evaluate(open_, (x, y), threat)
    hidden = sp.evaluate(masked, (x, masked(x).argmax(1)), threat)
    by_gradients = sp.evaluate(masked, (x, masked(x).argmax(1)), threat, attacks=sp.PGD(threat, steps=20))
    masking = next(warning for warning in hidden.warnings if warning.code == "masking")
    assert hidden.plan is not None
    assert plain.plan is not None
    whom = "" if hidden.plan.raised >= 1 else f" with up to {hidden.plan.raised:.0%} of its margin left"
    assert f"every sample{whom} was searched without gradients too" in masking.message
    assert "The budget was raised for all" in words.cost(hidden.document)
    assert plain.plan.raised == 0
    assert "raised" not in words.cost(plain.document)
    assert "masking" not in {warning.code for warning in plain.warnings}
    assert hidden.robust_accuracy.count < by_gradients.robust_accuracy.count - 4


def test_on_an_open_network_the_plan_keeps_the_search_shut() -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.02)
    counting = Counting(model)
    x, y = labelled(model, 200)
    result = sp.evaluate(counting, (x, y), threat)
    robust = result.robust_accuracy.count
    assert robust > 60
    assert (result.forwards, result.backwards) == (counting.forwards, counting.backwards)
    assert result.plan is not None
    assert max(gate or 0 for gate in result.plan.gates[6:]) < 0.1
    assert len(result.plan.gates) == len(adaptive.steps(threat)) == 18
    assert (result.forwards + result.backwards) / robust < 200
    thorough = sp.evaluate(
        model, (x, y), threat, attacks=[sp.PGD(threat, steps=100, restarts=3), sp.Square(threat, 500)]
    )
    assert robust <= thorough.robust_accuracy.count


def test_float64_verdicts_are_the_same_at_any_batch_size() -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.03)
    data = labelled(model, 50)
    results = [sp.evaluate(model, data, threat, batch_size=size) for size in (7, 64)]
    rows = [[(row["index"], row["robust"], row["attack"], row["forwards"]) for row in r.samples()] for r in results]
    assert rows[0] == rows[1]
    assert results[0].plan == results[1].plan


def test_shards_and_a_second_start_follow_the_plan_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.03)
    data = labelled(model, 40)
    whole = sp.evaluate(model, data, threat)
    first = sp.evaluate(model, data, threat, out=tmp_path, shard=(0, 2))
    assert Plan.from_json(json.loads((tmp_path / "plan.json").read_text())["plan"]) == whole.plan == first.plan

    def never(*_: Any, **__: Any) -> Plan:
        raise AssertionError("the pilot ran again")

    monkeypatch.setattr("sparring.evaluation.run.study", never)
    sp.evaluate(model, data, threat, out=tmp_path, shard=(1, 2))
    merged = sp.merge(tmp_path)
    assert merged.plan == whole.plan
    assert merged.robust.equal(whole.robust)
    assert merged.document["passes"]["pilot"] == whole.document["passes"]["pilot"]


def test_verify_follows_the_plan(tmp_path: Path) -> None:
    model, threat = mlp(SHAPE), sp.Linf(0.03)
    data = labelled(model, 40)
    sp.evaluate(model, data, threat, out=tmp_path)
    report = sp.verify(tmp_path, model, data)
    assert report.lies == []
    # attacked by everything, plan or no plan, some sample may well fall: that is no lie
    shut = json.loads((tmp_path / "result.json").read_text())["plan"]
    assert len(shut["gates"]) == len(adaptive.steps(threat))


def test_every_step_can_be_told_from_its_settings() -> None:
    from sparring.evaluation.cascade import recorded

    for threat in (sp.Linf(EPS), sp.L2(0.5), sp.L1(1.0)):
        attacks = [step.attack for step in adaptive.steps(threat)]
        again = recorded([{"name": a.name, "settings": a.settings()} for a in attacks], threat)
        assert again == [replace(a) for a in attacks]


class Corner(nn.Module):
    """Points (a, b) of the square, of class 0. Each of two rivals rises most towards a corner where it stays behind; where both
    rise together, at (1, 1), a third overtakes that is flat elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = (2 * x - 1).unbind(1)
        third = 100 * (torch.minimum(a, b) - 0.9).clamp_min(0) - 3 + 0.01 * (a - b)
        return 0.1 * torch.stack([torch.zeros_like(a), a - b / 2 - 2, b - a / 2 - 2, third], 1)


def test_where_climbing_each_rival_is_stuck_the_cascade_climbs_all_of_them_at_once() -> None:
    threat = sp.Linf(0.5)
    x, y = torch.full((40, 2), 0.5), torch.zeros(40, dtype=torch.int64)
    steps = adaptive.steps(threat)
    usual = pilot.plan(steps, Gains(range(6)), 0, 0, 0)  # every gate where it is before a pilot opens it

    def standing(attacks: list[Any]) -> int:
        return sp.evaluate(Corner(), (x, y), threat, attacks=attacks, plan=usual, checkup=False).robust_accuracy.count

    attacks: list[Any] = [step.attack for step in steps]
    assert standing(attacks) == 0
    soft = next(i for i, attack in enumerate(attacks) if getattr(attack, "objective", "") == "soft-margin")
    for objective in ("margin", "logit-difference"):
        assert standing([*attacks[:soft], replace(attacks[soft], objective=objective), *attacks[soft + 1 :]]) > 30


class Unsteady(nn.Module):
    """Adds noise to its input: near the boundary it answers now this, now that."""

    def __init__(self, net: nn.Module, noise: float) -> None:
        super().__init__()
        self.net, self.noise = net, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.noise * torch.randn_like(x))


def test_a_random_model_is_not_searched_and_its_examples_fool_most_of_the_time(tmp_path: Path) -> None:
    steady = mlp(SHAPE)
    x, y = labelled(steady, 80)
    with torch.no_grad():
        top = steady(x).topk(2).values
    clear = (top[:, 0] - top[:, 1]) > 0.1 * (top[:, 0] - top[:, 1]).median()
    x, y = x[clear], steady(x[clear]).argmax(1)
    model, threat = Unsteady(steady, 0.1), sp.Linf(0.03)
    result = sp.evaluate(model, (x, y), threat, checkup=False, out=tmp_path / "out")
    plan = result.plan
    assert plan is not None
    assert plan.random
    assert plan.looks == pilot.LOOKS
    rugged = [gate for gate, step in zip(plan.gates, adaptive.steps(threat), strict=True) if step.gate.rugged]
    assert rugged == [pilot.NEVER] * 5
    searches = [row for row in result.attacks if row["name"] == "Square"]
    assert searches
    assert all(row["attacked"] == 0 for row in searches)
    first, last = result.attacks[0], [row for row in result.attacks if row["name"] == "MarginAscent"][-1]
    assert first["backwards"] == 10 * first["attacked"]  # every step, though many fool by luck before the last
    assert last["attacked"] >= result.robust_accuracy.count  # everybody who stands met every ascent
    assert last["backwards"] == 60 * last["attacked"]  # a climb long enough for its momentum to average over draws
    assert check_totals(load_result(tmp_path / "out")) == []
    examples = {index: torch.as_tensor(example)[None] for index, _, example in result.examples}
    assert len(examples) > 10
    torch.manual_seed(1)
    with torch.no_grad():
        often = {i: sum(int(model(z).argmax(1) != y[i]) for _ in range(101)) for i, z in examples.items()}
    assert sum(times > 50 for times in often.values()) > 0.7 * len(often)  # with one look it would be half of them
    assert Plan.from_json(json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]) == plan
    assert result.document["passes"]["forwards"] > sum(row["forwards"] for row in result.attacks) + 9 * len(examples)


def test_the_last_search_begins_anew() -> None:
    """On fashion-quantised a fresh start finds in a thousand queries what two searches from the best point so far miss."""
    searches = [step for step in adaptive.steps(sp.Linf(0.1)) if isinstance(step.attack, sp.Square)]
    starts = [[step.attack.start for step in searches if step.gate.rugged == rugged] for rugged in (False, True)]
    assert starts == [["given", "given", "given", "stripes"], ["stripes", "given"]]


def test_an_attack_that_keeps_no_margin_leaves_the_account_as_it_was() -> None:
    """Samples go on to a gated attack behind it as if it had not been there."""
    model, threat = mlp(SHAPE), sp.Linf(0.02)
    x, y = labelled(model, 60)
    climb, search = sp.MarginAscent(threat, rivals=1), sp.Square(threat, queries=5)
    attacked = []
    for between in ([], [sp.APGD(threat, steps=1, objective="dlr")]):
        attacks = [climb, *between, search]
        plan = Plan((None, *(0.5 for _ in attacks[1:])), 0, (), (), (), 0, 0)
        result = sp.evaluate(model, (x, y), threat, attacks=attacks, plan=plan, checkup=False)
        attacked.append(result.attacks[-1]["attacked"])
    assert attacked[0] >= attacked[1] > 0
    assert attacked[0] - attacked[1] <= result.attacks[1]["fooled"]


def test_other_starts_are_for_rugged_networks_that_hide_nothing() -> None:
    steps = adaptive.steps(sp.Linf(EPS))
    gates = {}
    for name, rugged, gain in (("smooth", 0.009, 0.0), ("rugged", 0.03, 0.0), ("masked", 0.03, 0.4)):
        gains = Gains(range(6))
        gains.rugged = rugged
        same = torch.full((10,), 0.8)
        gains.see(5, same, same - gain, same > 1)
        made = pilot.plan(steps, gains, 32, 10, 5)
        assert made.rugged == rugged
        gates[name] = [gate for gate, step in zip(made.gates, steps, strict=True) if step.gate.rugged]
    assert gates["smooth"] == gates["masked"] == [0, 0, 0, 0, 0]
    assert gates["rugged"] == [0.25, 0.25, 0.25, 0.12, 0.03]


class Rippled(nn.Module):
    """A slope, and ripples across it in which a climb is caught where it begins."""

    def __init__(self, height: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.height = height
        self.slope = nn.Parameter(torch.randn(3, math.prod(SHAPE), generator=generator).double())
        self.waves = nn.Parameter(400 * torch.randn(3, math.prod(SHAPE), generator=generator).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return flat @ self.slope.T + self.height * (flat @ self.waves.T).sin()


def test_ruggedness_is_how_far_apart_two_climbs_end() -> None:
    threat = sp.Linf(0.03)
    found = []
    for height in (0.0, 0.5):
        model = Rippled(height)
        x, y = labelled(model, 60)
        everybody = torch.arange(60)
        rows = Rows(everybody, everybody, x, y, threat.for_inputs(x), reference=model(x).detach())
        halves = [rows[everybody < 25], rows[everybody >= 25]]
        with borrow(model) as borrowed:
            found.append(ruggedness(borrowed, halves, adaptive.twin(threat), 16, seed=0))
            assert borrowed.backwards <= 60 * 2 * 10
            assert ruggedness(borrowed, [], adaptive.twin(threat), 16, seed=0) == 0
    assert found[0] < 1e-4  # every climb ends in the corner that the slope leads to
    assert found[1] > 0.02
    steps = adaptive.steps(threat)
    with borrow(model) as borrowed:
        attacks: list[Any] = [step.attack for step in steps]
        more: dict[str, Any] = {"batch_size": 16, "max_samples": 12, "seed": 0, "indices": None}
        made = study(borrowed, (x, y), threat, steps, attacks, None, **more)
    assert made.rugged > adaptive.SMOOTH, "a pilot measures it"


def test_a_few_examples_that_do_not_hold_make_no_random_model() -> None:
    gains = Gains([0])
    gains.ask(torch.tensor([True] * 90 + [False] * 2))
    assert not gains.random  # rounding
    gains.ask(torch.tensor([False]))
    assert not gains.random  # three, but of many
    gains.ask(torch.tensor([False] * 2))
    assert gains.random


def test_samples_without_a_gradient_go_on_whatever_their_closeness() -> None:
    plan = Plan((None, 0.2, 0.2), 0, (), (), (), 0, 0, blind=(2,))
    closeness, zero = torch.tensor([0.1, 0.9, 0.9, 0.1]), torch.tensor([False, False, True, True])
    assert plan.admits(0, closeness, zero).tolist() == [True] * 4
    assert plan.admits(1, closeness, zero).tolist() == [True, False, False, True]
    assert plan.admits(2, closeness, zero).tolist() == [True, False, True, True]
