"""`fgsm` and `linear`, the single steps they rest on, and the networks that they keep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring import data
from sparring.experiments import fgsm, linear, networks
from sparring.experiments.measure import craft, errors
from sparring.experiments.networks import Recipe, trained
from sparring.training import Mixed, fit


class Hill(nn.Module):
    """Two classes on a line; class 1 wins outside [-0.3, 0.5] only, so a step of 0.6 from 0.1 can lead past the hill."""

    def forward(self, x: Tensor) -> Tensor:
        height = torch.where(x < 0.2, x - 0.05, 0.35 - 2 * (x - 0.2))
        return torch.cat([torch.zeros_like(x), height], 1)


def test_a_single_step_goes_where_it_leads() -> None:
    x, y = torch.tensor([[0.1]]), torch.tensor([0])
    step = sp.FGSM(sp.Linf(0.6))(Hill(), x, y)
    assert step.x.item() == pytest.approx(0.7), "the loss is lower there than at the start"
    assert sp.FGSM(sp.Linf(0.6), keep="best")(Hill(), x, y).x.item() == pytest.approx(0.1)


def test_a_single_step_in_closed_form() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(8, 3, 2, 2, generator=generator), torch.arange(8) % 2
    w = model[1].weight[1] - model[1].weight[0]
    direction = (torch.where(y == 0, 1, -1)[:, None] * w.sign()).view_as(x)
    step = sp.FGSM(sp.Linf(0.25))
    torch.testing.assert_close(step(model, x, y).x, (x + 0.25 * direction).clamp(0, 1))
    torch.testing.assert_close(step(model, x, y, targets=y).x, (x - 0.25 * direction).clamp(0, 1))
    torch.testing.assert_close(sp.FGSM(sp.Linf(0.25, bounds=None))(model, x, y).x, x + 0.25 * direction)


def test_r_fgsm_spends_half_of_eps_on_a_random_sign() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    x, y = torch.full((6, 3, 2, 2), 0.5), torch.arange(6) % 2
    step = sp.RFGSM(sp.Linf(0.2))
    change = step(model, x, y, seed=3).x - x
    aligned = sp.FGSM(sp.Linf(0.1))(model, x, y).x - x
    assert set((change - aligned).mul(10).round().flatten().tolist()) == {-1.0, 1.0}
    order = torch.tensor([4, 0, 5])
    torch.testing.assert_close(step(model, x[order], y[order], indices=order, seed=3).x, (x + change)[order])
    assert not torch.equal(step(model, x, y, seed=4).x, x + change)


def test_errors_are_counted_over_all_and_confidence_over_the_wrong() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    found = errors(Given(), p, torch.tensor([0, 0, 0, 1]))
    assert (found.rate.count, found.rate.total) == (2, 4)
    assert found.confidence == pytest.approx((0.8 + 0.6) / 2)
    assert errors(Given(), p[:1], torch.tensor([0])).confidence is None


def test_crafting_in_batches_changes_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.rand(600, 1, 2, 2), torch.arange(600) % 3
    attack = sp.RFGSM(sp.Linf(0.1))
    whole = attack(model, x, y, indices=torch.arange(600), seed=2).x
    torch.testing.assert_close(craft(attack, model, x, y, seed=2), whole)


TINY = Recipe("softmax", epochs=1, lr=0.01)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """A cache of its own, and a data set of 400 images wherever the experiments look for one."""
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    parts = []
    for split, count in (("train", 400), ("test", 60)):
        x, y = data.open("fashion-mnist:bundled", split).tensors(count)
        pixels = x.mul(255).round().byte().numpy()
        parts.append(data.LabelledImages(pixels, y.numpy(), name=split, spec={}))
    for module in (fgsm, linear):
        monkeypatch.setattr(module, "open_pair", lambda name: tuple(parts))
    return parts[0].tensors()


def test_a_network_is_trained_once(
    small: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = small
    calls = []

    def counted(*args: object, **settings: object) -> object:
        calls.append(settings)
        return fit(*args, **settings)

    monkeypatch.setattr(networks, "fit", counted)
    model, settings = trained(TINY, x, y, 10)
    again, _ = trained(TINY, x, y, 10)
    assert len(calls) == 1
    assert settings["epochs"] == 1
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert not again.training
    (path,) = (tmp_path / "cache").iterdir()

    for recipe, labels in ((replace(TINY, lr=0.02), y), (TINY, y.roll(1)), (replace(TINY, seed=1), y)):
        before = len(calls)
        other, _ = trained(recipe, x, labels, 10)
        assert len(calls) == before + 1, "another recipe, data or seed is another network"
        assert not torch.equal(other(x), model(x))

    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{path.name}.*delete it to train anew"):
        trained(TINY, x, y, 10)


def test_fgsm_training_crafts_with_fgsm(small: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(networks, "fit", lambda *args, **settings: given.extend(args))
    trained(networks.fgsm_trained(networks.MAXOUT, 0.25), *small, 10)
    strategy = given[2]
    assert isinstance(strategy, Mixed)
    assert isinstance(strategy.attack, sp.FGSM)
    assert (strategy.attack.threat.eps, strategy.attack.keep, strategy.alpha) == (0.25, "last", 0.5)


def test_fgsm_from_end_to_end(small: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_maxout = Recipe("maxout", epochs=2, lr=0.005, arguments={"units": 12, "pieces": 2, "dropout": (0.0, 0.0)})
    monkeypatch.setattr(fgsm, "SOFTMAX", TINY)
    monkeypatch.setattr(fgsm, "MAXOUT", tiny_maxout)
    told: list[float] = []
    result = fgsm.run(["mnist"], 50, 20, 4, out=tmp_path / "out", progress=lambda message, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1
    rows = {(row["network"], row["attack"]): row for row in result.rows}
    assert {network for network, _ in rows} == {"softmax", "maxout", "maxout, FGSM-trained"}
    assert rows["softmax", fgsm.UNCLIPPED]["paper error"] == 0.999
    assert rows["maxout", fgsm.UNCLIPPED]["paper confidence"] == 0.976
    assert rows["softmax", "FGSM"]["paper error"] is None
    assert rows["softmax", "FGSM"]["samples"] == 50
    assert rows["softmax", "PGD, 4 steps"]["samples"] == 20
    assert rows["softmax", "no attack"]["error"] < 0.6 < rows["softmax", "FGSM"]["error"]
    assert all(row["low"] <= row["error"] <= row["high"] for row in result.rows)

    # the same by hand, for a row that needs two networks
    x, y = small
    test, labels = fgsm.open_pair("mnist")[1].tensors(50)
    source, _ = trained(tiny_maxout, x, y, 10)
    target, _ = trained(networks.fgsm_trained(tiny_maxout, 0.25), x, y, 10)
    moved = sp.FGSM(sp.Linf(0.25))(source, test, labels).x
    wrong = (target(moved).argmax(1) != labels).float().mean().item()
    assert rows["maxout, FGSM-trained", "FGSM, transferred"]["error"] == pytest.approx(wrong)

    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fgsm.png", "fgsm.svg", "numbers.json"}
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers["settings"]["recipes"]["mnist, maxout, FGSM-trained"]["fgsm"] == 0.25


def test_linear_from_end_to_end(small: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Recipe("maxout", epochs=4, lr=0.005, arguments={"units": 16, "pieces": 2, "dropout": (0.0, 0.0)})
    for name, recipe in (
        ("SOFTMAX", TINY),
        ("SMALL_MAXOUT", tiny),
        ("MAXOUT", tiny),
        ("OTHER", replace(TINY, lr=0.02)),
    ):
        monkeypatch.setattr(linear, name, recipe)
    result = linear.run("any", 0.1, (0.1,), (7, 28, 30), 40, 21, out=tmp_path / "out")

    for g in result.growth:
        assert g.inputs == g.side**2
        assert g.predicted == pytest.approx(0.1 * g.mean_weight * g.inputs)
        assert g.at_random < g.measured
        if g.network == "softmax":
            assert g.measured == pytest.approx(g.predicted, rel=1e-4), "a linear score grows by eps·‖w‖₁ exactly"
    assert len({g.inputs for g in result.growth}) == 3

    line = result.line
    assert (line.t[0], line.t[10], line.t[-1]) == pytest.approx((-1, 0, 1), abs=1e-9)
    assert len(line.logits) == 10
    assert len(line.logits[0]) == 21
    assert line.error[-1] > 0.9 > line.error[10] > line.error[8]
    middle = torch.tensor([logits[10] for logits in line.logits])
    assert middle.argmax() == line.label, "the image shown is one that is classified right"

    assert [(t.crafted_on, t.shown_to) for t in result.transfer[::3]] == [("maxout", "softmax"), ("softmax", "maxout")]
    for t in result.transfer:
        assert t.both.total == t.source.count
        assert t.both.count <= min(t.source.count, t.target.count)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"linear.png", "linear.svg", "numbers.json"}
    json.loads((tmp_path / "out" / "numbers.json").read_text())


def test_straightness() -> None:
    t = torch.linspace(0, 1, 41)
    line, bend = 3 * t - 7, (t - 0.5).abs()
    assert linear._straight(t, line[:, None].double()) == pytest.approx(1)
    assert linear._straight(t, bend[:, None].double()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("experiment", "settings", "message"),
    [
        (fgsm, {"datasets": []}, "expected at least one data set"),
        (fgsm, {"samples": 0}, "samples=0"),
        (linear, {"eps": 0.0}, "eps=0.0"),
        (linear, {"points": 2}, "points=2"),
    ],
)
def test_what_cannot_be_run_is_said(experiment: object, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.run(**settings)


def test_data_that_is_missing_names_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="fashion-mnist:bundled is always here"):
        fgsm.run(["mnist"])
