"""What an evaluation will cost, before it is run: a range, since nobody knows yet how soon its samples fall."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparring.attacks import FAB, Attack, DeepFool, HopSkipJump
from sparring.attacks.inputs import check_inputs, check_label_range, check_labels, split_inputs
from sparring.attacks.minimal import MinimalAttack
from sparring.attacks.rivals import RivalAttack
from sparring.borrow import borrow
from sparring.evaluation import adaptive, cascade, pilot
from sparring.evaluation.access import choose
from sparring.evaluation.checkup import BACKWARDS, DEEPER, EXAMPLES, FALLEN, FORWARDS, LOOKS, STANDING
from sparring.evaluation.nearest import LOOKS as HALVINGS
from sparring.evaluation.nearest import STEPS
from sparring.evaluation.placing import placed, to_device
from sparring.evaluation.source import Source
from sparring.objective import margin
from sparring.threat import Threat
from sparring.wrappers import Model


@dataclass(frozen=True)
class Passes:
    """forwards, backwards: through the model, of one sample."""

    forwards: float
    backwards: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forwards + other.forwards, self.backwards + other.backwards)

    def __mul__(self, times: float) -> Passes:
        return Passes(self.forwards * times, self.backwards * times)


@dataclass(frozen=True)
class Case:
    """What a run costs in one case. each: a sample. once: the pilot and the checkup, for all samples together."""

    each: Passes
    once: Passes


@dataclass(frozen=True)
class Estimate:
    """samples: how many (None: nobody knows).

    fallen: every sample falls at the first step. standing: none falls, as on an ordinary robust model. most: all take
    every attack to its end, as they may on a model that masks its gradients, and the last step fools them.
    seconds_per_forward, seconds_per_backward: of one sample, from one timed batch.
    gated: whether samples go on to an attack only where they came near enough to failing.
    unknown: foreign attacks, which are not in it.
    """

    samples: int | None
    fallen: Case
    standing: Case
    most: Case
    seconds_per_forward: float
    seconds_per_backward: float
    gated: bool
    unknown: int

    def passes(self, case: Case) -> Passes | None:
        """For all samples."""
        return None if self.samples is None else case.each * self.samples + case.once

    def seconds(self, case: Case) -> float | None:
        """For all samples."""
        if (passes := self.passes(case)) is None:
            return None
        return passes.forwards * self.seconds_per_forward + passes.backwards * self.seconds_per_backward

    def to_json(self) -> dict[str, Any]:
        cases = {name: getattr(self, name) for name in ("fallen", "standing", "most")}
        return asdict(self) | {name: asdict(case) | {"seconds": self.seconds(case)} for name, case in cases.items()}


def estimate(
    model: Model,
    data: Any,
    threat: Threat,
    *,
    attacks: cascade.Attacks = "adaptive",
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
    access: str = "gradients",
    query_budget: int | None = None,
    checkup: bool = True,
    class_names: list[str] | None = None,
) -> Estimate:
    """What `evaluate` will cost with these arguments: a range, from one timed forward and backward of one batch.

    The adaptive cascade takes a sample on to a dearer attack only where it came near enough to failing. Its cost for samples
    that stand is that of an ordinary robust model: the share of them that come as close as c is taken to be c squared, about
    what networks at hand show, and the gates to be where they are before a pilot opens them.

    Raises TypeError or ValueError as `evaluate` does.
    """
    chosen = choose(attacks, threat, None, access, query_budget)
    gradients = any(isinstance(attack, Attack) and attack.access == "gradients" for attack in chosen)
    source = Source(data, batch_size, max_samples, seed)
    batch = next(iter(source))
    labels = None if class_names is None else len(class_names)
    with placed(model, device) as where, borrow(model, access=access, labels=labels) as borrowed:
        x, context = split_inputs(model, to_device(batch.x, where))
        check_inputs(x, threat)
        y = check_labels(batch.y, x)
        logits = borrowed.look(x, context)
        check_label_range(y, logits.shape[1])
        both = 0.0
        if gradients:
            borrowed.probe(x, lambda z: margin(z, y), context)
            start = time.perf_counter()
            borrowed.probe(x, lambda z: margin(z, y), context)
            both = (time.perf_counter() - start) / len(x)
        start = time.perf_counter()
        borrowed.look(x, context)
        forward = (time.perf_counter() - start) / len(x)
    gated = cascade.is_adaptive(attacks) and access == "gradients"
    steps = adaptive.steps(threat) if gated else []
    look = Passes(FORWARDS, BACKWARDS) if gradients else Passes(LOOKS)
    if not checkup or access != "gradients":
        look = Passes(0)
    cases = _cases(chosen, steps, logits.shape[1], source.total, look)
    unknown = sum(not isinstance(attack, Attack) for attack in chosen)
    return Estimate(source.total, *cases, forward, max(both - forward, 0.0), gated, unknown)


def _cases(
    chosen: Sequence[Any], steps: list[adaptive.Step], classes: int, samples: int | None, look: Passes
) -> tuple[Case, Case, Case]:
    """fallen, standing, most. steps: those of the adaptive cascade, else none. look: the checkup's, at a sample."""
    ours = {
        i: attack for i, attack in enumerate(chosen) if isinstance(attack, Attack) and not attack.pointless(classes)
    }
    whole = {i: _whole(attack, classes) for i, attack in ours.items()}
    every = _sum(whole.values())
    some = _sum(whole[i] * (_share(steps[i].gate.near) if steps else 1.0) for i in ours)
    first = _sum([_first_step(ours[i], whole[i]) for i in list(ours)[:1]])
    clean, confirmed, shown = Passes(1), Passes(1), Passes(2)
    climbs = any(attack.access == "gradients" for attack in ours.values())
    fallen = confirmed + (Passes(STEPS + 1, STEPS) if climbs else Passes(HALVINGS)) + shown

    few = pilot.size(samples) if steps else 0
    few = few if samples is None else min(few, samples)
    measured = _sum(whole[i] for i in ours if steps and steps[i].measured)
    measured += Passes(adaptive.TWIN + 1, adaptive.TWIN) * 2
    looked = [count if samples is None else min(count, samples) for count in (FALLEN, FALLEN + STANDING)]
    rounded = Passes(EXAMPLES if look.forwards else 0)
    easy = (clean + first + confirmed) * few + look * looked[0] + rounded
    hard = (clean + measured + confirmed) * few + look * looked[1] + rounded
    deeper = Passes(EXAMPLES * (DEEPER + 2), EXAMPLES * DEEPER) if look.backwards else Passes(0)
    return (
        Case(clean + first + fallen, easy),
        Case(clean + some, hard),
        Case(clean + every + fallen, hard + deeper),
    )


def _share(gate: float) -> float:
    return float(min(1.0, max(0.0, gate)) ** 2)


def _sum(parts: Iterable[Passes]) -> Passes:
    return sum(parts, Passes(0))


def _whole(attack: Attack, classes: int) -> Passes:
    """What it costs to the end, where nothing falls; nearly, for those that may end sooner."""
    if attack.access != "gradients":
        searches = isinstance(attack, HopSkipJump)
        return Passes(attack.rounds * getattr(attack, "queries", 1) + searches)
    rounds, others = attack.rounds, classes - 1 - getattr(attack, "first", 0)
    if isinstance(attack, RivalAttack) and attack.rivals is not None:  # no more than there are
        rounds = rounds // attack.rivals * min(attack.rivals, others)
    forwards, backwards = attack.steps + 1, attack.steps
    if isinstance(attack, DeepFool):
        backwards *= min(attack.rivals, others)
    elif isinstance(attack, FAB):
        forwards = 2 * attack.steps + max(1, attack.search_steps)
    again = 1 if isinstance(attack, MinimalAttack) else 0  # what it found beyond eps is confirmed too
    return Passes(rounds * forwards + again, rounds * backwards)


def _first_step(attack: Attack, whole: Passes) -> Passes:
    """What it costs where the first step fools; some go on to their end."""
    searches = isinstance(attack, MinimalAttack) and not attack.stop_when_fooled
    if searches or getattr(attack, "keep", "best") == "last":
        return whole
    return Passes(2, 2) if whole.backwards else Passes(1)
