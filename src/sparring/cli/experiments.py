"""Thin commands over ``sparring.experiments``: settings in, table and figure out."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sparring.cli import models
from sparring.cli.app import Outcome
from sparring.cli.console import say, stage, table
from sparring.cli.settings import DATA, MANY, MODEL, RUN, THREAT, ModelSettings, SeedSettings, Settings
from sparring.cli.values import Number, as_float

if TYPE_CHECKING:
    from sparring.experiments.record import Result


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
        options=models.parse_arguments(settings.optimizer_args, "--optimizer-args"),
        out=settings.out,
        seed=settings.seed,
    )
    for line in result.lines:
        say(line)
    return _told("descent", result, settings.out)


@Parameter(name="*")
@dataclass(frozen=True)
class Photograph:
    """The last base of a settings class, so that its field comes first: only then can it be given by position."""

    image: Annotated[Path | None, DATA] = None
    """Photograph to attack; the bundled one if left out."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ImageNetSettings(ModelSettings):
    """A network for photographs."""

    model: Annotated[str, MODEL] = "efficientnet-lite0"
    """package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, or the name of a zoo network."""
    size: Annotated[int, DATA] = 224
    """The photograph is scaled and cropped to this many pixels square."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OptimizersSettings(SeedSettings, ImageNetSettings, Photograph):
    """Settings of ``sparring optimizers``."""

    target: str = "288"
    """Class to reach, by its number or its name; 288 is the leopard."""
    steps: int = 100
    """Steps of each optimiser."""
    lr: Number = "0.01"
    """The learning rate that all share."""
    rates: Annotated[list[Number] | None, MANY] = None
    """Rates in which each one's own best is sought; six decades if left out."""
    optimizers: Annotated[list[str], MANY] = field(default_factory=lambda: ["SGD", "RMSprop", "Adam"])
    """Classes of torch.optim."""
    out: Annotated[Path, RUN] = Path("sparring-optimizers")
    """Folder for the figure and the numbers."""


_OPTIMIZERS = OptimizersSettings()


def optimizers(settings: OptimizersSettings = _OPTIMIZERS) -> Outcome:
    """SGD, RMSprop and Adam attack the same photograph, in pixel and in normalised space."""
    from sparring.experiments import optimizers as experiment

    device, model, names, goal = _target_of(settings)
    rates = None if settings.rates is None else [as_float(rate) for rate in settings.rates]
    with stage("optimizers") as progress:
        result = experiment.run(
            settings.image,
            goal,
            settings.steps,
            as_float(settings.lr),
            settings.optimizers,
            rates or experiment.RATES,
            model,
            class_names=names,
            size=settings.size,
            device=device,
            out=settings.out,
            seed=settings.seed,
            progress=progress,
        )
    say(f"{result.label} to {result.target}, {settings.steps} steps", style="bold")
    return _told("optimizers", result, settings.out)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RotationSettings(SeedSettings, ImageNetSettings, Photograph):
    """Settings of ``sparring rotation``."""

    target: str = "924"
    """Class to reach, by its number or its name; 924 is guacamole."""
    eps: Annotated[Number, THREAT] = "8/255"
    """Largest change of a pixel, Linf, for images in [0, 1]."""
    angle: Number = "22.5"
    """The example is made for turns of up to this many degrees to both sides."""
    samples: int = 10
    """Random turns at each step."""
    steps: int = 50
    """Steps of both attacks."""
    out: Annotated[Path, RUN] = Path("sparring-rotation")
    """Folder for the figure and the numbers."""


_ROTATION = RotationSettings()


def rotation(settings: RotationSettings = _ROTATION) -> Outcome:
    """A photograph that is another class at any angle: expectation over transformation, beside a plain example."""
    from sparring.experiments import rotation as experiment

    device, network, names, goal = _target_of(settings)
    with stage("rotation") as progress:
        result = experiment.run(
            settings.image,
            goal,
            settings.eps,
            as_float(settings.angle),
            settings.samples,
            settings.steps,
            network,
            class_names=names,
            size=settings.size,
            device=device,
            out=settings.out,
            seed=settings.seed,
            progress=progress,
        )
    chances = ("upright", "least", "mean", "target at")
    table([row | {name: round(row[name], 4) for name in chances} for row in result.rows])
    return _told("rotation", result, settings.out, rows=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FGSMSettings(SeedSettings):
    """Settings of ``sparring fgsm``."""

    datasets: Annotated[list[str], DATA, MANY] = field(default_factory=lambda: ["mnist", "fashion-mnist", "cifar10"])
    """Names or paths of data sets with a train and a test part."""
    samples: Annotated[int | None, DATA] = None
    """How many test images the single-step attacks get; all if left out."""
    strong_samples: Annotated[int, DATA] = 1000
    """How many the attacks of many steps get."""
    steps: int = 20
    """Steps of the attacks of many steps."""
    skip_masking: bool = False
    """Leave out the network that is trained on FGSM, which shows the masking."""
    out: Annotated[Path, RUN] = Path("sparring-fgsm")
    """Folder for the figure and the numbers."""


_FGSM = FGSMSettings()


def fgsm(settings: FGSMSettings = _FGSM) -> Outcome:
    """FGSM and its variants side by side, beside the table of the paper; trains what it needs once."""
    from sparring.experiments import fgsm as experiment

    with stage("fgsm") as progress:
        result = experiment.run(
            settings.datasets,
            settings.samples,
            settings.strong_samples,
            settings.steps,
            not settings.skip_masking,
            device=models.pick_device(settings.device),
            out=settings.out,
            seed=settings.seed,
            progress=progress,
        )
    return _told("fgsm", result, settings.out)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LinearSettings(SeedSettings):
    """Settings of ``sparring linear``."""

    data: Annotated[str, DATA] = "mnist"
    """Name or path of a data set of square images with a train and a test part."""
    eps: Annotated[Number, THREAT] = "0.1"
    """Of the growth with the dimension."""
    transfer_eps: Annotated[list[Number], THREAT, MANY] = field(default_factory=lambda: ["0.1", "0.2"])
    """Of the transfer table."""
    sides: Annotated[list[int] | None, MANY] = None
    """Image sides in pixels for the growth."""
    samples: Annotated[int, DATA] = 1000
    """Test images for each part."""
    points: int = 81
    """Points along the sign direction, from -1 to 1."""
    out: Annotated[Path, RUN] = Path("sparring-linear")
    """Folder for the figure and the numbers."""


_LINEAR = LinearSettings()


def linear(settings: LinearSettings = _LINEAR) -> Outcome:
    """The linear explanation: growth with the dimension, logits along the sign direction, transfer."""
    from sparring.experiments import linear as experiment

    with stage("linear") as progress:
        result = experiment.run(
            settings.data,
            as_float(settings.eps),
            [as_float(eps) for eps in settings.transfer_eps],
            settings.sides or experiment.SIDES,
            settings.samples,
            settings.points,
            device=models.pick_device(settings.device),
            out=settings.out,
            seed=settings.seed,
            progress=progress,
        )
    table(result.growth_rows, "Growth of the score along the sign direction")
    return _told("linear", result, settings.out)


def _target_of(settings: OptimizersSettings | RotationSettings) -> tuple[Any, Any, list[str] | None, int]:
    """The device, the model, the names of its classes and the number of the one to reach."""
    import torch

    from sparring.cli.attack import class_names, probabilities, target

    device = models.pick_device(settings.device)
    model = models.load(settings, device)
    names = class_names(probabilities(model, torch.zeros(1, 3, settings.size, settings.size, device=device)).shape[1])
    goal = target(settings.target, names, 1)
    if not isinstance(goal, torch.Tensor):
        raise ValueError(f"--target {settings.target}: expected one class, by its number or its name")
    return device, model, names, int(goal[0])


def _told(name: str, result: "Result", out: Path, rows: bool = True) -> Outcome:
    if rows:
        table(result.rows)
    say(f"Figure: {out / name}.png  numbers: {out / 'numbers.json'}")
    return Outcome(result.to_json())
