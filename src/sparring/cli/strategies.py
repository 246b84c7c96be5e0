"""Strategies as a person types them: a name, and options of which each belongs to some of them."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sparring.cli import recipes
from sparring.cli.settings import MANY, Settings
from sparring.cli.values import Number, as_float, did_you_mean

if TYPE_CHECKING:
    from sparring.threat import Threat
    from sparring.training import Strategy

STRATEGY = Parameter(group=Group("Strategy", sort_key=4))

VAT_EPS = 2.0  # for images of 28×28 in [0, 1]
_EACH = ("bn", "label_smoothing")
TAKES = {
    "standard": ("Standard", ()),
    "mixed": ("Mixed", ("attack", "alpha", "fraction")),
    "fgsm": ("FGSMTraining", ("alpha", "fraction")),
    "fast-fgsm": ("FastFGSM", ("step_size", "alpha", "fraction")),
    "nfgsm": ("NFGSM", ("k", "step_size", "alpha", "fraction")),
    "gradalign": ("GradAlign", ("weight", "step_size")),
    "pgd": ("PGDTraining", ("steps", "step_size", "alpha", "fraction", "keep", "stop_when_fooled")),
    "free": ("Free", ("m", "step_size", "keep")),
    "yopo": ("YOPO", ("m", "n", "step_size", "form", "first", "keep")),
    "trades": ("TRADES", ("beta", "steps", "step_size")),
    "trades-yopo": ("TRADESYOPO", ("m", "n", "beta", "step_size", "first")),
    "mart": ("MART", ("weight", "steps", "step_size")),
    "ensemble": ("EnsembleTraining", ("attack", "sources", "alpha", "fraction")),
    "advprop": ("AdvProp", ("attack", "alpha")),
    "generator": ("GeneratorTraining", ("alpha", "fraction", "width")),
    "vat": ("VAT", ()),
}
"""The class behind a name, and which options are its own."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StrategySettings(Settings):
    """How examples are made while the network learns, and what stands round it."""

    strategy: Annotated[str, STRATEGY] = field()
    """standard, mixed, fgsm, fast-fgsm, nfgsm, gradalign, pgd, free, yopo, trades, trades-yopo, mart, ensemble, advprop,
    generator, vat. What is left out below has the strategy's own default (docs/strategies.md)."""
    m: Annotated[int | None, STRATEGY] = None
    """free: replays of a batch. yopo, trades-yopo: full passes a batch."""
    n: Annotated[int | None, STRATEGY] = None
    """yopo, trades-yopo: steps in the first layer after each full pass."""
    form: Annotated[Literal["hamiltonian", "gradient"] | None, STRATEGY] = None
    """yopo: what the layers learn from."""
    first: Annotated[str | None, STRATEGY] = None
    """yopo, trades-yopo: name of the first layer, where it is not to be found."""
    steps: Annotated[int | None, STRATEGY] = None
    """pgd, trades, mart: attack steps a batch."""
    step_size: Annotated[Number | None, STRATEGY] = None
    """Of one attack step, for images in [0, 1]."""
    attack: Annotated[str | None, STRATEGY] = None
    """mixed, ensemble, advprop: which attack makes the examples, as in pgd:steps=7."""
    alpha: Annotated[float | None, STRATEGY] = None
    """Weight of the clean loss, beside 1 - alpha of the adversarial one."""
    fraction: Annotated[float | None, STRATEGY] = None
    """Part of the batch that is replaced by adversarial examples, in place of a second one."""
    beta: Annotated[float | None, STRATEGY] = None
    """trades, trades-yopo: weight of agreement between clean and adversarial answers."""
    weight: Annotated[float | None, STRATEGY] = None
    """gradalign, mart: weight of the second term."""
    k: Annotated[float | None, STRATEGY] = None
    """nfgsm: size of the noise, in multiples of eps."""
    keep: Annotated[bool, STRATEGY] = False
    """pgd, free, yopo: keep each sample's perturbation, and go on from it next time."""
    stop_when_fooled: Annotated[bool, STRATEGY] = False
    """pgd: a sample climbs until the network errs, and no further."""
    sources: Annotated[list[Path], STRATEGY, MANY] = field(default_factory=list)
    """ensemble: weights of other networks of the same --model that make examples, too."""
    width: Annotated[int | None, STRATEGY] = None
    """generator: channels of its first layer."""
    bn: Annotated[Literal["auto", "train", "eval", "batch", "split"] | None, STRATEGY] = None
    """Which statistics BatchNorm uses while examples are made (docs/batchnorm.md)."""
    label_smoothing: Annotated[float | None, STRATEGY] = None
    """Of the loss that is learned from."""
    awp: Annotated[float | None, STRATEGY] = None
    """Adversarial weight perturbation of this size, such as 0.005."""
    ema: Annotated[float | None, STRATEGY] = None
    """Average the weights exponentially, with this decay, such as 0.995; the averages are validated and kept."""
    vat: Annotated[float | None, STRATEGY] = None
    """Virtual adversarial training with this L2 radius round any strategy, also on samples without labels (--labels,
    --unlabelled); --strategy vat takes 2.0 where it is left out."""
    entropy_minimisation: Annotated[bool, STRATEGY] = False
    """vat: learn to be sure of samples without labels, too."""


def check(settings: StrategySettings) -> None:
    """ValueError, before anything is loaded, for a strategy that there is not, or an option of another one."""
    if settings.strategy not in TAKES:
        hint = did_you_mean(settings.strategy, TAKES) or f" Known: {', '.join(TAKES)}"
        raise ValueError(f"--strategy {settings.strategy!r}: no such strategy.{hint}")
    takes = TAKES[settings.strategy][1]
    for name in given(settings):
        if name not in takes and name not in _EACH:
            takers = ", ".join(other for other, (_, options) in TAKES.items() if name in options)
            raise ValueError(f"--{name.replace('_', '-')} is no setting of {settings.strategy}, but of {takers}")
    if settings.entropy_minimisation and not smooths(settings):
        raise ValueError(
            "--entropy-minimisation is a setting of virtual adversarial training: --strategy vat, or --vat 2.0"
        )
    if settings.strategy == "ensemble" and not settings.sources:
        raise ValueError("--sources is missing: --strategy ensemble takes the weights of one other network or more")


def smooths(settings: StrategySettings) -> bool:
    """Whether samples without labels are learned from."""
    return settings.strategy == "vat" or settings.vat is not None


def given(settings: StrategySettings) -> dict[str, Any]:
    """The strategy's own options that were typed."""
    other = {"strategy", "awp", "ema", "vat", "entropy_minimisation", *(f.name for f in fields(Settings))}
    names = [f.name for f in fields(StrategySettings) if f.name not in other]
    typed = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in typed.items() if value is not None and value is not False and value != []}


def build(settings: StrategySettings, threat: "Threat", *, seed: int, channels: int, load: Any) -> "Strategy":
    """The strategy, with what stands round it. load(weights) gives another network of the same kind, for `sources`."""
    import sparring
    from sparring.training import AWP, EMA, Part, VirtualAdversarial

    check(settings)
    name, takes = TAKES[settings.strategy]
    options = given(settings)
    if "step_size" in options:
        options["step_size"] = as_float(options["step_size"])
    if "sources" in options:
        options["sources"] = [load(path) for path in options["sources"]]
    if "attack" in takes:
        first: list[Any] = [*recipes.parse([options.pop("attack", "pgd:steps=10")], threat)]
    else:
        first = [] if name == "Standard" else [threat]
    if name == "VAT":
        first = [VAT_EPS if settings.vat is None else settings.vat]
        options["entropy_minimisation"] = settings.entropy_minimisation
    if name == "GeneratorTraining":
        options["channels"] = channels
    strategy: Strategy = getattr(sparring, name)(*first, seed=seed, **options)
    parts: list[Part] = []
    if settings.vat is not None and name != "VAT":
        parts.append(VirtualAdversarial(settings.vat, entropy_minimisation=settings.entropy_minimisation))
    if settings.awp is not None:
        parts.append(AWP(settings.awp))
    if settings.ema is not None:
        parts.append(EMA(settings.ema))
    return strategy.with_(*parts) if parts else strategy
