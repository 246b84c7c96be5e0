"""``sparring train``: a network that holds, from a strategy's name to weights that ``sparring evaluate`` reads."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sparring.cli import models, recipes, strategies
from sparring.cli.app import Outcome, Stopped
from sparring.cli.console import note, say, table
from sparring.cli.evaluate import EPS, open_data
from sparring.cli.settings import (
    DATA,
    MANY,
    RUN,
    SeedSettings,
    SubjectSettings,
    ThreatSettings,
)
from sparring.cli.strategies import StrategySettings

if TYPE_CHECKING:
    from sparring.training import Epoch, FitResult, Progress

LEARN = Parameter(group=Group("Learning", sort_key=5))
TUNE = Parameter(group=Group("Fine-tuning", sort_key=6))
CHECK = Parameter(group=Group("Validation", sort_key=7))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainSettings(SeedSettings, ThreatSettings, SubjectSettings, StrategySettings):
    """Settings of ``sparring train``."""

    task: Annotated[Literal["images", "text"], DATA] = "images"
    """text trains a classifier of texts, with options of its own: sparring train --task text --help."""
    split: Annotated[str, DATA] = "train"
    """Which part of a named data set."""
    labels: Annotated[int | None, DATA] = None
    """Learn from so many labels only, as many of each class, chosen by --seed; with --strategy vat or --vat all the images are
    learned from, the others without their labels."""
    unlabelled: Annotated[str | None, DATA] = None
    """Images to learn from without labels, with --strategy vat or --vat; in the forms of --data."""
    epochs: Annotated[int, LEARN] = 30
    """How often each sample is learned from."""
    batch_size: Annotated[int, LEARN] = 128
    """Samples a batch; under torchrun of all processes together."""
    unlabelled_batch_size: Annotated[int | None, LEARN] = None
    """Unlabelled samples a batch; left out: 128."""
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], LEARN] = "sgd"
    """sgd is the one with Nesterov momentum."""
    lr: Annotated[float | None, LEARN] = None
    """Highest learning rate; left out: 0.1 for sgd (0.1 / m for yopo), 0.001 for the others."""
    momentum: Annotated[float, LEARN] = 0.9
    """Of sgd."""
    weight_decay: Annotated[float, LEARN] = 0.0005
    """Pull of the weights towards zero."""
    schedule: Annotated[Literal["cosine", "cyclic", "steps", "constant"], LEARN] = "cosine"
    """How the rate goes: down as a cosine; up to 40% of the time, then down; a tenth at 50% and at 75%; not at all."""
    warmup: Annotated[float, LEARN] = 0.0
    """Epochs in which the rate rises from zero."""
    max_grad_norm: Annotated[float | None, LEARN] = None
    """Clip the gradients of all weights together to this L2 norm."""
    accumulate: Annotated[int, LEARN] = 1
    """Batches a step of the optimiser."""
    augment: Annotated[Literal["mirror-shift", "shift"] | None, LEARN] = None
    """mirror-shift: mirror half of the images, and shift each by up to 4 pixels. shift: by up to 2, for digits and signs."""
    precision: Annotated[Literal["bf16", "fp16"] | None, LEARN] = None
    """Mixed precision; fp16 needs CUDA."""
    compile: Annotated[bool, LEARN] = False
    """torch.compile the model."""
    channels_last: Annotated[bool, LEARN] = False
    """Keep images and filters in channels-last order."""
    freeze: Annotated[list[str], TUNE, MANY] = field(default_factory=list)
    """Parts of the model, by name with * and ?, that never learn."""
    head: Annotated[str | None, TUNE] = None
    """Name of the part that is new; left out: the last one with weights."""
    head_epochs: Annotated[int, TUNE] = 0
    """First so many epochs in which only the head learns."""
    body_lr: Annotated[float | None, TUNE] = None
    """Learning rate of everything but the head."""
    validation: Annotated[str | None, CHECK] = None
    """Data to validate on, never the test data; left out, a tenth of the training samples is held out; none: no validation."""
    validation_attack: Annotated[str | None, CHECK] = None
    """The short attack of validation; left out: pgd:steps=10."""
    validation_samples: Annotated[int, CHECK] = 1000
    """At most so many."""
    evaluate_every: Annotated[int, CHECK] = 1
    """Epochs between two validations."""
    health: Annotated[bool, CHECK, Parameter(negative="--no-health")] = True
    """Look for what goes wrong silently after each epoch, and take catastrophic overfitting back."""
    out: Annotated[Path | None, RUN] = None
    """Folder for weights, history and checkpoint; a training that was stopped goes on there.
    Left out: sparring-train/MODEL-DATA-STRATEGY-NORM-EPS."""
    fresh: Annotated[bool, RUN] = False
    """Start anew, whatever the folder holds."""
    save_every: Annotated[float, RUN] = 60.0
    """Seconds between two checkpoints within an epoch."""
    time_limit: Annotated[float | None, RUN] = None
    """Stop after so many seconds, and save."""
    quiet: Annotated[bool, RUN] = False
    """No progress bar."""


def train(settings: TrainSettings) -> Outcome:
    """Train a model robustly; what is kept is ready for sparring evaluate."""
    if settings.task == "text":
        raise ValueError("--config says task: text, which has options of its own: type --task text as well")
    strategies.check(settings)
    import torch

    from sparring import Threat, fit
    from sparring.threat import parse_eps
    from sparring.training.history import Bar

    eps = settings.eps or EPS[settings.norm]
    threat = Threat(settings.norm, parse_eps(eps), typed=eps)
    attack = None if settings.validation_attack is None else recipes.parse([settings.validation_attack], threat)
    device = models.pick_device(settings.device)
    images = open_data(settings)
    learned, others = _labelled(settings, images)
    held: Any = None if settings.validation is None else settings.validation != "none"
    if held and settings.validation is not None:
        held = open_data(replace(settings, data=settings.validation))
    elif held is None and not _validates(settings):
        held = False
        note(
            f"{settings.labels} labels are few: none is held out to validate on, and the last weights count (or --validation)"
        )
    torch.manual_seed(settings.seed)
    model = models.load(settings, device)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"--model {settings.model} gave a {type(model).__name__}: expected an nn.Module to train")
    strategy = strategies.build(
        settings, threat, seed=settings.seed, channels=images.shape[0],
        load=lambda path: models.load(replace(settings, weights=path), device),
    )  # fmt: skip
    out = settings.out or Path("sparring-train") / _slug(settings, eps)
    names = (
        *(
            "epochs",
            "batch_size",
            "unlabelled_batch_size",
            "optimizer",
            "lr",
            "momentum",
            "weight_decay",
            "schedule",
            "warmup",
            "max_grad_norm",
        ),
        *("accumulate", "augment", "precision", "compile", "channels_last", "freeze", "head", "head_epochs", "body_lr"),
        *("validation_samples", "evaluate_every", "health", "save_every", "time_limit", "seed"),
    )
    watch = Watch()
    with Bar() as show:
        try:
            result = fit(
                model, learned, strategy, unlabelled=others, validation=held, validation_attack=attack, device=device, out=out,
                resume=not settings.fresh, progress=watch.then(None if settings.quiet else show),
                **{name: getattr(settings, name) for name in names},
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Stopped(f"{watch.text()} is kept in {out}; the same command goes on from there") from None
    return _tell(settings, result, out, eps, watch.last is None)


def _tell(settings: TrainSettings, result: "FitResult", out: Path, eps: str, old: bool) -> Outcome:
    last = result.history[-1] if result.history else None
    command = _command(settings, out, eps)
    if old:
        note(f"{out} already holds this training, finished: nothing was learned again (--fresh starts anew)")
    if last is not None:
        rows = {"best": result.best, "last": last}
        table([epoch_row(name, row) for name, row in rows.items() if row is not None])
        if result.best_adversarial is not None and result.best is not None:
            say(f"best, at most: {result.best.standing} (its weights: best_adversarial.safetensors)")
        say(f"{sum(epoch.seconds for epoch in result.history):.0f} s of training. Weights, history and log: {out}")
    if not result.finished:
        say("Time ran out: the same command goes on from there (with another --time-limit, or without).", style="bold")
    elif last is not None:
        say("Now find out what it withstands, on data that it has never seen:", style="bold")
        say(f"  {command}")
    return Outcome({"settings": settings.document(), **result.to_json(), "folder": str(out), "evaluate": command})


def epoch_row(name: str, epoch: "Epoch") -> dict[str, Any]:
    values = {
        "validation clean": epoch.validation_accuracy,
        "validation robust, at most": epoch.validation_robust_accuracy,
        "training clean": epoch.accuracy,
        "training robust": epoch.robust_accuracy,
    }
    shown = {key: None if value is None else f"{value:.1%}" for key, value in values.items()}
    return {"": name, "epoch": epoch.epoch, "loss": epoch.loss, **shown}


def _command(settings: TrainSettings, out: Path, eps: str) -> str:
    """What evaluates the network that has been trained."""
    from sparring.training import checkpoint

    words = ["sparring", "evaluate", "--model", settings.model]
    words += ["--model-args", *settings.model_args] if settings.model_args else []
    weights = checkpoint.BEST if _validates(settings) else checkpoint.LAST
    words += ["--weights", str(out / weights), "--data", settings.data if _has_test(settings) else "TEST_IMAGES"]
    words += ["--normalize", *settings.normalize] if settings.normalize else []
    words += ["--output", settings.output] if settings.output else []
    words += ["--size", str(settings.size)] if settings.size else []
    return shlex.join([*words, "--norm", settings.norm, "--eps", eps])


def _labelled(settings: TrainSettings, images: Any) -> tuple[Any, Any]:
    """What to learn from with labels, and without."""
    smooths = strategies.smooths(settings)
    for option in ("unlabelled", "unlabelled_batch_size"):
        if getattr(settings, option) is not None and not smooths:
            raise ValueError(
                f"--{option.replace('_', '-')}: --strategy {settings.strategy} learns from labels only; add --vat"
            )
    others = None if settings.unlabelled is None else open_data(replace(settings, data=settings.unlabelled))
    if settings.labels is None:
        return images, others
    from torch.utils.data import Subset

    from sparring.data import few_labels

    chosen = few_labels(images.labels, settings.labels, settings.seed).tolist()
    return Subset(images, chosen), images if smooths and others is None else others


def _validates(settings: TrainSettings) -> bool:
    return settings.validation != "none" and not (settings.validation is None and settings.labels is not None)


def _has_test(settings: TrainSettings) -> bool:
    """Whether the data set has test samples beside those that were learned from."""
    from sparring import data

    parts = []
    for split in (settings.split, "test"):
        try:
            parts.append(data.open(settings.data, split=split, size=settings.size, skip_bad=settings.skip_bad))
        except (OSError, ValueError):
            return False
    return settings.split != "test" and parts[0].labels.tolist() != parts[1].labels.tolist()


class Watch:
    """Remembers the last progress, for the line after Ctrl-C."""

    def __init__(self) -> None:
        self.last: Progress | None = None

    def then(self, show: Any) -> Any:
        def both(now: "Progress") -> None:
            self.last = now
            if show is not None:
                show(now)
            elif now.note is not None:
                note(now.note)

        return both

    def text(self) -> str:
        now = self.last
        return (
            "what was learned"
            if now is None
            else f"epoch {now.epoch} of {now.epochs}, batch {now.batch} of {now.batches},"
        )


def _slug(settings: TrainSettings, eps: str) -> str:
    """A folder name that tells trainings apart: ``small-cnn-fashion-mnist-yopo-linf-8-255``."""
    last = [re.split(r"[/:\\]", part.rstrip("/\\"))[-1] for part in (settings.model, settings.data)]
    what = [settings.strategy] if settings.strategy in ("standard", "vat") else [settings.strategy, settings.norm, eps]
    what += [f"{settings.labels}-labels"] if settings.labels is not None else []
    return re.sub(r"[^\w.]+", "-", "-".join([*last, *what]).lower()).strip("-.")
