"""What a training goes on with after catastrophic overfitting."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from sparring.attacks import FGSM, PGD, RFGSM
from sparring.attacks.base import Attack, GradientAttack
from sparring.training.fast import NFGSM, FastFGSM, GradAlign
from sparring.training.free import Free
from sparring.training.sources import EnsembleTraining
from sparring.training.strategy import Strategy
from sparring.training.supervised import FGSMTraining, Mixed, PGDTraining
from sparring.training.trades import MART, TRADES
from sparring.training.trades_yopo import TRADESYOPO
from sparring.training.yopo import YOPO

SHARED = (*(f.name for f in fields(Strategy)), "alpha", "fraction")  # settings that one strategy takes from another
MANY = 10  # steps that are enough


def safer(strategy: Strategy) -> Strategy | None:
    """A strategy less prone to catastrophic overfitting, that goes on where this one is; None where none is known.

    One step, from the sample or from a random point, becomes N-FGSM; N-FGSM, twice its noise, once, and under other norms
    PGD of 2 steps; GradAlign, twice its weight; Free-m, PGD at as many passes a batch; what has steps (YOPO: m) takes twice as
    many, up to 10 (in a schedule too, where 0 stay 0), and a one-step attack inside another strategy becomes PGD of 2. What
    stays the same strategy keeps all other settings; another one takes those that both have, but for the length of a step.
    """
    other = _other(strategy)
    if other is not None:
        other.statistics, other.passes, other.batches = strategy.statistics, strategy.passes, strategy.batches
        other.autocast, other.crew, other.parts = strategy.autocast, strategy.crew, strategy.parts
    return other


def _other(strategy: Strategy) -> Strategy | None:
    shared = {name: getattr(strategy, name) for name in SHARED if hasattr(strategy, name)}
    if isinstance(strategy, FastFGSM | FGSMTraining):
        linf = strategy.threat.norm == "linf"
        return NFGSM(strategy.threat, **shared) if linf else PGDTraining(strategy.threat, 2, **shared)
    if isinstance(strategy, NFGSM):
        twice = strategy.k <= 2
        return replace(strategy, k=2 * strategy.k) if twice else PGDTraining(strategy.threat, 2, **shared)
    if isinstance(strategy, GradAlign):
        return replace(strategy, weight=2 * strategy.weight)
    if isinstance(strategy, Free):
        return PGDTraining(strategy.threat, min(max(strategy.m - 1, 2), MANY), **shared)
    if isinstance(strategy, PGDTraining):
        return _climbing(strategy)
    if isinstance(strategy, TRADES | MART) and strategy.steps < MANY:
        return replace(strategy, steps=_more(strategy.steps))
    if isinstance(strategy, TRADESYOPO) and strategy.m < MANY:
        return replace(strategy, m=_more(strategy.m))
    if isinstance(strategy, YOPO) and strategy.m < MANY:
        more = replace(strategy, m=_more(strategy.m))
        more.kept = strategy.kept
        return more
    if isinstance(strategy, Mixed | EnsembleTraining) and (attack := _stronger(strategy.attack)) is not None:
        return replace(strategy, attack=attack)
    return None


def _more(steps: int) -> int:
    return max(steps, min(2 * steps, MANY))


def _climbing(strategy: PGDTraining) -> PGDTraining | None:
    schedule = None if strategy.schedule is None else {at: _more(steps) for at, steps in strategy.schedule.items()}
    steps = strategy.steps if schedule is not None and 0 in schedule else _more(strategy.steps)
    if (steps, schedule) == (strategy.steps, strategy.schedule):
        return None
    other = replace(strategy, steps=steps, schedule=schedule)
    other.kept = strategy.kept
    return other


def _stronger(attack: Attack) -> Attack | None:
    """More steps, with all other settings."""
    if isinstance(attack, FGSM | RFGSM):
        return PGD(**{f.name: getattr(attack, f.name) for f in fields(GradientAttack)}, steps=2)
    more: dict[str, Any] = {f.name: _more(attack.steps) for f in fields(attack) if f.name == "steps"}
    return replace(attack, **more) if more and attack.steps < MANY else None


def change(before: Strategy, after: Strategy) -> str:
    """What goes on in place of what, and which settings do not."""
    same = type(before) is type(after)
    own = (
        {}
        if same
        else {f.name: f.default for f in fields(before) if f.name not in (*SHARED, "threat", _detail(before))}
    )
    lost = [f"{name}={getattr(before, name)}" for name, default in own.items() if getattr(before, name) != default]
    return f"{named(after)} in place of {named(before)}" + (f", without its {', '.join(lost)}" if lost else "")


def named(strategy: Strategy) -> str:
    """The strategy with the setting that `safer` raises."""
    if isinstance(strategy, Mixed | EnsembleTraining):
        steps = getattr(strategy.attack, "steps", None)
        return f"{strategy.name}({strategy.attack.name}{'' if steps is None else f'(steps={steps})'})"
    detail = _detail(strategy)
    return f"{strategy.name}({detail}={getattr(strategy, detail)})" if detail else strategy.name


def _detail(strategy: Strategy) -> str | None:
    if isinstance(strategy, PGDTraining) and strategy.schedule is not None:
        return "schedule"
    own = {
        "NFGSM": "k", "GradAlign": "weight", "Free": "m", "YOPO": "m", "TRADESYOPO": "m",
        "PGDTraining": "steps", "TRADES": "steps", "MART": "steps",
    }  # fmt: skip
    return own.get(strategy.name)
