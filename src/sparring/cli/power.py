"""``sparring power``: power iteration as a walk-through."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sparring.cli.app import Outcome
from sparring.cli.console import say, stage, table
from sparring.cli.settings import DATA, MANY, RUN, Settings
from sparring.cli.values import Number, as_float


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PowerSettings(Settings):
    """Settings of ``sparring power``."""

    matrix: Annotated[list[str], MANY] = field(default_factory=lambda: ["2,1", "1,3"])
    """Symmetric matrix, a row each: 2,1 1,3"""
    data: Annotated[str, DATA] = "fashion-mnist"
    """Name or path of a data set with a train and a test part, for the network."""
    samples: Annotated[int, DATA] = 64
    """Test images."""
    iterations: int = 8
    """Of power iteration on the network."""
    xi: Number | None = None
    """Length of the finite difference, for images in [0, 1]; left out, chosen for the least error of one iteration (several: a
    tenth of it gets nearer, such as 3e-4)."""
    seed: Annotated[int, RUN] = 0
    """Of the random starts."""
    out: Annotated[Path, RUN] = Path("sparring-power")
    """Folder for the figure and the numbers."""


_POWER = PowerSettings()


def power(settings: PowerSettings = _POWER) -> Outcome:
    """Watch A·x turn to the dominant eigenvector, then find that of a network's Hessian without forming it."""
    from sparring.experiments import power as experiment

    try:
        matrix = [[float(value) for value in row.split(",")] for row in settings.matrix]
    except ValueError:
        raise ValueError(f"--matrix {' '.join(settings.matrix)}: expected rows of numbers, as in 2,1 1,3") from None
    with stage("power") as progress:
        result = experiment.run(
            matrix, settings.data, settings.samples, settings.iterations,
            None if settings.xi is None else as_float(settings.xi), out=settings.out, seed=settings.seed, progress=progress,
        )  # fmt: skip
    for line in result.lines:
        say(line)
    say(f"Eigenvalues: {', '.join(f'{value:.6f}' for value in result.eigenvalues)}")
    table(result.rows, "Angle to the dominant eigenvector of a network's Hessian, median over the images")
    say(
        f"One iteration catches {result.caught:.0%} of the steepest growth; second by first eigenvalue: {result.ratio:.2f}"
    )
    say(f"Figure: {settings.out / 'power'}.png  numbers: {settings.out / 'numbers.json'}")
    return Outcome(result.to_json())
