"""``sparring evaluate``: the cost first, a bar with running accuracies, a verdict that says what it is, a report."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sparring.cli import models, recipes, texts
from sparring.cli.app import Outcome
from sparring.cli.console import note, say, speaks, watching
from sparring.cli.settings import (
    MANY,
    RUN,
    TEXT,
    THREAT,
    DataSettings,
    SeedSettings,
    SubjectSettings,
    TextSettings,
)
from sparring.cli.values import Number, did_you_mean
from sparring.cli.verdict import VerdictSettings, conclude, limit_of, shard_of

if TYPE_CHECKING:
    from sparring.data import LabelledImages
    from sparring.evaluation import Estimate, EvaluationResult

EPS = {"linf": "8/255", "l2": "0.5", "l1": "12"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(SeedSettings, TextSettings, SubjectSettings, VerdictSettings):
    """Settings of ``sparring evaluate``."""

    norm: Annotated[Literal["linf", "l2", "l1", "l0"], THREAT] = "linf"
    """How the attacker's change is measured; l0 counts the values that are changed, and only fmn attacks it."""
    eps: Annotated[Number | None, THREAT] = None
    """Largest change, for images in [0, 1]; left out: 8/255 for linf, 0.5 for l2, 12 for l1. l0 has none: give one."""
    attacks: Annotated[list[str], MANY, THREAT] = field(default_factory=lambda: ["adaptive"])
    """adaptive, or attacks in the order to run: pgd fgsm pgd:steps=100,restarts=5,objective=margin; of texts words, the
    default, and embeddings: words:max_changed=0.4,queries=500 embeddings:eps=5"""
    synonyms: Annotated[list[str], MANY, TEXT] = field(default_factory=list)
    """Where words take theirs from: a file of pairs or JSON {word: [synonyms]}, ppdb (in $SPARRING_DATA), or wordnet."""
    tagger: Annotated[Literal["pattern", "wordnet"] | None, TEXT] = None
    """What tells parts of speech, which a synonym must share; left out, they are not checked."""
    encoder: Annotated[str | None, TEXT] = None
    """What tells how alike two sentences are: minilm, or the folder of a Hugging Face encoder; left out, it is not checked."""
    access: Annotated[Literal["gradients", "scores", "decisions"], THREAT] = "gradients"
    """What may be asked of the model: without gradients Square attacks by scores, HopSkipJump by decisions."""
    query_budget: Annotated[int | None, THREAT] = None
    """With access scores or decisions: what that attack may ask about a sample; left out: 5,000."""
    query_log: Annotated[Path | None, RUN] = None
    """A file for every query of attacks without gradients, one JSON object a line."""
    batch_size: Annotated[int, RUN] = 128
    """Samples attacked together; memory is bounded by it, the result does not depend on it."""
    max_samples: Annotated[int | None, RUN] = None
    """Evaluate a random part of this size."""
    time_limit: Annotated[float | None, RUN] = None
    """Stop after so many seconds and report what is known by then."""
    autocast: Annotated[Literal["bfloat16", "float16"] | None, RUN] = None
    """Lower precision for the attacks' passes; every success is confirmed in full precision."""
    compile: Annotated[Literal["default", "reduce-overhead", "max-autotune"] | None, RUN] = None
    """torch.compile the model in this mode; on GPUs the last two use CUDA graphs."""
    channels_last: Annotated[bool, RUN, Parameter(negative="")] = False
    """Keep the filters, and images, in channels-last order, which is faster for many convolutional networks."""
    checkup: Annotated[bool, RUN, Parameter(negative="--no-checkup")] = True
    """Look at two dozen samples from every side at the end, to tell whether the number can be trusted."""
    dry_run: Annotated[bool, RUN] = False
    """Print what it would cost, and stop."""
    out: Annotated[Path | None, RUN] = None
    """Folder of the result; a run that was stopped goes on there. Left out: sparring-evaluate/MODEL-DATA-NORM-EPS."""
    shard: Annotated[str | None, RUN] = None
    """I/N: every N-th sample from the I-th on (0/4 to 3/4), for any scheduler; sparring merge joins the shards."""


def evaluate(settings: EvaluateSettings) -> Outcome:
    """How often does the model withstand attack? Clean and robust accuracy with intervals, and a report."""
    from sparring import Threat
    from sparring.threat import parse_eps

    limit_of(settings)
    shard_of(settings.shard, settings)
    if settings.task == "text":
        return texts.evaluate(settings)
    if settings.norm == "l0" and (settings.eps is None or settings.attacks == ["adaptive"]):
        raise ValueError(
            "--norm l0 has no default eps, and the adaptive attacks no form for it: give how many values may change, and "
            "fmn, as in --norm l0 --eps 20 --attacks fmn"
        )
    eps = settings.eps or EPS[settings.norm]
    threat = Threat(settings.norm, parse_eps(eps), typed=eps)
    recipes.parse(settings.attacks, threat)  # a typo here must not cost the loading of a model
    device = models.pick_device(settings.device)
    images = open_data(settings)
    model = _faster(models.load(settings, device), settings)
    out = settings.out or Path("sparring-evaluate") / _slug(settings, eps)
    return run(model, images, threat, settings, device=device, out=out)


def _faster(model: Any, settings: EvaluateSettings) -> Any:
    import torch
    from torch import nn

    if settings.channels_last:
        if not isinstance(model, nn.Module):
            raise TypeError(f"--channels-last needs an nn.Module, but {settings.model} gave a {type(model).__name__}")
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # a batch is filled up to one of few sizes: graphs of their own for each, where CUDA graphs are one of the modes
    return model if settings.compile is None else torch.compile(model, mode=settings.compile, dynamic=False)


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
    if images.name.endswith("(bundled subset)") and not settings.data.endswith(":bundled"):
        note(f"{settings.data} was not found: these are the {len(images):,} images that come with sparring")
    return images


def run(
    model: Any,
    images: "LabelledImages",
    threat: Any,
    settings: EvaluateSettings,
    *,
    device: Any,
    out: Path,
) -> Outcome:
    """Estimate, evaluate, tell. Also what the demo calls, with a model that it has trained itself."""
    import torch

    from sparring import evaluation

    earlier, shard = _earlier(out, images), shard_of(settings.shard, settings)
    attacks = recipes.parse(settings.attacks, threat)
    common: dict[str, Any] = {
        "attacks": attacks,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "device": device,
        "max_samples": settings.max_samples,
        "access": settings.access,
        "query_budget": settings.query_budget,
        "class_names": images.classes,
    }
    if settings.time_limit is not None and not settings.time_limit > 0:
        raise ValueError(f"--time-limit {settings.time_limit:g}: expected seconds, above 0")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder, which need not be there yet")
    if speaks() and (settings.dry_run or earlier is None):
        cost = _share(evaluation.estimate(model, images, threat, checkup=settings.checkup, **common), shard)
        done = evaluation.finished(out, shard)
        if cost.samples is not None:
            cost = replace(cost, samples=max(0, cost.samples - done))
        line = cost_line(cost, device, done)
        if settings.dry_run:
            say(line)
            return Outcome({"estimate": cost.to_json(), "device": str(device)})
        note(line)
    if settings.dry_run:
        return Outcome()
    with watching(out) as progress:
        result = evaluation.evaluate(
            model,
            images,
            threat,
            **common,
            out=out,
            shard=shard,
            time_limit=settings.time_limit,
            autocast=None if settings.autocast is None else getattr(torch, settings.autocast),
            checkup=settings.checkup,
            progress=progress,
            query_log=settings.query_log,
            model_info={"name": settings.model, "spec": models.spec(settings)},
        )
    if earlier is not None and earlier.finished:
        note(f"{out} already holds this evaluation, finished: nothing was run again")
    return conclude(result, settings, out, shard)


def _share(cost: "Estimate", shard: tuple[int, int] | None) -> "Estimate":
    """The cost of one shard, or of one of the processes that share the work."""
    from sparring.evaluation.together import processes

    number, of = (0, processes()) if shard is None else shard
    return cost if cost.samples is None else replace(cost, samples=len(range(number, cost.samples, of)))


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


def cost_line(cost: "Estimate", device: Any, done: int = 0) -> str:
    """``Cost on cpu, 2,000 samples: 28 passes each if all fall at once (9 s), about 110 on an ..., at most 9,184 ... (1 h)``

    done: samples that an earlier start has finished, and that the cost is without.
    """
    if cost.gated:
        cases = {
            "{} passes each if all fall at once": cost.fallen,
            "about {} on an ordinary robust model": cost.standing,
            "at most {} where gradients are masked": cost.most,
        }
    else:
        cases = {"{} passes each if all fall at once": cost.fallen, "at most {}": cost.most}
    said = []
    for text, case in cases.items():
        passes, seconds = cost.passes(case), cost.seconds(case)
        each = case.each if not passes or not cost.samples else passes * (1 / cost.samples)
        line = text.format(f"{each.forwards + each.backwards:,.0f}")
        said.append(line if seconds is None else f"{line} ({duration(seconds)})")
    counted = "samples unknown" if cost.samples is None else f"{cost.samples:,} samples"
    if done and cost.samples is not None:
        counted = f"the {counted} that an earlier start left ({done:,} are done)"
    unknown = f"; {cost.unknown} attacks of others not counted" if cost.unknown else ""
    return f"Cost on {device}, {counted}: {', '.join(said)}{unknown}"


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


def _slug(settings: EvaluateSettings, eps: str) -> str:
    """A folder name that tells runs apart: ``small-cnn-fashion-mnist-linf-8-255``."""
    last = [re.split(r"[/:\\]", part.rstrip("/\\"))[-1] for part in (settings.model, settings.data)]
    return re.sub(r"[^\w.]+", "-", "-".join([*last, settings.norm, eps]).lower()).strip("-.")
