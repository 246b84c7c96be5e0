"""``sparring verify``: does a result folder say the truth?"""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from sparring.cli import models, texts
from sparring.cli.app import DONE, FAILED, Outcome
from sparring.cli.console import note, say, waiting
from sparring.cli.settings import DATA, MODEL, RUN, ModelSettings, SeedSettings

RESULT = Parameter(group=Group("Result", sort_key=0))


@Parameter(name="*")
@dataclass(frozen=True)
class Folder:
    """The last base of a settings class, so that its field comes first: only then can it be given by position."""

    folder: Annotated[Path, RESULT]
    """Folder that sparring evaluate has written."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class VerifySettings(SeedSettings, ModelSettings, Folder):
    """Settings of ``sparring verify``."""

    model: Annotated[str | None, MODEL] = None
    """As for sparring evaluate; left out, the model that the folder names."""
    data: Annotated[str | None, DATA] = None
    """As for sparring evaluate; left out, the data that the folder names; none checks the saved examples only."""
    seed: Annotated[int, RUN] = 1
    """Draws which samples are attacked again, and with what noise."""
    samples: Annotated[int, RUN] = 100
    """How many of the samples claimed robust are attacked again."""
    batch_size: Annotated[int, RUN] = 128
    """Samples passed through the model at once."""


def verify(settings: VerifySettings) -> Outcome:
    """Re-check the claim of a result folder; exits with 1 on any lie."""
    from sparring import data
    from sparring.evaluation import load_result
    from sparring.evaluation import verify as check

    document = load_result(settings.folder).document
    device = models.pick_device(settings.device)
    spec: Any = settings.data or document["data"]["spec"]
    if settings.data == "none":
        spec = None
    elif spec is None:
        note(
            "the folder does not say how to open the data: only the saved examples are checked; --data checks the rest"
        )
    samples: Any
    if document.get("task") == "text":
        model, samples = texts.recorded(settings.model, spec, document)
        model = model.to(device)
    else:
        model_settings = _recorded_model(settings, document)
        samples = None if spec is None else data.open(spec)
        model = models.load(model_settings, device)
    with waiting(f"verifying {settings.folder}"):
        found = check(
            settings.folder,
            model,
            samples,
            samples=settings.samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            device=device,
        )
    say(f"Checked: {'; '.join(found.checked)}")
    say(f"{found.fooling} of {found.examples} saved examples fool the model" + _rounded(found.still_8bit))
    if found.attacked_again:
        say(
            f"{found.fallen} of {found.attacked_again} samples claimed robust fell to the same attacks with other random "
            "numbers (no lie: robust accuracy is an upper bound)"
        )
    for lie in found.lies:
        say(f"Lie: {lie}", style="bold red")
    say("The result says the truth." if found.ok else f"{len(found.lies)} claims do not hold.", style="bold")
    return Outcome(found.to_json(), DONE if found.ok else FAILED)


def _rounded(still: int | None) -> str:
    return "" if still is None else f", {still} of them also after 8-bit rounding"


def _recorded_model(settings: VerifySettings, document: dict[str, Any]) -> VerifySettings:
    if settings.model is not None:
        return settings
    recorded = document["model"]["spec"]
    if not isinstance(recorded, dict) or "model" not in recorded:
        raise ValueError(f"{settings.folder} does not say how to load its model: give --model ({models.FORMS})")
    given: dict[str, Any] = {key.replace("-", "_"): value for key, value in recorded.items()}
    if settings.weights is not None:
        given["weights"] = settings.weights
    elif "weights" in given:
        given["weights"] = Path(given["weights"])
    if "normalize" in given:
        given["normalize"] = tuple(given["normalize"])
    return replace(settings, **given)
