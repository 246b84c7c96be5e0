"""A strategy's state in a checkpoint: one for each process, since what is kept for samples differs."""

from __future__ import annotations

from typing import Any

from torch import distributed

from sparring.training.parts import begin_anew
from sparring.training.strategy import Strategy


def begin(strategy: Strategy, trainer: Any) -> None:
    """In `setup`, before a checkpoint is read: a Trainer that hasn't trained yet begins with the strategy as it was made, with
    nothing of an earlier training."""
    if strategy.batches and not trainer.global_step:
        begin_anew(strategy)


def everybodys(strategy: Strategy) -> dict[str, Any]:
    """All processes ask at once, as Lightning does when it saves."""
    return {"name": strategy.name, "ranks": gathered(strategy.state_dict())}


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks."""
    size = processes()
    values: list[Any] = [value] if size == 1 else [None] * size
    if size > 1:
        distributed.all_gather_object(values, value)
    return values


def restore(strategy: Strategy, state: dict[str, Any], training: bool) -> None:
    """training: whether it goes on. ValueError for the state of another strategy, or of another number of processes."""
    if state["name"] != strategy.name:
        raise ValueError(f"the checkpoint is of a training with {state['name']}, this one is with {strategy.name}")
    ranks, size = state["ranks"], processes()
    if training and len(ranks) != size:
        raise ValueError(f"the checkpoint is of a training by {len(ranks)} processes, now {size}: go on with as many")
    strategy.load_state_dict(ranks[distributed.get_rank() if training and size > 1 else 0])


def processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
