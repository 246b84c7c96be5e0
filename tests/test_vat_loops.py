"""Unlabelled samples in other loops: two processes train like one, and a Lightning Trainer like a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import crew
import sparring as sp

SCRIPT = """
import os, sys
import torch
from torch import nn
import sparring as sp

g = torch.Generator().manual_seed(0)
x, u = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (27, 41))
torch.manual_seed(int(os.environ.get("RANK", 0)))
model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
sp.fit(
    model, (x, torch.arange(27) % 3), sp.VAT(1.0, xi=0.01, entropy_minimisation=True), unlabelled=u, epochs=2, batch_size=7,
    unlabelled_batch_size=9, validation=False, out=sys.argv[1], loggers=["csv"],
)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch can't talk to other processes")
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """Batches of 7 and 9: the processes' shares are unequal, and unequal in another way for each kind. A large xi, because the
    finite difference divides the last digits, in which sums of other orders differ, by it."""
    (tmp_path / "train.py").write_text(SCRIPT)
    for name, start in (("one", crew.python), ("two", crew.torchrun)):
        run = start(tmp_path, "train.py", name)
        assert run.returncode == 0, run.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-10, atol=1e-12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def samples() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 5, generator=g), torch.arange(20) % 3, torch.randn(50, 5, generator=g)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
@pytest.mark.parametrize("form", ["rows", "pairs", "dicts"])
def test_lightning_learns_as_a_plain_loop_does(form: str) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from sparring.lightning import AdversarialModule

    x, y, u = samples()
    others: Any = {
        "rows": u,
        "pairs": TensorDataset(u, torch.zeros(50)),
        "dicts": [{"image": row, "name": "?"} for row in u],
    }[form]
    loaders = {
        "labelled": DataLoader(TensorDataset(x, y), batch_size=10),
        "unlabelled": DataLoader(others, batch_size=10),
    }
    module = AdversarialModule(network(), sp.VAT(1.0, bn="batch"), optimizer="sgd", lr=0.1, schedule="constant")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(module, loaders)
    assert trainer.global_step == 10
    assert module.strategy.passes.forwards == 2 * (3 * 50 + 50)

    model, strategy = network(), sp.VAT(1.0, bn="batch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(10):
        labelled, unlabelled = torch.arange(10) + 10 * (step % 5 % 2), torch.arange(10) + 10 * (step % 5)
        for loss in strategy(model, sp.Batch(x[labelled], y[labelled], extras={"unlabelled": u[unlabelled]})):
            loss.value.backward()
            if loss.update:
                optimizer.step()
                optimizer.zero_grad()
    for mine, theirs in zip(module.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_lightning_refuses_what_nobody_learns_from() -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from sparring.lightning import AdversarialModule

    x, y, u = samples()
    loaders = {"labelled": DataLoader(TensorDataset(x, y), batch_size=10), "unlabelled": DataLoader(u, batch_size=10)}
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with pytest.raises(ValueError, match="Standard learns nothing"):
        pl.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(AdversarialModule(network(), sp.Standard()), loaders)
