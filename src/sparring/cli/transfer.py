"""``sparring transfer``: examples made on each of several models, shown to each of them."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sparring.cli import models, recipes
from sparring.cli.app import Outcome
from sparring.cli.console import say, stage, table
from sparring.cli.evaluate import EPS, open_data
from sparring.cli.settings import (
    DATA,
    MANY,
    MODEL,
    RUN,
    THREAT,
    DataSettings,
    ModelSettings,
    SeedSettings,
    ThreatSettings,
)
from sparring.cli.values import NORM_NAMES


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TransferSettings(SeedSettings, ThreatSettings, DataSettings):
    """Settings of ``sparring transfer``."""

    models: Annotated[list[str], MODEL, MANY] = field()
    """Two or more of package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, or a zoo name; NAME=SPEC calls
    one by a name."""
    weights: Annotated[list[str], MODEL, MANY] = field(default_factory=list)
    """One file for each of the models, in their order; none for a model that needs none."""
    unsafe_pickle: Annotated[bool, MODEL] = False
    """Allow full pickles as --weights. They can run any code: only for files that you made."""
    normalize: Annotated[tuple[str, str] | None, MODEL] = None
    """MEAN STD of all of them, one number or one a channel: each gets (x - mean) / std."""
    data: Annotated[str, DATA] = field()
    """Image folder (one sub-folder a class), .npz with x and y, idx(.gz), CIFAR-10 batches, or a name:
    fashion-mnist, mnist, cifar10, gtsrb."""
    attacks: Annotated[list[str], MANY, THREAT] = field(default_factory=lambda: ["fgsm", "pgd", "mifgsm"])
    """What makes the examples: fgsm pgd:steps=100 mifgsm difgsm:decay=0"""
    batch_size: Annotated[int, RUN] = 128
    """Samples attacked together; memory is bounded by it."""
    max_samples: Annotated[int | None, RUN] = 1000
    """Take a random part of this size."""
    out: Annotated[Path, RUN] = Path("sparring-transfer")
    """Folder for the figure and the numbers."""


def transfer(settings: TransferSettings) -> Outcome:
    """Which examples made on one model fool another? A heat map for each attack."""
    from sparring import Threat, transfer_matrix
    from sparring.threat import parse_eps

    eps = settings.eps or EPS[settings.norm]
    threat = Threat(settings.norm, parse_eps(eps), typed=eps)
    attacks = recipes.parse(settings.attacks, threat)
    if isinstance(attacks, str):
        raise ValueError(f"--attacks {attacks}: expected attacks by name, such as fgsm pgd mifgsm")
    device = models.pick_device(settings.device)
    images = open_data(settings)
    networks = load(settings, device)
    with stage("transfer") as progress:
        matrix = transfer_matrix(
            networks,
            images,
            threat,
            attacks,
            batch_size=settings.batch_size,
            seed=settings.seed,
            device=device,
            max_samples=settings.max_samples,
            progress=progress,
        )
    table([{"model": name, "clean accuracy": f"{rate.value:.1%}"} for name, rate in matrix.clean.items()])
    table(matrix.rows, f"Fooled, of the images that both models get right; {NORM_NAMES[settings.norm]} {eps}")
    matrix.save(settings.out)
    say(f"Figure: {settings.out / 'transfer.png'}  numbers: {settings.out / 'transfer.json'}")
    return Outcome(matrix.to_json())


def load(settings: TransferSettings, device: Any) -> dict[str, Any]:
    """The models by name: as they were called, or by the last part of their spec."""
    if settings.weights and len(settings.weights) != len(settings.models):
        raise ValueError(
            f"--weights: {len(settings.weights)} files for {len(settings.models)} models; give one each, or none"
        )
    found: dict[str, Any] = {}
    for number, typed in enumerate(settings.models):
        called, equals, spec = typed.partition("=")
        file = settings.weights[number] if settings.weights else "none"
        name = called if equals else typed.rsplit(":", 1)[-1]
        if name in found:
            raise ValueError(f"--models: two are called {name!r}; name them, as in first={typed} second={typed}")
        one = ModelSettings(
            model=spec if equals else typed,
            weights=None if file == "none" else Path(file),
            unsafe_pickle=settings.unsafe_pickle,
            normalize=settings.normalize,
        )
        found[name] = models.load(one, device)
    if len(found) < 2:
        raise ValueError("--models: expected two or more, or there is nothing to transfer")
    return found
