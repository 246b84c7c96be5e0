"""``sparring doctor``: what is wrong with a network, or with its training, and what helps."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from sparring.cli import models
from sparring.cli.app import DONE, FAILED, Outcome
from sparring.cli.console import note, say, waiting
from sparring.cli.evaluate import EPS, open_data
from sparring.cli.settings import (
    DATA,
    RUN,
    THREAT,
    SeedSettings,
    SubjectSettings,
    ThreatSettings,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DoctorSettings(SeedSettings, ThreatSettings, SubjectSettings):
    """Settings of ``sparring doctor``."""

    split: Annotated[str, DATA] = "train"
    """Which part of a named data set: what the network was trained on shows most."""
    bn: Annotated[Literal["auto", "batch", "train", "eval"], THREAT] = "eval"
    """What the training crafts its examples with: eval, if it calls model.eval() for that, as most attacks do."""
    history: Annotated[Path | None, RUN] = None
    """history.json that sparring train has written, or JSON: one object an epoch, with loss and accuracies."""
    samples: Annotated[int, RUN] = 256
    """How many samples to look at, drawn at random."""
    batch_size: Annotated[int, RUN] = 64
    """Samples that share batch statistics: best the batch size of training."""


def doctor(settings: DoctorSettings) -> Outcome:
    """What is wrong with a network, or with its training? Exits with 1 where something is."""
    from sparring import PGD, Mixed, Threat, diagnose
    from sparring.threat import parse_eps

    eps = settings.eps or EPS[settings.norm]
    threat = Threat(settings.norm, parse_eps(eps), typed=eps)
    history = [] if settings.history is None else _history(settings.history)
    device = models.pick_device(settings.device)
    images = open_data(settings)
    model = models.load(settings, device)
    with waiting(f"examining {settings.model} on up to {settings.samples} samples"):
        found = diagnose(
            model,
            images,
            threat,
            strategy=Mixed(PGD(threat), bn=settings.bn),
            history=history,
            samples=settings.samples,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
    for finding in found.findings:
        say(str(finding))
    if not found.findings:
        say("nothing wrong was found")
    for what in found.skipped:
        note(f"not looked at: {what}")
    return Outcome(found.to_json(), FAILED if found.findings else DONE)


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"--history {path}: no such file")
    try:
        rows = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise ValueError(f"--history {path} is no JSON: expected the history.json of a training") from None
    if isinstance(rows, dict):
        rows = rows.get("epochs", rows.get("history"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"--history {path}: expected a list of objects, one an epoch, or one under 'epochs'")
    return rows
