"""What a training can go back to; weights that are not finite are nothing to go back to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from sparring.training.checkpoint import copied
from sparring.training.history import Epoch
from sparring.training.ledger import NotFinite
from sparring.training.symptoms import not_finite

if TYPE_CHECKING:
    from sparring.training.run import Run

CURE = "lower lr, clip with max_grad_norm, or add an eps to roots and norms that can be 0: their gradient is NaN there"


def snapshot(run: Run) -> dict[str, Any]:
    """Weights, optimisers, averages and the strategy's own networks, on the CPU, and after which epoch (from 1) they were so."""
    own = {"model": run.model.state_dict(), "parts": [part.state_dict() for part in run.strategy.parts]}
    optimizers = {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()}
    others = {name: module.state_dict() for name, module in run.strategy.modules().items()}
    return dict(copied({**own, "modules": others, "optimizers": optimizers, "epoch": len(run.history)}))


def put_back(run: Run, good: Mapping[str, Any]) -> None:
    """What `snapshot` has taken, back in its place."""
    good = copy.deepcopy(good)
    run.model.load_state_dict(good["model"])
    for name, optimizer in run.optimizers.items():
        optimizer.load_state_dict(good["optimizers"][name])
    for part, state in zip(run.strategy.parts, good["parts"]):
        part.load_state_dict(state)
    for name, module in run.strategy.modules().items():
        module.load_state_dict(good["modules"][name])


def collapsed(now: Epoch, best: Epoch | None) -> bool:
    """Whether half of the best robust accuracy is gone: nothing to go back to, if the next look finds out why."""
    robust = now.validation_robust_accuracy, None if best is None else best.validation_robust_accuracy
    return robust[0] is not None and robust[1] is not None and robust[0] < robust[1] / 2


class Soundness:
    """Looks whether weights are still finite: a loss can be while its gradient, or the step, is not.

    modules: all that learns. gather: every process's value, so that all decide alike. What was not finite before may stay.
    """

    def __init__(self, modules: Sequence[nn.Module], gather: Callable[[list[str]], list[list[str]]]) -> None:
        self.modules, self.gather = modules, gather
        self.before = set(self._broken())

    def check(self, epoch: int, batch: int) -> None:
        """NotFinite where parameters or buffers hold NaN or inf behind this batch of this epoch (both from 0)."""
        everybodys = self.gather([name for name in self._broken() if name not in self.before])
        if names := list(dict.fromkeys(name for mine in everybodys for name in mine)):
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise NotFinite(f"NaN or inf in {shown} behind finite losses, at the latest", epoch, batch, CURE)

    def _broken(self) -> list[str]:
        return [name for module in self.modules for name in not_finite(module)]
