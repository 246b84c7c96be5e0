"""``sparring demo``: two networks, one trained to hold, their reports, and an attacked photograph."""

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
from sparring.cli.console import heading, note, say, stage, table
from sparring.cli.settings import RUN, SeedSettings
from sparring.cli.values import Number

NETWORK, DATA, TARGET = "small-cnn", "fashion-mnist:bundled", "leopard"


def robust_recipe(eps: str) -> Any:
    """The strategy of the network that is to hold: what robustness costs least by (docs/strategies.md)."""
    from sparring import FastFGSM, Linf

    return FastFGSM(Linf(eps))


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
    """Train two small networks, one robustly, evaluate both, attack a photograph on an ImageNet network: one to three minutes."""
    from sparring import Standard
    from sparring.evaluation import compare

    start = time.monotonic()
    networks, results = {}, {}
    recipes = {"ordinary": (Standard(), "evaluation"), "robust": (robust_recipe(settings.eps), "evaluation-robust")}
    for number, (name, (strategy, _)) in enumerate(recipes.items(), 1):
        heading(
            f"{number}/5",
            f"Train {'a small' if number == 1 else 'a second, ' + name} network on 10,000 images of clothes",
        )
        networks[name] = train(settings, strategy, NETWORK if number == 1 else f"{NETWORK}-{name}")
    for number, (name, (_, folder)) in enumerate(recipes.items(), 3):
        heading(f"{number}/5", f"Attack {settings.samples:,} test images on the {name} network: how many withstand?")
        results[name] = evaluate(settings, *networks[name], settings.out / folder)
    heading("5/5", "Attack a photograph on an ImageNet network")
    photograph = attack(settings)
    say("")
    say(f"Both networks side by side, under changes up to {settings.eps}", style="bold")
    table([_row(name, recipes[name][0].name, networks[name][2], outcome.document) for name, outcome in results.items()])
    called = [f"{name} ({strategy.name})" for name, (strategy, _) in recipes.items()]
    both = compare(*(settings.out / folder for _, folder in recipes.values())).save(
        settings.out / "report.html", called
    )
    say(f"Done in {time.monotonic() - start:.0f} s. Now look at", style="bold")
    say(f"  {both}  both networks side by side, in any browser")
    for name, (_, folder) in recipes.items():
        say(f"  {settings.out / folder / 'report.html'}  the {name} network's own report")
    if photograph is not None:
        say(f"  {photograph['triptych']}  the photograph before and after")
    say("and try", style="bold")
    program = _program()
    say(f"  {program} verify {settings.out / 'evaluation'}")
    say(f"  {program} train --strategy yopo --model your_package.nets:make --data ./images --eps 8/255")
    say(f"  {program} evaluate --model your_package.nets:make --weights net.safetensors --data ./images --eps 8/255")
    documents = {"evaluation": results["ordinary"].document, "robust": results["robust"].document}
    return Outcome({**documents, "photograph": photograph, "folder": str(settings.out)})


def _row(name: str, strategy: str, seconds: float, document: dict[str, Any]) -> dict[str, Any]:
    clean, robust = (f"{document[key]['value']:.1%}" for key in ("clean_accuracy", "robust_accuracy"))
    return {
        "network": name, "trained with": strategy, "training": f"{seconds:.0f} s", "clean accuracy": clean,
        "robust accuracy, at most": robust,
    }  # fmt: skip


def _program() -> str:
    """What to type for this program: its path where the shell would not find it, as in a `.venv` that is not activated."""
    started = Path(sys.argv[0])
    return str(started) if started.name == "sparring" and shutil.which("sparring") is None else "sparring"


def train(settings: DemoSettings, strategy: Any, name: str) -> tuple[Any, Path, float]:
    """The trained network in eval mode, the file of its weights, and the seconds that it took."""
    from sparring import data, fit, zoo
    from sparring.training.checkpoint import weights, write_weights

    images = data.open(DATA, split="train")
    model = zoo.build(NETWORK, seed=settings.seed)
    device = models.pick_device(settings.device)
    with stage("training") as progress:
        result = fit(
            model, images, strategy, validation=False, epochs=settings.epochs, optimizer="adam", lr=2e-3,
            seed=settings.seed, progress=lambda now: progress(now.text, now.fraction), device=device,
        )  # fmt: skip
    last = result.history[-1]
    seconds = sum(epoch.seconds for epoch in result.history)
    right = [f"{value:.1%} right on {what}" for value, what in (
        (last.accuracy, "its training images"), (last.robust_accuracy, "adversarial examples of them"),
    ) if value is not None]  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{NETWORK}, {parameters:,} parameters, {strategy.name}: {' and '.join(right)} after {settings.epochs} epochs, "
        f"{seconds:.0f} s"
    )
    path = settings.out / f"{name}.safetensors"
    write_weights(path, weights(model))
    return model.eval(), path, seconds


def evaluate(settings: DemoSettings, model: Any, weights: Path, seconds: float, folder: Path) -> Outcome:
    """As ``sparring evaluate`` does it; an earlier demo's result is taken away first."""
    from sparring import Linf, data
    from sparring.cli.evaluate import EvaluateSettings, run

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
