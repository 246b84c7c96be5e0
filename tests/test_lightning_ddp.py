"""Two processes under Lightning's DDP strategy train with the gradients of one, and make the examples of one.

As a script, under torchrun, this file is one of those processes: it writes the gradients of every step.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sparring as sp
from crew import torchrun

pl = pytest.importorskip("lightning.pytorch")

from sparring.lightning import AdversarialCallback, AdversarialModule, Indexed  # noqa: E402  # which needs Lightning
from sparring.lightning.measuring import joined  # noqa: E402

THREAT = sp.Linf(0.1)
STRATEGIES = {
    "pgd": lambda: sp.PGDTraining(THREAT, steps=2, alpha=0.5),
    "kept": lambda: sp.PGDTraining(THREAT, steps=1, keep=True),
    "yopo": lambda: sp.YOPO(THREAT, 2, 2),
    "yopo-gradient": lambda: sp.YOPO(THREAT, 2, 2, form="gradient", collapse=False),
    "free": lambda: sp.Free(THREAT, 3),
    "awp": lambda: sp.PGDTraining(THREAT, steps=2).with_(sp.AWP(0.01)),
    "trades": lambda: sp.TRADES(THREAT).with_(sp.EMA(0.9)),
    "generator": lambda: sp.GeneratorTraining(THREAT, generator=nn.Linear(6, 6).double()),
}
CALLBACKS = {
    "callback": lambda: sp.PGDTraining(THREAT, steps=2),
    "callback kept": lambda: sp.PGDTraining(THREAT, steps=1, keep=True),
}
LIMIT = 1e-10
NORMS = "bn"  # a network with BatchNorm: what its buffers see differs, and is averaged


class Own(pl.LightningModule):
    """A user's own, with automatic optimisation: DDP's reducer averages its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradients.append(torch.cat([grad.flatten() for grad in grads]).clone())


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, 3)).double()


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 3, (24,), generator=generator))


def trained(name: str, processes: int, folder: Path) -> dict[str, Any]:
    """The gradients of every step, and the weights, with a global batch of 8."""
    torch.manual_seed(3)
    recorder = Recorder()
    kept = name.endswith("kept")
    if name in CALLBACKS:
        module: Any = Own()
        callbacks = [recorder, AdversarialCallback(CALLBACKS[name]())]
    else:
        accumulate = 2 if name == "pgd" else 1
        made = STRATEGIES["yopo" if name == NORMS else name]()
        module = AdversarialModule(network(name == NORMS), made, max_grad_norm=0.5, accumulate=accumulate)
        callbacks = [recorder]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", callbacks=callbacks,
        max_epochs=3 if kept else 2, enable_checkpointing=False, **quiet,
    )  # fmt: skip
    numbered = Indexed(data()) if kept else data()
    # Lightning would shuffle in many processes, and not in one
    dealt = DistributedSampler(numbered, processes, int(os.environ.get("RANK", 0)))
    trainer.fit(module, DataLoader(numbered, batch_size=8 // processes, sampler=dealt), None)
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    found = {"gradients": recorder.gradients, "weights": weights}
    if name == NORMS:
        found |= {"state": module.model.state_dict(), "own": module.strategy.statistics.drift.state_dict()}
    if name == "free":
        place = folder / "free.ckpt"
        trainer.save_checkpoint(place)
        ranks = torch.load(place)["sparring"]["ranks"]
        # dealt out like cards
        found["kept"] = torch.stack([rank["perturbation"] for rank in ranks], 1).flatten(0, 1)
    if name == "trades":
        measured = trainer.validate(module, DataLoader(data(), batch_size=8 // processes), verbose=False)
        found["measured"] = torch.tensor(list(measured[0].values()))
        found["average"] = torch.cat(
            [p.flatten() for p in module.strategy.parts[-1].averaged(module.model).parameters()]
        )
    return found


def parted() -> list[Any]:
    """Whether the running statistics agree with this process's batches, and what they are in the end: every second sample, the
    second process's, turns brighter."""
    x, y = torch.rand(400, 6, generator=torch.Generator().manual_seed(0)), torch.arange(400) // 2 % 3
    late = (torch.arange(400) >= 300) & (torch.arange(400) % 2 == 1)
    x[late] = x[late] * 0.3 + 0.7
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    module = AdversarialModule(model, sp.PGDTraining(sp.Linf(0.01), steps=1, keep=True), lr=0.01)
    numbered = Indexed(TensorDataset(x, y))
    dealt = DistributedSampler(numbered, 2, int(os.environ["RANK"]), shuffle=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, enable_checkpointing=False, use_distributed_sampler=False,
        **quiet,
    )  # fmt: skip
    trainer.fit(module, DataLoader(numbered, batch_size=10, sampler=dealt), None)
    return [module.strategy.statistics.agrees, model[0].running_mean.tolist()]


def test_only_in_a_batch_is_the_strategy_one_of_many() -> None:
    """Also after one that failed: in a loop of its own it would wait for processes that are not there."""
    strategy, trainer = sp.NFGSM(THREAT), SimpleNamespace(global_rank=1, world_size=2, precision="bf16-mixed")
    with suppress(ZeroDivisionError), joined(strategy, trainer, torch.zeros(1)):
        assert (strategy.crew.rank, strategy.crew.size, strategy.autocast) == (1, 2, torch.bfloat16)
        raise ZeroDivisionError
    assert strategy.crew is strategy.autocast is None


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    done = torchrun(Path(__file__).parent, __file__, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in [*STRATEGIES, *CALLBACKS]:
        alone = trained(name, 1, tmp_path)
        both = torch.load(tmp_path / f"{name}.pt")
        steps = len(alone["gradients"])
        assert steps == {"pgd": 4, "free": 18, "generator": 12, "kept": 9, "callback kept": 9}.get(name, 6)
        assert len(both["gradients"]) == steps, name
        for one, two in zip(alone.pop("gradients"), both.pop("gradients"), strict=True):
            assert one.abs().max() > 1e-4
            assert (one - two).abs().max() < LIMIT, name
        for what, value in alone.items():
            assert (value - both[what]).abs().max() < LIMIT, (name, what)

    norms = torch.load(tmp_path / f"{NORMS}.pt")
    assert norms[0][1:] == norms[1][1:]  # parameters and running statistics
    assert norms[0][0] != norms[1][0]  # what they learned from

    (first, mean), (second, other) = torch.load(tmp_path / "parted.pt")
    assert (first, second) == (True, False), "one process would take statistics anew, and all do"
    assert mean == other
    assert mean == pytest.approx([0.5 * 7 / 8 + 0.85 / 8] * 6, abs=0.05)


if __name__ == "__main__":
    for case in [*STRATEGIES, *CALLBACKS]:
        result = trained(case, 2, Path(sys.argv[1]))
        if torch.distributed.get_rank() == 0:
            torch.save(result, Path(sys.argv[1]) / f"{case}.pt")
    result = trained(NORMS, 2, Path(sys.argv[1]))
    everybodys: list[Any] = [None, None]
    torch.distributed.all_gather_object(
        everybodys, [str(result["own"]), *(v.tolist() for v in result["state"].values())]
    )
    if torch.distributed.get_rank() == 0:
        torch.save(everybodys, Path(sys.argv[1]) / f"{NORMS}.pt")
    torch.distributed.all_gather_object(everybodys, parted())
    if torch.distributed.get_rank() == 0:
        torch.save(everybodys, Path(sys.argv[1]) / "parted.pt")
    torch.distributed.destroy_process_group()  # left to the interpreter's end, it aborts the process now and then
