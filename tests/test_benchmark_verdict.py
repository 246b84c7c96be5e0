"""The verdict benchmark counts and judges by itself; the hard networks mask what they say they mask."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OWN = ("architectures", "hard_networks", "machine", "networks", "peers", "recipes", "verdict", "verdict_tables")


@pytest.fixture(scope="module")
def verdict() -> Iterator[ModuleType]:
    """benchmarks/verdict.py; `networks` is the name of a test helper too, so it is put aside for as long."""
    aside = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import verdict

        yield verdict
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in OWN:
            sys.modules.pop(name, None)
        sys.modules.update(aside)


class Threshold(nn.Module):
    """Class 1 where the mean of the input is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score], dim=1)


def grey(*means: float) -> Tensor:
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


@pytest.fixture
def network(verdict: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four grey images, one that the network gets wrong, one near the border, two far from it."""
    x, y = grey(0.6, 0.69, 0.1, 0.9), torch.tensor([0, 1, 0, 1])
    x[1, :, 0] = 0  # a mean of .5175

    class Grey(verdict.Network):  # type: ignore[name-defined, misc]
        missing = ""

        def load(self) -> nn.Module:
            return self.build()

        def test_data(self, n: int) -> tuple[Tensor, Tensor]:
            return x[:n], y[:n]

    grey_network = Grey("grey", Threshold, "fashion-mnist", 0.05)
    for module in (verdict, sys.modules["verdict_tables"]):
        monkeypatch.setitem(module.NETWORKS, "grey", grey_network)
    return grey_network


def test_passes_are_counted_from_outside(verdict: ModuleType) -> None:
    net = verdict.Counted(Threshold())
    x, y = grey(0.1, 0.9, 0.3), torch.tensor([0, 1, 0])
    sp.PGD(sp.Linf(0.01), steps=7)(net, x, y)
    assert (net.forwards, net.backwards) == (3 * 8, 3 * 7)
    logits = net(x.requires_grad_())
    for column in logits.unbind(1):  # a method that takes a gradient for each class pays for each
        torch.autograd.grad(column.sum(), x, retain_graph=True)
    assert (net.forwards, net.backwards) == (3 * 9, 3 * 7 + 2 * 3)


@pytest.mark.parametrize("method", ["adaptive", "PGD-20"])
def test_a_row_is_what_the_closed_form_says(verdict: ModuleType, network: Any, method: str) -> None:
    row = verdict.measure(network, method, 4, torch.device("cpu"), 0)
    assert (row["clean"], row["robust"], row["unshown"]) == (3, [2, 3], 0)
    assert row["forwards"] > row["backwards"] > 0


@pytest.mark.parametrize("fault", ["ball", "box", "not fooled"])
def test_claims_are_not_believed(
    verdict: ModuleType, network: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def liar(net: nn.Module, x: Tensor, y: Tensor, network: Any, seed: int) -> Any:
        z = {"ball": x.flip(0), "box": x - 0.05, "not fooled": x}[fault]
        return verdict.Answer(z, torch.tensor([False, True, True, True]), [])

    monkeypatch.setitem(verdict.METHODS, "liar", liar)
    row = verdict.measure(network, "liar", 4, torch.device("cpu"), 0)
    assert row["robust"] == [1, 2, 3]
    assert (row["unshown"], row["claimed"]) == (3, 0)


def test_a_random_network_is_asked_until_most_answers_agree(verdict: ModuleType) -> None:
    class Moody(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.3 * torch.randn(len(x), 1, 1, 1))

    torch.manual_seed(0)
    x, y = grey(*[0.9] * 200), torch.ones(200, dtype=torch.long)  # right with a probability of .91
    assert verdict.right(Moody(), x, y, 21).all()
    assert not verdict.right(Moody(), x, y, 1).all()


def test_rows_are_kept_and_only_what_is_asked_for_is_redone(
    verdict: ModuleType,
    network: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[str] = []
    real = verdict.measure

    def measure(network: Any, method: str, *rest: Any) -> Any:
        if method == "PGD-100" and len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(method)
        return real(network, method, *rest)

    def go(*more: str) -> int:
        line = ["verdict.py", "--models", "grey", "--methods", "PGD-20", "PGD-100", "adaptive", "--images", "4"]
        monkeypatch.setattr(sys, "argv", [*line, "--out", str(tmp_path / "v.json"), *more])
        return int(verdict.main())

    monkeypatch.setattr(verdict, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert list(json.loads((tmp_path / "v.json").read_text())["rows"]["grey"]) == ["PGD-20"]
    ran.append("interrupted")
    go()
    assert ran == ["PGD-20", "interrupted", "PGD-100", "adaptive"]
    go("--redo", "adaptive")
    assert ran[4:] == ["adaptive"]
    go("--table", "--curve")
    assert len(ran) == 5
    assert "| grey" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="choose another --out"):
        go("--seed", "1")


def made(robust: int, passes: int = 100, warnings: tuple[str, ...] = (), seconds: float = 1.0, unshown: int = 0) -> Any:
    return {"clean": 90, "eps": 0.1, "robust": list(range(robust)), "forwards": passes * robust, "backwards": 0,
            "seconds": seconds, "warnings": list(warnings), "unshown": unshown, "run": "now"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "faults"),
    [
        ("fashion-pgd-trained", made(51), made(50, seconds=60), []),
        ("fashion-pgd-trained", made(52), made(50, seconds=60), ["verdict +2.0"]),
        ("fashion-pgd-trained", made(50, passes=201), made(50, seconds=60), ["passes"]),
        ("fashion-pgd-trained", made(50, warnings=("masking",)), made(50, seconds=60), ["false masking warning"]),
        ("fashion-pgd-trained", made(50, unshown=1), made(50, seconds=60), ["1 not shown"]),
        ("fashion-pgd-trained", made(50), made(50, seconds=49), ["clock"]),
        ("fashion-pgd-trained", made(4, passes=5000), made(4), []),  # too few robust to count passes by
        ("fashion-quantised", made(50, passes=1999, warnings=("masking",)), made(50), []),
        ("fashion-quantised", made(50, passes=2001), made(50), ["passes"]),
        ("fashion-pgd-trained", made(50, passes=1999) | {"searched": 5}, made(50), ["no masking warning"]),
        ("fashion-pgd-trained", made(50, warnings=("masking",)) | {"searched": 5}, made(50), []),
    ],
)
def test_targets_are_held(verdict: ModuleType, name: str, ours: Any, theirs: Any, faults: list[str]) -> None:
    tables = sys.modules["verdict_tables"]
    assert tables.faults(name, {"adaptive": ours, "torchattacks": theirs}, 100) == faults


def test_a_random_network_is_told_by_the_methods_word_and_by_most_answers(
    verdict: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = sys.modules["verdict_tables"]
    rows = {"adaptive": made(41) | {"claimed": 40}, "PGD-20": made(43) | {"claimed": 21}}
    document = {"settings": {"images": 100}, "rows": {"fashion-noisy": rows, "fashion-pgd-trained": rows}}
    tables.random_table(document, list(document["rows"]), ["adaptive", "PGD-20"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| fashion")]
    assert len(lines) == 1
    assert "40.0 → 41.0" in lines[0]
    assert "21.0 → 43.0" in lines[0]


def test_hard_networks_hide_the_gradient_and_keep_the_answer(verdict: ModuleType) -> None:
    hard = sys.modules["hard_networks"]
    torch.manual_seed(0)
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    x = torch.rand(40, 1, 8, 8, requires_grad=True)
    logits = base(x)
    rounded = nn.Sequential(hard.Rounding(8), base)(x)
    assert not torch.autograd.grad(rounded.sum(), x)[0].any()
    assert (rounded - logits).abs().max() < 0.5

    gap = logits.topk(2).values.diff(dim=1).abs().flatten()
    margin = gap.median().item()
    detector = hard.Detector(base, margin=margin)(x)
    (grad,) = torch.autograd.grad(detector.square().sum(), x)
    wavering = gap <= margin
    assert 0 < wavering.sum() < 40
    assert torch.equal(grad.flatten(1).any(1), ~wavering)
    assert torch.equal(detector[~wavering], logits[~wavering])
    assert (detector[wavering].topk(2).values.diff(dim=1).abs() == 20).all()

    winners = hard.KWinners()(torch.randn(7, 5, 4, 4))
    assert (winners.flatten(1).ne(0).sum(1) == 8).all()
    noise = hard.AddedNoise(0.5)
    assert (noise(x) - x).std().item() == pytest.approx(0.5, rel=0.1)
    assert not torch.equal(noise(x), noise(x))


def test_every_network_is_named_once_and_finds_its_base(verdict: ModuleType) -> None:
    networks = sys.modules["networks"]
    for name, network in networks.NETWORKS.items():
        assert network.name == name
        assert bool(network.weights) + bool(network.base) + (network.recipe is not None) == 1
        if network.base:
            assert networks.NETWORKS[network.base].file == network.file
    assert sum(network.masking for network in networks.NETWORKS.values()) >= 6


def test_peers_are_left_out_with_a_reason(verdict: ModuleType) -> None:
    there = importlib.util.find_spec("torchattacks") is not None
    assert bool(verdict.absent("torchattacks")) != there
    assert not verdict.absent("PGD-20")
