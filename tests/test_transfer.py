"""Transfer: DI-FGSM against a literal loop, ensembles, and the matrix against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from networks import RowWise, inputs, linear, mlp
from sparring.borrow import borrow
from sparring.cli.app import main
from sparring.noise import Noise
from sparring.transforms import ResizedAndPadded

SHAPE = (3, 6, 7)
THREAT = sp.Linf(0.05)


def literal(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, decay: float, probability: float) -> Tensor:
    """M-DI-FGSM as the papers write it, one sample at a time."""
    found = []
    for i in range(len(x)):
        origin, at, velocity = x[i : i + 1], x[i : i + 1], torch.zeros_like(x[i : i + 1])
        for step in range(steps):
            u = Noise(5, torch.tensor([i])).uniform((4,), "diversity", 0, step).double()
            leaf = at.clone().requires_grad_()
            seen = ResizedAndPadded(probability, 0.7).at(leaf, u)
            (g,) = torch.autograd.grad(F.cross_entropy(net(seen), y[i : i + 1]), leaf)
            velocity = decay * velocity + g / g.abs().mean()
            at = (at + 0.25 * eps * velocity.sign()).clamp(origin - eps, origin + eps).clamp(0, 1)
        found.append(at)
    return torch.cat(found)


@pytest.mark.parametrize(("decay", "probability"), [(1.0, 0.5), (0.0, 1.0), (0.7, 0.0)])
def test_difgsm_against_the_papers_loop(decay: float, probability: float) -> None:
    net, (x, y) = RowWise(SHAPE), inputs(6, SHAPE, 3)
    attack = sp.DIFGSM(THREAT, steps=10, decay=decay, probability=probability, resize=0.7)
    found = attack(net, x, y, seed=5)
    assert torch.allclose(found.x, literal(net, x, y, 0.05, 10, decay, probability), atol=1e-12)
    assert (found.forwards, found.backwards) == (66, 60), "K + 1 forwards, K backwards"
    assert torch.equal(found.success, net(found.x).argmax(1) != y), (
        "judged on what was returned, not on what was shrunk"
    )
    if probability == 0:
        plain = sp.MIFGSM(THREAT, steps=10, decay=decay, keep="last")(net, x, y)
        assert torch.equal(plain.x, found.x)
    halves = [attack(net, x[i], y[i], seed=5, indices=i).x for i in (torch.tensor([4, 1, 5]), torch.tensor([0, 2, 3]))]
    assert torch.equal(found.x[[4, 1, 5, 0, 2, 3]], torch.cat(halves))


def test_difgsm_in_half_precision_targets_and_evaluate() -> None:
    net, (x, _) = mlp((1, 8, 8), 3), inputs(30, (1, 8, 8), 3)
    y = net(x).argmax(1)
    found = sp.DIFGSM(sp.Linf(0.2))(net, x, y, (y + 1) % 3)
    assert int(found.success.sum()) > 15
    assert torch.equal(found.prediction[found.success], ((y + 1) % 3)[found.success])
    half = sp.DIFGSM(sp.Linf(0.2))(net.bfloat16(), x.bfloat16(), y)
    assert half.x.dtype == torch.bfloat16
    assert float((half.x.double() - x.bfloat16().double()).abs().max()) <= 0.2
    net.double()
    result = sp.evaluate(net, (x, y), THREAT, attacks="difgsm", batch_size=7)
    assert result.robust_accuracy.count == int((~sp.DIFGSM(THREAT)(net, x, y).success).sum())


def test_difgsm_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"DIFGSM works on images: expected x \(B, C, H, W\), given shape \(2, 6\)"):
        sp.DIFGSM(THREAT)(linear((6,)), torch.rand(2, 6).double(), torch.zeros(2).long())
    for settings, message in [
        ({"keep": "best"}, "keep='best'.*'last'"),
        ({"probability": 1.5}, "DIFGSM: probability=1.5"),
        ({"resize": 1.1}, "DIFGSM: resize=1.1"),
        ({"decay": -1.0}, "decay=-1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            sp.DIFGSM(THREAT, **settings)


def test_an_ensemble_by_hand() -> None:
    nets, (x, y) = [RowWise(SHAPE, seed=s) for s in range(3)], inputs(5, SHAPE, 3)
    share = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).view(3, 1, 1)
    for combine in ("logits", "probabilities", "loss"):
        model = sp.ensemble(nets, [2, 1, 1], combine)
        with borrow(model) as borrowed:
            logits, _, gradient = borrowed.probe(x, lambda z: F.cross_entropy(z, y, reduction="none"))
            assert (borrowed.forwards, borrowed.backwards) == (15, 15)
        leaf = x.clone().requires_grad_()
        parts = torch.stack([net(leaf) for net in nets])
        mean = (share * parts.softmax(2)).sum(0).log() if combine == "probabilities" else (share * parts).sum(0)
        loss = F.cross_entropy(mean, y, reduction="none")
        if combine == "loss":
            loss = (share[:, :, 0] * torch.stack([F.cross_entropy(p, y, reduction="none") for p in parts])).sum(0)
        assert torch.allclose(logits, mean, rtol=1e-12)
        assert torch.allclose(gradient, torch.autograd.grad(loss.sum(), leaf)[0], rtol=1e-10)
    certain = sp.ensemble([lambda x: 1e4 * x, lambda x: -1e4 * x], combine="probabilities")
    assert bool(certain(torch.randn(4, 3)).isfinite().all()), "no logarithm of 0"


def test_an_ensembles_members_are_borrowed_and_counted() -> None:
    drops = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear((126,), 3))
    plain = linear(SHAPE, 3, seed=1)
    model = sp.ensemble([drops, lambda x: plain(x)])
    plain.train()
    x, y = inputs(4, SHAPE, 3)
    found = sp.PGD(THREAT, steps=3)(model, x, y)
    assert (found.forwards, found.backwards) == (32, 24)
    assert drops.training
    assert plain.training
    again = sp.PGD(THREAT, steps=3)(model, x, y)
    assert torch.equal(found.x, again.x), "nothing was dropped"
    assert all(p.grad is None and p.requires_grad for p in [*drops.parameters(), *plain.parameters()])
    nested = sp.ensemble([model, sp.expectation(plain, 4)])
    assert sp.PGD(THREAT, steps=1)(nested, x, y).forwards == 4 * 2 * (2 + 4)
    result = sp.evaluate(model, (x, y), THREAT, attacks=sp.PGD(THREAT, steps=3), checkup=False)
    assert result.document["passes"]["clean"] == 8
    sp.PGD(THREAT, steps=1)(sp.ensemble([drops.half(), plain.half()], combine="loss"), x.half(), y)


def test_what_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match="no models"):
        sp.ensemble([])
    with pytest.raises(ValueError, match=r"weights=\[1\] for 2 models"):
        sp.ensemble([linear((4,)), linear((4,))], [1])
    with pytest.raises(ValueError, match=r"member 0 returns \(2, 2\), member 1 \(2, 3\)"):
        sp.ensemble([linear((4,), 2), linear((4,), 3)])(torch.rand(2, 4).double())


def test_the_matrix_against_counting_by_hand(tmp_path: Path) -> None:
    nets = {name: RowWise(SHAPE, seed=s) for s, name in enumerate(("a", "b", "c"))}
    x, y = inputs(60, SHAPE, 3, seed=3)
    attacks = {"one step": sp.FGSM(THREAT), "many": sp.PGD(THREAT, steps=5, keep="last")}
    matrix = sp.transfer_matrix(nets, (x, y), THREAT, attacks, batch_size=17)
    for number, (name, attack) in enumerate(attacks.items()):
        for source, net in nets.items():
            made = attack(net, x, y, seed=1_000_003 * number).x
            for target, other in nets.items():
                both = (net(x).argmax(1) == y) & (other(x).argmax(1) == y)
                rate = matrix[name, source, target]
                assert rate.total == int(both.sum()) > 0
                assert rate.count == int((both & (other(made).argmax(1) != y)).sum())
    assert {name: rate.count for name, rate in matrix.clean.items()} == {
        name: int((net(x).argmax(1) == y).sum()) for name, net in nets.items()
    }
    assert sp.transfer_matrix(nets, (x, y), THREAT, attacks, batch_size=60).to_json() == matrix.to_json()
    paths = matrix.save(tmp_path / "out")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()}
    kept = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert kept["rates"]["many"]["a"]["b"]["count"] == matrix["many", "a", "b"].count
    assert len(matrix.table().splitlines()) == 2 + 6
    assert "→ c" in matrix.rows[0]


def test_the_matrix_counts_passes_and_draws_its_cells() -> None:
    nets = {"a": RowWise(SHAPE, seed=0), "b": RowWise(SHAPE, seed=1)}
    x, y = inputs(30, SHAPE, 3)
    seen = dict.fromkeys(nets, 0)
    for name, net in nets.items():
        net.register_forward_hook(lambda _, given, out, name=name: seen.update({name: seen[name] + len(out)}))
    matrix = sp.transfer_matrix(
        nets, (x, y), THREAT, [sp.FGSM(THREAT), sp.PGD(THREAT, steps=2), sp.PGD(THREAT, steps=4)]
    )
    assert matrix.forwards == seen
    assert list(matrix.rates) == ["FGSM", "PGD", "PGD-4"]
    panels = matrix.figure().axes
    assert [axes.get_title("left") for axes in panels] == ["FGSM", "PGD", "PGD-4"]
    for axes, rates in zip(panels, matrix.rates.values(), strict=True):
        assert [t.get_text() for t in axes.texts] == [f"{rates[s][t].value:.0%}" for s in nets for t in nets]
        assert axes.images[0].get_array().tolist() == [[rates[s][t].value for t in nets] for s in nets]
        assert len(axes.patches) == 2, "the white-box cells are framed"


def test_sources_that_are_no_targets() -> None:
    a, b, c = (RowWise(SHAPE, seed=s) for s in range(3))
    x, _ = inputs(40, SHAPE, 3)
    y = c(x).argmax(1)
    both = {"a and b": sp.ensemble([a, b])}
    matrix = sp.transfer_matrix(both, (x, y), THREAT, [sp.FGSM(THREAT)], targets={"c": c})
    right = sp.ensemble([a, b])(x).argmax(1) == y
    assert matrix["FGSM", "a and b", "c"].total == int(right.sum())
    assert matrix.forwards["a and b"] == 2 * (40 + 2 * int(right.sum()))
    assert matrix.backwards == {"a and b": 2 * int(right.sum()), "c": 0}


def test_a_matrix_that_cannot_be() -> None:
    net, data = RowWise(SHAPE), inputs(4, SHAPE, 3)
    pgd = sp.PGD(THREAT)
    for arguments, message in [
        (([net], data, THREAT), "models is list: expected a dict"),
        (({"a": net}, data, THREAT, []), "attacks is empty"),
        (({"a": net}, data, THREAT, [pgd, pgd, pgd]), "two attacks are called PGD-40"),
        (({"a": net}, data, THREAT, {"x": 3}), "attack 'x' is int"),
        (({"a": net}, data, sp.Linf(0.1), [pgd]), "works under Linf"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message) as raised:
            sp.transfer_matrix(*arguments)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="'a' is one model among the sources and another among the targets"):
        sp.transfer_matrix({"a": net}, data, THREAT, targets={"a": RowWise(SHAPE)})
    nothing = sp.transfer_matrix({"a": net}, (data[0], (net(data[0]).argmax(1) + 1) % 3), THREAT, [pgd])
    assert nothing["PGD", "a", "a"].total == 0
    assert nothing.to_json()["rates"]["PGD"]["a"]["a"]["value"] is None
    assert "–" in nothing.table()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    both = ["a=small-cnn", "b=lenet5"]
    data = ["--data", "fashion-mnist:bundled", "--max-samples", "20", "--device", "cpu", "--out", "found"]
    assert (
        main(["transfer", "--models", *both, *data, "--attacks", "fgsm", "difgsm:steps=2", "--eps", "0.1", "--json"])
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["targets"] == ["a", "b"]
    assert document["attacks"]["DIFGSM"]["steps"] == 2
    assert document["threat"] == "Linf(0.1)"
    assert json.loads((tmp_path / "found" / "transfer.json").read_text()) == document
    for wrong, message in [
        (["--models", "small-cnn"], "expected two or more"),
        (["--models", "small-cnn", "small-cnn"], "two are called 'small-cnn'; name them"),
        (["--models", *both, "--weights", "x.pt"], "1 files for 2 models; give one each, or none"),
        (["--models", *both, "--attacks", "adaptive"], "expected attacks by name"),
    ]:
        assert main(["transfer", *wrong, *data]) == 2
        assert message in capsys.readouterr().err
