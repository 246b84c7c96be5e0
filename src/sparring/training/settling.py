"""Before a network in training is looked at: BatchNorm statistics that are those of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from sparring.training.averaging import averages
from sparring.training.losses import Batch
from sparring.training.recalibration import recalibrate
from sparring.training.strategy import Strategy

if TYPE_CHECKING:
    from sparring.training.run import Run

BATCHES = 40  # that statistics are estimated from
BEHIND = "BatchNorm's running statistics had not caught up: before validation they are taken anew from"


def settle(run: Run) -> None:
    """Before validation: `settled`, from batches of this epoch, and a note where statistics were left behind."""
    order = run.feed.order(run.epoch)[-BATCHES:]

    def batches() -> Iterator[Batch]:
        return map(run.prepared, run.feed.batches(run.epoch, order))

    behind = settled(run.model, run.strategy, batches, run.crew.gather)
    if behind and not any(note["text"].startswith(BEHIND) for note in run.notes):
        run.note(f"{BEHIND} {len(order)} batches of the training mixture, as the doctor would advise")


def settled(
    model: nn.Module,
    strategy: Strategy,
    batches: Callable[[], Iterable[Batch]],
    gather: Callable[[Any], list[Any]],
) -> bool:
    """Takes running statistics anew from the training mixture where they belong to no network that was trained.

    Those of means of weights never do (EMA, SWA). Those that a slow momentum leaves behind, or that came with a pretrained
    network on other data, are corrected in the network itself, too: in eval mode it would be another one. Returns whether
    they were behind. gather: every process's value.
    """
    behind = any(gather(strategy.statistics.apart))
    if behind:
        recalibrate(model, batches(), strategy)
    for part in averages(strategy):
        if part.count:
            with part.applied(model):
                recalibrate(model, batches(), strategy)
    return behind
