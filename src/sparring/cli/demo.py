"""``sparring demo``: from nothing to a report and an attacked photograph."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sparring.cli import models
from sparring.cli.app import Outcome, Stopped
from sparring.cli.console import heading, note, say, stage
from sparring.cli.settings import RUN, SeedSettings
from sparring.cli.values import Number

NETWORK, DATA, TARGET = "small-cnn", "fashion-mnist:bundled", "leopard"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DemoSettings(SeedSettings):
    """Settings of ``sparring demo``."""

    epochs: Annotated[int, RUN] = 5
    """Epochs of training, on 10,000 bundled images."""
    samples: Annotated[int, RUN] = 1000
    """How many bundled test images are attacked."""
    eps: Annotated[Number, RUN] = "8/255"
    """Largest change of a pixel, for images in [0, 1]."""
    out: Annotated[Path, RUN] = Path("sparring-demo")
    """Folder for the network, the report and the figure. An earlier demo's result in it is replaced."""


_DEMO = DemoSettings()


def demo(settings: DemoSettings = _DEMO) -> Outcome:
    """Train a small network, evaluate it, attack a photograph on an ImageNet network: about two minutes."""
    start = time.monotonic()
    heading("1/3", "Train a small network on 10,000 images of clothes")
    model, weights = train(settings)
    heading("2/3", f"Attack {settings.samples:,} test images: how many withstand?")
    result = evaluate(settings, model, weights)
    heading("3/3", "Attack a photograph on an ImageNet network")
    photograph = attack(settings)
    folder = settings.out / "evaluation"
    say("")
    say(f"Done in {time.monotonic() - start:.0f} s. Now look at", style="bold")
    say(f"  {folder / 'report.html'}  the report, in any browser")
    if photograph is not None:
        say(f"  {photograph['triptych']}  the photograph before and after")
    say("and try", style="bold")
    program = _program()
    say(f"  {program} verify {folder}")
    say(f"  {program} evaluate --model your_package.nets:make --weights net.safetensors --data ./images --eps 8/255")
    return Outcome({"evaluation": result.document, "photograph": photograph, "folder": str(settings.out)})


def _program() -> str:
    """What to type for this program: its path where the shell would not find it, as in a `.venv` that is not activated."""
    started = Path(sys.argv[0])
    return str(started) if started.name == "sparring" and shutil.which("sparring") is None else "sparring"


def train(settings: DemoSettings) -> tuple[Any, Path]:
    """The trained network in eval mode, and the file of its weights."""
    import os

    from safetensors.torch import save_file

    from sparring import data, zoo
    from sparring.training import train as fit

    images = data.open(DATA, split="train")
    model = zoo.build(NETWORK, seed=settings.seed)
    device = models.pick_device(settings.device)
    with stage("training") as progress:
        history = fit(
            model, images, epochs=settings.epochs, lr=2e-3, seed=settings.seed, progress=progress, device=device
        )
    last = history.epochs[-1]
    seconds = sum(epoch.seconds for epoch in history.epochs)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{NETWORK}, {parameters:,} parameters: {last.accuracy:.1%} right on its training images after "
        f"{settings.epochs} epochs, {seconds:.0f} s"
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    path, partial = settings.out / f"{NETWORK}.safetensors", settings.out / f".{NETWORK}.{os.getpid()}.tmp"
    try:
        save_file({name: tensor.cpu() for name, tensor in model.state_dict().items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return model.eval(), path


def evaluate(settings: DemoSettings, model: Any, weights: Path) -> Outcome:
    """As ``sparring evaluate`` does it; an earlier demo's result is taken away first."""
    from sparring import Linf, data
    from sparring.cli.evaluate import EvaluateSettings, run

    folder = settings.out / "evaluation"
    if (folder / "result.json").exists() or (folder / ".parts").exists():
        shutil.rmtree(folder)
    asked = EvaluateSettings(
        model=NETWORK, weights=weights, data=DATA, eps=settings.eps, max_samples=settings.samples, seed=settings.seed
    )
    device = models.pick_device(settings.device)
    try:
        return run(model, data.open(DATA), Linf(settings.eps), asked, device=device, out=folder)
    except Stopped:
        raise Stopped("the demo starts from the beginning next time") from None


def attack(settings: DemoSettings) -> dict[str, Any] | None:
    """What became of the photograph; None, with a line that says why, without the ImageNet weights."""
    from sparring.cli.attack import AttackSettings
    from sparring.cli.attack import attack as attack_photographs
    from sparring.data import photograph

    asked = AttackSettings(
        images=[photograph()], target=TARGET, eps=settings.eps, steps=20, seed=settings.seed, device=settings.device
    )
    try:
        outcome = attack_photographs(replace(asked, out=settings.out))
    except ModuleNotFoundError as error:
        note(f"Skipped: {error}")
        return None
    document: dict[str, Any] = outcome.document["images"][0]
    return document
