"""Before a network in training is looked at: BatchNorm statistics that are those of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparring.training.averaging import Average
from sparring.training.recalibration import recalibrate

if TYPE_CHECKING:
    from sparring.training.run import Run

BATCHES = 40  # that statistics are estimated from
BEHIND = (
    f"BatchNorm's running statistics had not caught up: before validation they are taken anew from {BATCHES} batches of the "
    "training mixture (see sparring doctor)"
)


def settle(run: Run) -> None:
    """Takes running statistics anew from the training mixture where they belong to no network that was trained.

    Those of means of weights never do (EMA, SWA). Those that a slow momentum leaves behind, or that came with a pretrained
    network on other data, are corrected in the network itself, too, and with a note: in eval mode it would be another one.
    """
    behind = any(run.crew.gather(run.strategy.statistics.apart))
    averaged = any(isinstance(part, Average) and part.count for part in run.strategy.parts)
    if behind:
        _recalibrate(run)
        if all(note["text"] != BEHIND for note in run.notes):
            run.note(BEHIND)
    if averaged:
        with run.deployed():
            _recalibrate(run)


def _recalibrate(run: Run) -> None:
    order = run.feed.order(run.epoch)[:BATCHES]
    recalibrate(run.model, map(run.prepared, run.feed.batches(run.epoch, order)), run.strategy)
