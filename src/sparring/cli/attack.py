"""``sparring attack``: photographs in; adversarial PNGs, what the model sees, and figures out."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sparring.cli import models
from sparring.cli.app import Outcome
from sparring.cli.console import say, table, waiting
from sparring.cli.settings import DATA, MANY, MODEL, THREAT, ModelSettings, SeedSettings
from sparring.cli.values import NORM_NAMES, Number, as_float, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from sparring.attacks import Attack

ATTACK = Parameter(group=Group("Attack", sort_key=4))
EPS = {"linf": "8/255", "l2": "3", "l1": "200", "l0": "1000"}
# Which settings an attack has; another one that is given is refused, never ignored.
TAKES = {
    "pgd": {"steps", "restarts", "objective"},
    "fgsm": {"objective"},
    "rfgsm": {"objective"},
    "ifgsm": {"steps", "objective"},
    "mifgsm": {"steps", "objective"},
    "fmn": {"steps"},
    "optimizer": {"steps", "objective", "optimizer", "lr", "optimizer_args"},
    "square": {"queries", "restarts", "objective"},
    "hopskipjump": {"queries"},
}


@Parameter(name="*")
@dataclass(frozen=True)
class Photographs:
    """The last base of a settings class, so that its field comes first: only then can it be given by position."""

    images: Annotated[list[Path], MANY, DATA]
    """Photographs to attack."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AttackSettings(SeedSettings, ModelSettings, Photographs):
    """Settings of ``sparring attack``."""

    model: Annotated[str, MODEL] = "efficientnet-lite0"
    """package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, or the name of a zoo network."""
    size: Annotated[int, DATA] = 224
    """Photographs are scaled and cropped to this many pixels square."""
    channels: Annotated[Literal[1, 3], DATA] = 3
    """What the model takes: 3 for colour, 1 for grey."""
    norm: Annotated[Literal["linf", "l2", "l1", "l0", "none"], THREAT] = "linf"
    """What eps measures; none leaves the box [0, 1] as the only limit (with --optimizer)."""
    eps: Annotated[Number | None, THREAT] = None
    """Largest change, pixels in [0, 1]; left out: 8/255 for linf, 3 for l2, 200 for l1, 1000 values for l0."""
    target: Annotated[str | None, THREAT] = None
    """Class to reach: its number, its name, or least-likely, second, random; left out, any wrong class will do."""
    attack: Annotated[
        Literal["pgd", "fgsm", "rfgsm", "ifgsm", "mifgsm", "fmn", "optimizer", "square", "hopskipjump"] | None, ATTACK
    ] = None
    """pgd if left out, fmn for l0, or optimizer where --optimizer is given. fmn and hopskipjump look for the smallest change;
    square asks for the model's scores only, hopskipjump for its decisions only."""
    steps: Annotated[int | None, ATTACK] = None
    """Gradient steps; left out: pgd 40, ifgsm and mifgsm 10, fmn and optimizer 100."""
    queries: Annotated[int | None, ATTACK] = None
    """What square and hopskipjump may ask about each photograph; 5000 if left out."""
    restarts: Annotated[int | None, ATTACK] = None
    """Random starts of pgd and square; 1 if left out."""
    objective: Annotated[Literal["cross-entropy", "margin", "dlr", "logit"] | None, ATTACK] = None
    """What is climbed; cross-entropy if left out, by square margin."""
    optimizer: Annotated[str | None, ATTACK] = None
    """A class of torch.optim moves the image: SGD, RMSprop, Adam, ..."""
    lr: Annotated[Number | None, ATTACK] = None
    """Its learning rate, 0.01 if left out."""
    optimizer_args: Annotated[list[str], ATTACK, MANY] = field(default_factory=list)
    """Its other settings: momentum=0.9 ..."""
    out: Annotated[Path, Parameter(group=Group("Run", sort_key=5))] = Path("sparring-attack")
    """Folder for the PNGs and the figures."""


def attack(settings: AttackSettings) -> Outcome:
    """Attack photographs: the adversarial image as 8-bit PNG, what the model sees before and after, a figure."""
    import torch

    from sparring.data import read_image, save_png

    crafting = build(settings)
    x = torch.stack([read_image(path, size=settings.size, channels=settings.channels) for path in settings.images])
    device = models.pick_device(settings.device)
    model, x = models.load(settings, device), x.to(device)
    before = probabilities(model, x)
    names = class_names(before.shape[1])
    goal = target(settings.target, names, len(x))
    with waiting(f"{crafting.name} on {len(x)} photograph{'s'[: len(x) > 1]}"):
        goals = goal.to(device) if isinstance(goal, torch.Tensor) else goal
        crafted = crafting(model, x, before.argmax(1), goals, seed=settings.seed)
    after = probabilities(model, crafted.x)
    settings.out.mkdir(parents=True, exist_ok=True)
    documents = []
    for i, (path, stem) in enumerate(zip(settings.images, _stems(settings.images))):
        png, figure = settings.out / f"{stem}-adversarial.png", settings.out / f"{stem}-triptych.png"
        save_png(crafted.x[i], png)
        stored = read_image(png, size=None, channels=settings.channels)[None].to(device)
        saved = probabilities(model, stored)[0]
        wanted = None if crafted.targets is None else int(crafted.targets[i])
        seen = int(saved.argmax())
        size = float(crafting.threat.size(x[i : i + 1], stored))
        document = {
            "image": str(path),
            "target": wanted,
            "success": bool(crafted.success[i]),
            "success_8bit": seen == wanted if wanted is not None else seen != int(before[i].argmax()),
            "norm": float(crafted.norm[i]),
            "norm_8bit": size,
            "before": top(before[i], names),
            "after": top(after[i], names),
            "after_8bit": top(saved, names),
            "png": str(png),
            "triptych": str(figure),
        }
        _draw(x[i], stored[0], document, f"{NORM_NAMES[crafting.threat.norm]} norm {size:.3g}", figure)
        _tell(document, names, NORM_NAMES[crafting.threat.norm])
        documents.append(document)
    passes = {"forwards": crafted.forwards, "backwards": crafted.backwards}
    return Outcome({"attack": crafting.name, "settings": settings.document(), "images": documents, "passes": passes})


def build(settings: AttackSettings) -> "Attack":
    """The attack that the settings describe. ValueError where one does not belong to it."""
    import math

    from sparring.evaluation.cascade import NAMED
    from sparring.threat import Threat, parse_eps

    name = settings.attack or ("optimizer" if settings.optimizer else "fmn" if settings.norm == "l0" else "pgd")
    options = ("steps", "queries", "restarts", "objective", "optimizer", "lr", "optimizer_args")
    given = {option: getattr(settings, option) for option in options if getattr(settings, option) not in (None, [])}
    for option in given:
        if option not in TAKES[name]:
            takers = ", ".join(attack for attack, takes in TAKES.items() if option in takes)
            raise ValueError(f"--{option.replace('_', '-')} is no setting of {name}, but of {takers}")
    if settings.norm == "none":
        if settings.eps is not None or name != "optimizer":
            raise ValueError("--norm none sets no ball: it goes with --optimizer and without --eps")
        threat = Threat("l2", math.inf)
    else:
        eps = settings.eps or EPS[settings.norm]
        threat = Threat(settings.norm, parse_eps(eps), typed=eps)
    if "lr" in given:
        given["lr"] = as_float(given["lr"])
    if "optimizer_args" in given:
        given["options"] = models.parse_arguments(given.pop("optimizer_args"), "--optimizer-args")
    return NAMED[name](threat, **given)


def probabilities(model: Any, x: "Tensor") -> "Tensor":
    """Softmax of the model's logits for x (B, C, H, W), float32 (B, K) on the CPU."""
    import torch

    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        kind = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"the model returned {kind}: expected logits (B, classes); --output KEY picks them")
    return logits.float().softmax(1).cpu()


def class_names(count: int) -> list[str]:
    """Names where the classes are ImageNet's 1,000, numbers otherwise."""
    from sparring.data import imagenet_classes

    return imagenet_classes() if count == 1000 else [f"class {i}" for i in range(count)]


def target(typed: str | None, names: Sequence[str], count: int) -> "Tensor | str | None":
    """(count,) class numbers, or one of the named choices. ValueError for a class that there is not."""
    import torch

    if typed is None or typed in ("least-likely", "second", "random"):
        return typed
    if typed.isdecimal():
        if int(typed) >= len(names):
            raise ValueError(f"--target {typed}: the model has classes 0 to {len(names) - 1}")
        return torch.full((count,), int(typed))
    folded = [name.lower() for name in names]
    if typed.lower() not in folded:
        hint = did_you_mean(typed, names) or " Give its number, or least-likely, second, random"
        raise ValueError(f"--target {typed!r}: the model has no class of that name.{hint}")
    return torch.full((count,), folded.index(typed.lower()))


def top(probability: "Tensor", names: Sequence[str], count: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of one sample (K,)."""
    values, labels = probability.topk(min(count, len(names)))
    return [{"label": k, "name": names[k], "probability": p} for k, p in zip(labels.tolist(), values.tolist())]


def _stems(paths: Sequence[Path]) -> list[str]:
    """A file name each: photographs of one name from two folders must not overwrite each other."""
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems


def _draw(original: "Tensor", adversarial: "Tensor", document: dict[str, Any], caption: str, path: Path) -> None:
    from sparring import inspection

    best = [(document[when][0]["name"], document[when][0]["probability"]) for when in ("before", "after_8bit")]
    figure = inspection.triptych(original.cpu(), adversarial.cpu(), before=best[0], after=best[1], note=caption)
    inspection.save(figure, path)


def _tell(document: dict[str, Any], names: Sequence[str], norm: str) -> None:
    wanted = "another class" if document["target"] is None else names[document["target"]]
    if document["success_8bit"]:
        verdict = f"fooled: the model sees {document['after_8bit'][0]['name']}, also after 8-bit rounding"
    elif document["success"]:
        verdict = "fooled as floats, but 8-bit rounding undid it"
    else:
        verdict = f"not fooled into {wanted} with this attack"
    say(f"{Path(document['image']).name}: {verdict}", style="bold")
    columns = {"before": "before", "after": "after", "after_8bit": "after, 8 bits"}
    rows = zip(*(document[key] for key in columns))
    table([{h: f"{c['name']}  {c['probability']:.1%}" for h, c in zip(columns.values(), row)} for row in rows])
    say(f"{norm} size of the change, as saved: {document['norm_8bit']:.4g}")
    say(f"{document['png']}  {document['triptych']}")
