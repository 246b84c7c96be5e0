"""Thin commands over ``sparring.experiments``: settings in, table and figure out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sparring.cli.app import Outcome
from sparring.cli.console import say, table
from sparring.cli.models import parse_arguments
from sparring.cli.settings import MANY, Settings
from sparring.cli.values import Number, as_float


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DescentSettings(Settings):
    """Settings of ``sparring descent``."""

    start: Number | None = None
    """Where x starts; left out, an integer from 1 to 10 is drawn with --seed."""
    lr: Number = "0.1"
    """Learning rate."""
    optimizer: str = "SGD"
    """Any class of torch.optim: SGD, RMSprop, Adam, ..."""
    optimizer_args: Annotated[list[str], MANY] = field(default_factory=list)
    """Its other settings: momentum=0.9 nesterov=true ..."""
    seed: int = 0
    """Draws the start."""
    out: Path = Path("sparring-descent")
    """Folder for the figure and the numbers."""


_DESCENT = DescentSettings()


def descent(settings: DescentSettings = _DESCENT) -> Outcome:
    """Watch gradient descent find the minimum of x squared + 2, and compare the usual optimisers."""
    from sparring.experiments import descent as experiment

    result = experiment.run(
        None if settings.start is None else as_float(settings.start),
        as_float(settings.lr),
        settings.optimizer,
        options=parse_arguments(settings.optimizer_args, "--optimizer-args"),
        out=settings.out,
        seed=settings.seed,
    )
    for line in result.lines:
        say(line)
    table(result.rows)
    say(f"Figure: {settings.out / 'descent.png'}   numbers: {settings.out / 'numbers.json'}")
    return Outcome(result.to_json())
