"""The benchmark of attacks beside their peers: several seeds as one row, and what their noise says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "attack_rows", Path(__file__).parents[1] / "benchmarks" / "attack_rows.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attack_rows"] = module  # a dataclass looks itself up there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["attack_rows"]
    return module


def made(rows: ModuleType, ours: float, peer: float, seed: int = 0) -> Any:
    return rows.Row("APGD", "l1", "net", "robust accuracy", 100, seed, ours, {"adv-lib": peer})


def test_several_seeds_make_one_row_with_its_noise(rows: ModuleType) -> None:
    ours, theirs = [0.58, 0.66, 0.55, 0.65], [0.53, 0.61, 0.64, 0.57]
    row = rows.joined([made(rows, a, b, seed) for seed, (a, b) in enumerate(zip(ours, theirs, strict=True))])
    assert (row.seeds, row.samples) == (4, 100)
    assert row.ours == pytest.approx(0.61)
    assert row.peers["adv-lib"] == pytest.approx(0.5875)
    error = torch.tensor(ours).double().std().item() / 2
    assert row.spread["sparring"] == pytest.approx(3.182 * error, rel=1e-6)  # t, three degrees of freedom
    assert row.within is False
    assert row.noise  # missed, by less than the draws alone explain


def test_what_is_clearly_worse_or_measured_once_is_no_noise(rows: ModuleType) -> None:
    clear = rows.joined([made(rows, 0.70 + seed / 1000, 0.60 + seed / 1000, seed) for seed in range(4)])
    assert clear.within is False
    assert not clear.noise
    one = rows.joined([made(rows, 0.61, 0.58)])
    assert (one.seeds, one.spread, one.noise, one.within) == (1, {}, False, False)
    assert not rows.joined([made(rows, 0.5, 0.6 + seed / 1000, seed) for seed in range(4)]).noise  # ours is better
