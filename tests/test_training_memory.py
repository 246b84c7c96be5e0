"""What a batch leaves behind: no graph waits for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import sparring as sp

THREAT = sp.Linf(0.1)
STRATEGIES: dict[str, Callable[[], sp.Strategy]] = {
    "Standard": sp.Standard,
    "PGDTraining": lambda: sp.PGDTraining(THREAT, 3),
    "kept": lambda: sp.PGDTraining(THREAT, 1, keep=True),
    "FastFGSM": lambda: sp.FastFGSM(THREAT),
    "NFGSM": lambda: sp.NFGSM(THREAT),
    "GradAlign": lambda: sp.GradAlign(THREAT),
    "Free": lambda: sp.Free(THREAT, 3),
    "TRADES": lambda: sp.TRADES(THREAT, steps=2),
    "MART": lambda: sp.MART(THREAT, steps=2),
    "YOPO": lambda: sp.YOPO(THREAT, 2, 2),
    "YOPO literal": lambda: sp.YOPO(THREAT, 2, 2, collapse=False),
    "YOPO gradient": lambda: sp.YOPO(THREAT, 2, 2, form="gradient"),
    "AWP and EMA": lambda: sp.PGDTraining(THREAT, 2).with_(sp.AWP(), sp.EMA()),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", STRATEGIES)
def test_graphs_go_with_their_batch(name: str, no_collector: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    strategy, left = STRATEGIES[name](), []
    x, y = torch.rand(12, 6), torch.arange(12) % 3
    for _ in range(2):
        for loss in strategy(model, sp.Batch(x, y, torch.arange(12))):
            left += [weakref.ref(loss), weakref.ref(loss.value)]
            loss.value.backward()
        del loss
    assert len(left) >= 4
    assert not [each for each in left if each() is not None]
