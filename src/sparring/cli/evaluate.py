"""``sparring evaluate``: the cost first, a bar with running accuracies, a verdict that says what it is, a report."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sparring.cli import models, recipes
from sparring.cli.app import DONE, FAILED, Outcome, Stopped
from sparring.cli.console import note, say, table
from sparring.cli.settings import DATA, MANY, MODEL, RUN, THREAT, DataSettings, ModelSettings, SeedSettings
from sparring.cli.values import NORM_NAMES, Number, as_float, did_you_mean

if TYPE_CHECKING:
    from sparring.data import LabelledImages
    from sparring.evaluation import Estimate, EvaluationResult, Progress

VERDICT = Parameter(group=Group("Verdict", sort_key=6))
EPS = {"linf": "8/255", "l2": "0.5", "l1": "12"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(SeedSettings, DataSettings, ModelSettings):
    """Settings of ``sparring evaluate``."""

    model: Annotated[str, MODEL] = field()
    """package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, or the name of a zoo network."""
    data: Annotated[str, DATA] = field()
    """Image folder (one sub-folder a class), .npz with x and y, idx(.gz), CIFAR-10 batches, or a name:
    fashion-mnist, mnist, cifar10, gtsrb."""
    norm: Annotated[Literal["linf", "l2", "l1"], THREAT] = "linf"
    """How the attacker's change is measured."""
    eps: Annotated[Number | None, THREAT] = None
    """Largest change, for images in [0, 1]; left out: 8/255 for linf, 0.5 for l2, 12 for l1."""
    attacks: Annotated[list[str], MANY, THREAT] = field(default_factory=lambda: ["adaptive"])
    """adaptive, or attacks in the order to run: pgd fgsm pgd:steps=100,restarts=5,objective=margin"""
    batch_size: Annotated[int, RUN] = 128
    """Samples attacked together; memory is bounded by it, the result does not depend on it."""
    max_samples: Annotated[int | None, RUN] = None
    """Evaluate a random part of this size."""
    time_limit: Annotated[float | None, RUN] = None
    """Stop after so many seconds and report what is known by then."""
    autocast: Annotated[Literal["bfloat16", "float16"] | None, RUN] = None
    """Lower precision for the attacks' passes; every success is confirmed in full precision."""
    dry_run: Annotated[bool, RUN] = False
    """Print what it would cost, and stop."""
    out: Annotated[Path | None, RUN] = None
    """Folder of the result; a run that was stopped goes on there. Left out: sparring-evaluate/MODEL-DATA-NORM-EPS."""
    fail_under: Annotated[Number | None, VERDICT] = None
    """Exit with 1 when the robust accuracy is below this (0 to 1)."""


def evaluate(settings: EvaluateSettings) -> Outcome:
    """How often does the model withstand attack? Clean and robust accuracy with intervals, and a report."""
    from sparring import Threat
    from sparring.threat import parse_eps

    limit = _limit(settings.fail_under)
    eps = settings.eps or EPS[settings.norm]
    threat = Threat(settings.norm, parse_eps(eps), typed=eps)
    recipes.parse(settings.attacks, threat)  # a typo here must not cost the loading of a model
    device = models.pick_device(settings.device)
    images = open_data(settings)
    model = models.load(settings, device)
    out = settings.out or Path("sparring-evaluate") / _slug(settings, eps)
    return run(model, images, threat, settings, device=device, out=out, limit=limit)


def open_data(settings: DataSettings) -> "LabelledImages":
    """The data set of the settings; what was skipped is said, each by name."""
    from sparring import data

    assert settings.data is not None
    try:
        images = data.open(settings.data, split=settings.split, size=settings.size, skip_bad=settings.skip_bad)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--data {error}.{did_you_mean(settings.data, data.NAMES)}".rstrip(".")) from error
    for bad in images.skipped:
        note(f"skipped {bad}")
    return images


def run(
    model: Any,
    images: "LabelledImages",
    threat: Any,
    settings: EvaluateSettings,
    *,
    device: Any,
    out: Path,
    limit: float | None = None,
) -> Outcome:
    """Estimate, evaluate, tell. Also what the demo calls, with a model that it has trained itself."""
    import torch

    from sparring import evaluation

    earlier = _earlier(out, images)
    attacks = recipes.parse(settings.attacks, threat)
    common: dict[str, Any] = {
        "attacks": attacks,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "device": device,
        "max_samples": settings.max_samples,
    }
    if settings.time_limit is not None and not settings.time_limit > 0:
        raise ValueError(f"--time-limit {settings.time_limit:g}: expected seconds, above 0")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder, which need not be there yet")
    if settings.dry_run or earlier is None:
        cost = evaluation.estimate(model, images, threat, **common)
        line = cost_line(cost, device)
        if settings.dry_run:
            say(line)
            return Outcome({"estimate": {**vars(cost), "seconds": cost.seconds}, "device": str(device)})
        note(line)
    watch = _Watch()
    try:
        with evaluation.progress.Bar() as show:
            result = evaluation.evaluate(
                model,
                images,
                threat,
                **common,
                out=out,
                time_limit=settings.time_limit,
                autocast=None if settings.autocast is None else getattr(torch, settings.autocast),
                progress=watch.then(show),
                class_names=images.classes,
                model_info={"name": settings.model, "spec": models.spec(settings)},
            )
    except KeyboardInterrupt:
        raise Stopped(f"{watch.text()} kept in {out}; the same command goes on from there") from None
    if earlier is not None and earlier.finished:
        note(f"{out} already holds this evaluation, finished: nothing was run again")
    tell(result, threat, out)
    robust = result.robust_accuracy.value
    if limit is not None and robust < limit:
        say(f"Failed: robust accuracy {robust:.1%} is below --fail-under {limit:.1%}", style="bold red")
    failed = limit is not None and robust < limit
    return Outcome({**result.document, "folder": str(out)}, FAILED if failed else DONE)


class _Watch:
    """Remembers the last progress, for the line after Ctrl-C."""

    def __init__(self) -> None:
        self.last: Progress | None = None

    def then(self, show: Any) -> Any:
        def both(now: "Progress") -> None:
            self.last = now
            show(now)

        return both

    def text(self) -> str:
        return "no sample yet" if self.last is None else f"{self.last.done} of {self.last.total or '?'} samples"


def _earlier(out: Path, images: "LabelledImages") -> "EvaluationResult | None":
    """The result in the folder, if any; ValueError where it is of other data, which a fingerprint of settings can't see."""
    from sparring.evaluation import load_result

    if not (out / "result.json").exists():
        return None
    result = load_result(out)
    spec = result.document["data"]["spec"]
    if spec != images.spec:
        raise ValueError(f"{out} holds an evaluation of other data ({spec}, now {images.spec}): choose another --out")
    return result


def cost_line(cost: "Estimate", device: Any) -> str:
    """``At most 2,000 samples × 131 forwards and 130 backwards: 3 min on cpu``"""
    if cost.samples is None or cost.seconds is None:
        return f"Cost: at most {cost.forwards} forwards and {cost.backwards} backwards a sample on {device}"
    return (
        f"Cost: at most {cost.samples:,} samples × {cost.forwards} forwards and {cost.backwards} backwards, "
        f"{duration(cost.seconds)} on {device}; a sample that falls early costs less"
    )


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(75), duration(7300)
    ('under 1 s', '75 s', '2 h 2 min')
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def tell(result: "EvaluationResult", threat: Any, out: Path) -> None:
    """The verdict: a small table, a sentence that says what the number is, and where the report lies."""
    clean, robust = result.clean_accuracy, result.robust_accuracy
    named = {"clean accuracy": clean, "robust accuracy, at most": robust}
    table(
        [
            {
                "": name,
                "value": f"{p.value:.1%}",
                "95% interval": f"{p.low:.1%} to {p.high:.1%}",
                "samples": f"{p.count}/{p.total}",
            }
            for name, p in named.items()
        ]
    )
    rows = [
        {
            "attack": _described(row),
            "tried on": row["attacked"],
            "fooled": row["fooled"],
            "robust after it": f"{row['robust_accuracy']['value']:.1%}",
            "forwards": row["forwards"],
            "backwards": row["backwards"],
        }
        for row in result.attacks
    ]
    table(rows)
    say(
        f"At most {robust.value:.1%} of {robust.total} samples withstand {NORM_NAMES[threat.norm]} changes up to "
        f"{threat.typed}: an upper bound, since a stronger attack can only lower it.",
        style="bold",
    )
    if not result.finished:
        say("Time ran out: this is what is known so far; the same command without --time-limit goes on.")
    for warning in result.warnings:
        say(f"Warning ({warning.code}): {warning.message}", style="yellow")
    say(f"Report: {out / 'report.html'}")


def _described(row: dict[str, Any]) -> str:
    """``PGD, 40 steps, margin``: what tells one attack of a list from the next."""
    settings = row["settings"]
    restarts = settings.get("restarts", 1)
    parts = [
        row["name"],
        f"{settings['steps']} steps" if "steps" in settings else None,
        f"{restarts} restarts" if restarts > 1 else None,
        settings.get("objective"),
        f"towards {settings['targets']}" if settings.get("targets") else None,
    ]
    return ", ".join(part for part in parts if part)


def _limit(typed: str | None) -> float | None:
    if typed is None:
        return None
    value = as_float(typed)
    if not 0 <= value <= 1:
        raise ValueError(f"--fail-under {typed}: expected an accuracy from 0 to 1, such as 0.4")
    return value


def _slug(settings: EvaluateSettings, eps: str) -> str:
    """A folder name that tells runs apart: ``small-cnn-fashion-mnist-linf-8-255``."""
    last = [re.split(r"[/:\\]", part.rstrip("/\\"))[-1] for part in (settings.model, settings.data)]
    return re.sub(r"[^\w.]+", "-", "-".join([*last, settings.norm, eps]).lower()).strip("-.")
