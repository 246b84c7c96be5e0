"""docs/strategies.md: its code runs, and its table is true."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import pages
import sparring as sp
from networks import Counting
from sparring.training import Strategy
from test_training_strategies import THREAT, network, samples

PAGE = (pages.DOCS / "strategies.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", PAGE, flags=re.MULTILINE)
NEEDS: dict[str, Callable[[type], Strategy]] = {
    "Standard": lambda kind: kind(),
    "Mixed": lambda kind: kind(sp.FGSM(THREAT)),
    "AdvProp": lambda kind: kind(sp.FGSM(THREAT)),
    "EnsembleTraining": lambda kind: kind(sp.FGSM(THREAT), [network(seed=1)]),
    "GeneratorTraining": lambda kind: kind(THREAT, generator=nn.Conv2d(2, 2, 1).double()),
}
STRATEGIES = {n: k for n in sp.__all__ if isinstance(k := getattr(sp, n), type) and issubclass(k, Strategy)}


ELSEWHERE = {"VAT": "few-labels.md"} | dict.fromkeys(
    ("TextAdversarial", "TextVAT", "FreeLB", "SMART", "FGM"), "text.md"
)


def test_every_strategy_is_in_the_table() -> None:
    assert sorted(name for name, _, _ in ROWS) == sorted(set(STRATEGIES) - set(ELSEWHERE))
    for name, page in ELSEWHERE.items():
        assert name in STRATEGIES
        assert f"({page})" in PAGE
        assert f"{name}(" in (pages.DOCS / page).read_text("utf-8")


@pytest.mark.parametrize(("name", "forwards", "backwards"), ROWS)
def test_passes_are_what_the_table_says(name: str, forwards: str, backwards: str) -> None:
    x, y = samples()
    model = Counting(network("norm"))
    strategy = NEEDS.get(name, lambda kind: kind(THREAT))(STRATEGIES[name])
    for loss in strategy(model, sp.Batch(x, y, torch.arange(6))):
        loss.value.backward()
    assert (strategy.passes.forwards, strategy.passes.backwards) == (6 * int(forwards), 6 * int(backwards))
    if name != "YOPO":  # whose forwards through the first layer break off inside the model
        assert (model.forwards, model.backwards) == (6 * int(forwards), 6 * int(backwards))


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, blocks = pages.run("strategies.md")
    assert blocks == 5
    assert (tmp_path / "averaged.pt").exists()
