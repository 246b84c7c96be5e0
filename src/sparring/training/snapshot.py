"""What a training can go back to; weights that are not finite are nothing to go back to."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparring.training.checkpoint import copied
from sparring.training.symptoms import not_finite

if TYPE_CHECKING:
    from sparring.training.run import Run

CURE = "lower lr, clip with max_grad_norm, or add an eps to roots and norms that can be 0: their gradient is NaN there"


def snapshot(run: Run) -> dict[str, Any]:
    """Weights, optimisers, averages and the strategy's own networks, on the CPU."""
    own = {"model": run.model.state_dict(), "parts": [part.state_dict() for part in run.strategy.parts]}
    optimizers = {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()}
    others = {name: module.state_dict() for name, module in run.strategy.modules().items()}
    return dict(copied({**own, "modules": others, "optimizers": optimizers}))


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


def spoilt(run: Run) -> list[str]:
    """Names of the parameters and buffers of all that learns that hold NaN or inf in any process."""
    names = not_finite(run.model)
    for owner, module in run.strategy.modules().items():
        names += [f"{owner}.{name}" for name in not_finite(module)]
    return list(dict.fromkeys(name for each in run.crew.gather(names) for name in each))


def told(names: Sequence[str]) -> str:
    """What is to be said of weights that are not finite; where it was follows."""
    return f"NaN or inf in {', '.join(names[:3])}{', …' if len(names) > 3 else ''} behind finite losses, at the latest"
