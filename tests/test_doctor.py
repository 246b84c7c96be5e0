"""The doctor: every finding comes on a network that was built to have it, and on none that was built not to."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.cli import main
from sparring.training.findings import judge
from sparring.training.symptoms import Answers, Attacked, Examination, Symptoms

THREAT = sp.Linf(0.05)


def samples(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three kinds of 6×6 pictures, easily told apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    x = 0.3 * torch.rand(n, 1, 6, 6, generator=generator)
    for label in range(3):
        x[y == label, :, 2 * label : 2 * label + 2] += 0.5
    return x, y


@cache
def trained(momentum: float = 0.1, steps: int = 60) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    strategy = sp.Mixed(sp.PGD(THREAT, steps=2))
    for step in range(steps):
        x, y = samples(64, seed=step)
        for loss in strategy(net, sp.Batch(x, y, step=step)):
            loss.value.backward()
            optimizer.step()
            optimizer.zero_grad()
    return net


class Scaled(nn.Module):
    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = copy.deepcopy(net), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.factor)


def codes(model: nn.Module, threat: sp.Threat | None = THREAT, **more: Any) -> tuple[str, ...]:
    return sp.diagnose(model, samples(), threat, **more).codes


def test_a_healthy_network_gets_a_clean_bill() -> None:
    found = sp.diagnose(trained(), samples(), THREAT, history=[{"loss": 1.0}, {"loss": 0.1}])
    assert found.codes == ()
    assert str(found) == "nothing wrong was found"
    measured = found.to_json()["measured"]
    assert measured["running"]["accuracy"] > 0.95
    assert [layer["name"] for layer in measured["layers"]] == ["1", "4"]
    assert measured["attacked"]["many_steps"] > 0.8


def test_the_drift_is_that_of_the_data() -> None:
    net = copy.deepcopy(trained()).double()
    x, y = samples(96)
    x = x.double()
    with torch.no_grad():
        flat = net[0](x).transpose(0, 1).flatten(1)
    std = flat.std(1, correction=0)
    net[1].running_mean.copy_(flat.mean(1) + 2 * std)
    net[1].running_var.copy_(9 * std**2)
    first = Examination(net, x, y, size=32).drift()[0]
    assert first.name == "1"
    assert math.isclose(first.shift, 2, rel_tol=1e-3)
    assert math.isclose(first.scale, 3, rel_tol=1e-9)
    assert first.spread < 1e-9
    assert math.isclose(first.stretch, math.log(9), rel_tol=2e-2)  # eps is part of what normalises


@pytest.mark.parametrize("factor", [1 / 40, 40.0])
def test_inputs_at_another_scale_than_in_pretraining(factor: float) -> None:
    model = Scaled(trained(), factor)
    found = sp.diagnose(model, samples(), THREAT)
    assert ("running-statistics" in found.codes) == (factor < 1), "the larger ones are still told apart"
    assert "few-updates" not in found.codes
    first = found.findings[0]
    assert first.code == "input-scale"
    assert math.isclose(float(first.what.split("×")[0].split()[-1]), 40, rel_tol=0.02)
    assert "the inputs look like [0, 1]" in first.what
    assert ("larger" if factor < 1 else "smaller") in first.what
    sp.recalibrate(model, samples())
    assert not {"input-scale", "running-statistics", "few-updates"} & set(codes(model))


def test_too_few_updates_for_the_momentum_and_the_cure_works() -> None:
    model = copy.deepcopy(trained(momentum=0.002))
    found = sp.diagnose(model, samples(), THREAT)
    assert "input-scale" not in found.codes, "what a layer begins with is nobody's pretraining"
    what = next(finding for finding in found.findings if finding.code == "few-updates")
    assert "after 60 updates at momentum 0.002, 89% of its first statistics are left" in what.evidence
    assert "2000 updates are needed" in what.cure
    sp.recalibrate(model, samples())
    assert codes(model) == ()


def test_gradients_of_another_mode() -> None:
    seen = sp.diagnose(trained(momentum=0.002), samples(), THREAT).symptoms
    assert 0 < seen.gain["batch"]["batch"] < 0.01, "nothing to speak of: whatever crosses over, nobody is told"
    assert "mode-gradients" not in [f.code for f in judge(seen, "running")]
    seen.gain = {"batch": {"batch": 1.0, "running": 0.0}, "running": {"batch": 0.3, "running": 1.0}}
    assert "mode-gradients" in [f.code for f in judge(seen, "running")]
    assert "mode-gradients" not in [f.code for f in judge(seen, "batch")]
    seen.gain["running"]["batch"] = 0.8
    assert "mode-gradients" not in [f.code for f in judge(seen, "running")]


def test_constant_predictions() -> None:
    model = copy.deepcopy(trained())
    with torch.no_grad():
        model[-1].bias[1] += 1e3
    found = sp.diagnose(model, samples(), THREAT)
    assert "constant-predictions" in found.codes
    assert any("class 1 for 100.0% of 256 samples" in finding.evidence for finding in found.findings)
    x, _ = samples()
    assert "constant-predictions" not in sp.diagnose(model, (x, torch.ones(256, dtype=torch.long)), THREAT).codes


def test_what_is_not_finite_is_named_and_nothing_else_is_said() -> None:
    model = copy.deepcopy(trained())
    model[4].running_var[2] = math.nan
    found = sp.diagnose(model, samples(), THREAT)
    assert found.codes == ("divergence",)
    assert "NaN or inf in 1 tensors: 4.running_var" in found.findings[0].evidence


@pytest.mark.parametrize(
    ("losses", "due"),
    [
        ([2.3, 1.0, 0.5], False),
        ([2.3, 0.5, 2.2], True),
        ([2.3, 0.5, 0.9], False),  # a bad epoch, or a harder attack
        ([2.3, math.nan], True),
        ([2.3], False),
    ],
)
def test_divergence_by_the_loss(losses: list[float], due: bool) -> None:
    history = [{"loss": loss} for loss in losses]
    assert ("divergence" in codes(trained(), history=history)) == due


class Masked(nn.Module):
    """Withstands one step from the sample and nothing else: near a grid of values its gradient points the wrong way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval()

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(x * 900) * 0.004  # steep and shallow: it decides every gradient, and hardly any answer
        return self.net(x + wave)


def test_catastrophic_overfitting() -> None:
    seen = symptoms(one=0.9, many=0.05, cosine=0.02)
    assert [f.code for f in judge(seen)] == ["catastrophic-overfitting"]
    finding = next(judge(seen))
    assert "90.0% after one step, 5.0% after ten steps" in finding.evidence
    assert not list(judge(symptoms(one=0.6, many=0.5, cosine=0.9))), "adversarially trained"
    assert not list(judge(symptoms(one=0.2, many=0.0, cosine=0.1))), "undefended: one step breaks it, too"
    assert not list(judge(symptoms(one=0.6, many=0.3, cosine=0.8))), "many steps find more, as they do everywhere"


def test_label_leaking() -> None:
    assert [f.code for f in judge(symptoms(clean=0.8, one=0.9, many=0.7, cosine=0.9))] == ["label-leaking"]
    assert not list(judge(symptoms(clean=0.8, one=0.8, many=0.7, cosine=0.9)))


def symptoms(*, one: float, many: float, cosine: float, clean: float = 0.95, n: int = 200) -> Symptoms:
    def right(share: float) -> Tensor:
        return torch.arange(n) < round(share * n)

    answers = {"running": Answers(right(clean), 0.3, 0.12, 0, 0.2)}
    attacked = Attacked("running", right(one), right(many), cosine)
    return Symptoms(n, 10, torch.arange(n) % 10, (0, 1, 0.3, 0.2), [], answers=answers, attacked=attacked)


def rows(validation: list[float], train: list[float]) -> list[dict[str, float]]:
    return [
        {"loss": 1.0, "validation_robust_accuracy": v, "robust_accuracy": t}
        for v, t in zip(validation, train, strict=True)
    ]


@pytest.mark.parametrize(
    ("validation", "train", "due"),
    [
        ([0.30, 0.45, 0.52, 0.51, 0.48, 0.46], [0.3, 0.5, 0.6, 0.7, 0.8, 0.9], True),
        ([0.30, 0.45, 0.50, 0.51, 0.52, 0.52], [0.3, 0.5, 0.6, 0.7, 0.8, 0.9], False),
        ([0.30, 0.45, 0.55, 0.51, 0.52, 0.51], [0.3, 0.5, 0.6, 0.7, 0.8, 0.9], False),  # one lucky epoch
        ([0.30, 0.45, 0.52, 0.52, 0.20, 0.10], [0.3, 0.5, 0.6, 0.6, 0.3, 0.2], False),  # it forgets: not overfitting
        ([0.52, 0.40], [0.5, 0.6], False),  # too short to tell
    ],
)
def test_robust_overfitting(validation: list[float], train: list[float], due: bool) -> None:
    found = sp.diagnose(trained(), samples(), THREAT, history=rows(validation, train))
    assert ("robust-overfitting" in found.codes) == due


def test_a_network_with_wavy_gradients_is_measured_as_such() -> None:
    x, y = samples(64)
    straight = Examination(trained(), x, y).attacked(THREAT, "running")
    wavy = Examination(Masked(trained()), x, y).attacked(THREAT, "running")
    assert straight.cosine > 0.6
    assert wavy.cosine < 0.2
    assert float(wavy.one_step.double().mean()) > float(straight.one_step.double().mean()) - 0.02


def test_nothing_in_the_model_moves() -> None:
    model = copy.deepcopy(trained())
    model.train()
    model[4].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    found = sp.diagnose(model, samples(), THREAT)
    assert [layer.name for layer in found.symptoms.layers] == ["1"], "frozen layers are as they are meant to be"
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), rng)
    assert found.to_json() == sp.diagnose(model, samples(), THREAT).to_json()


def test_what_was_not_looked_at_is_said() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    found = sp.diagnose(plain, samples())
    assert len(found.skipped) == 3
    assert "no threat was given" in found.skipped[0]
    assert found.symptoms.attacked is None
    assert sp.diagnose(plain, samples(), strategy=sp.PGDTraining(THREAT)).symptoms.attacked is not None


def test_frozen_layers_are_told_from_none() -> None:
    """A network that was loaded in eval mode, then wrapped: its layers look frozen, and the user is told how to thaw them."""
    wrapped = nn.Sequential(copy.deepcopy(trained()).eval())
    assert wrapped.training
    found = sp.diagnose(wrapped, samples(), THREAT)
    assert found.symptoms.layers == []
    assert "all 2 BatchNorm layers are frozen" in found.skipped[0]
    assert "model.eval()" in found.skipped[0]
    seen = sp.diagnose(wrapped.eval(), samples(), THREAT)
    assert len(seen.symptoms.layers) == 2
    assert not any("statistics" in line for line in seen.skipped)
    without = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False), nn.Linear(36, 3))
    assert "no BatchNorm that learns" in sp.diagnose(without, samples(), THREAT).skipped[0]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: sp.diagnose(trained(), samples(), samples=1), "expected at least 2, for batch statistics"),
        (lambda: sp.diagnose(trained(), samples(1)), "the data hold one sample"),
        (lambda: sp.diagnose(trained(), (samples()[0], samples()[1] + 7)), "7"),
        (lambda: sp.HealthCheck(samples=2), "expected at least 16 samples"),
    ],
)
def test_bad_input_gets_one_line(call: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        call()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = samples()
    import numpy as np

    np.savez(tmp_path / "signs.npz", x=(x * 255).round().byte().numpy(), y=y.numpy())
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make(momentum=0.1):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(),\n"
        "        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))\n"
    )
    run = ["doctor", "--model", f"{tmp_path}/nets.py:make", "--data", f"{tmp_path}/signs.npz", "--eps", "0.05"]
    for momentum, code in ((0.1, 0), (0.002, 1)):
        torch.save(trained(momentum).state_dict(), tmp_path / "net.pt")
        given = [*run, "--model-args", f"momentum={momentum}", "--weights", str(tmp_path / "net.pt")]
        assert main(given) == code
        said = capsys.readouterr().out
        assert ("few-updates: BatchNorm has seen too few batches" in said) == bool(code)
        assert ("nothing wrong was found" in said) != bool(code)
        assert main([*given, "--json"]) == code
        document = json.loads(capsys.readouterr().out)
        assert bool(document["findings"]) == bool(code)
        assert document["measured"]["samples"] == 256
    history = tmp_path / "history.json"
    history.write_text(json.dumps({"epochs": rows([0.3, 0.5, 0.5, 0.4, 0.3, 0.2], [0.3, 0.4, 0.5, 0.6, 0.7, 0.8])}))
    assert main([*given, "--history", str(history)]) == 1
    assert "robust-overfitting" in capsys.readouterr().out
    history.write_text("[1]")
    assert main([*given, "--history", str(history)]) == 2
    assert "expected a list of objects, one an epoch" in capsys.readouterr().err
    history.write_text("epoch,loss\n1,0.5\n")
    assert main([*given, "--history", str(history)]) == 2
    assert "is no JSON: expected the history.json of a training" in capsys.readouterr().err
    assert main([*given, "--history", str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file" in capsys.readouterr().err
