"""The same checks during training: a few samples an epoch, and catastrophic overfitting is taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from sparring.training.diagnosis import examine
from sparring.training.fast import NFGSM, FastFGSM, GradAlign
from sparring.training.findings import Finding, judge
from sparring.training.strategy import Strategy
from sparring.training.supervised import FGSMTraining, PGDTraining
from sparring.training.validation import threat_of

if TYPE_CHECKING:
    from sparring.training.run import Run

SHARED = (*(f.name for f in fields(Strategy)), "alpha", "fraction")  # settings that one strategy takes from another


class HealthCheck:
    """A callback of `fit`: after every epoch it looks at a few samples as `diagnose` does, and says what is new.

    samples: of the validation data, or of the training data where there are none. act: where catastrophic overfitting is
    found, the last good weights come back, and training goes on with a safer strategy (`safer`), if there is one; False:
    it only says so. every: epochs between two looks.
    A look costs about 25 passes a sample: with the default 128 samples a percent or so of an epoch of 50,000 at PGD-10.

    A finding is said once, and again when it has been gone for an epoch.
    """

    def __init__(self, samples: int = 128, *, act: bool = True, every: int = 1, seed: int = 0) -> None:
        if samples < 16 or every < 1:
            raise ValueError(f"HealthCheck(samples={samples}, every={every}): expected at least 16 samples, every 1")
        self.samples, self.act, self.every, self.seed = samples, act, every, seed
        self.said: tuple[str, ...] = ()
        self.rescues = 0
        self.found: list[tuple[int, Finding]] = []

    def settings(self) -> dict[str, Any]:
        """What a training that goes on must have begun with."""
        return {"samples": self.samples, "act": self.act, "every": self.every, "seed": self.seed}

    def after_epoch(self, run: Run) -> None:
        if (run.epoch + 1) % self.every:
            return
        x, y = self._samples(run)
        with run.deployed():
            seen = examine(run.model, x, y, threat_of(run.strategy), seed=self.seed, gains=False)
        findings = run.crew.tell(list(judge(seen, run.strategy.statistics.mode, run.history)))
        for finding in findings:
            self.found.append((run.epoch + 1, finding))
            if finding.code not in self.said:
                run.note(f"after epoch {run.epoch + 1}, {finding}")
        self.said = tuple(finding.code for finding in findings)
        if self.act and "catastrophic-overfitting" in self.said:
            self._rescue(run)

    def _samples(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        if run.validation is not None:
            chosen = torch.randperm(len(run.validation.x), generator=generator)[: self.samples]
            return run.validation.x[chosen], run.validation.y[chosen]
        numbers = run.feed.numbers
        return run.feed.take(numbers[torch.randperm(len(numbers), generator=generator)[: self.samples]])

    def _rescue(self, run: Run) -> None:
        before, other = run.strategy, safer(run.strategy)
        run.roll_back()
        if other is None:
            run.note(
                f"the weights are those of the last good epoch; there is nothing safer than {before.name} to go on with"
            )
            return
        self.rescues += 1
        self.said = ()
        run.strategy = other
        run.note(f"the weights are those of the last good epoch; training goes on with {_change(before, other)}")

    def state_dict(self) -> dict[str, Any]:
        return {"said": list(self.said), "rescues": self.rescues}

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        self.said, self.rescues = tuple(state["said"]), state["rescues"]
        for _ in range(self.rescues):
            run.strategy = safer(run.strategy) or run.strategy


def safer(strategy: Strategy) -> Strategy | None:
    """A strategy less prone to catastrophic overfitting, that goes on where this one is; None where none is known.

    One step, from the sample or from a random point, becomes N-FGSM; N-FGSM, twice its noise, once, and under other norms
    PGD of 2 steps; GradAlign, twice its weight; PGD and others with steps, twice as many, up to 10. What stays the same
    strategy keeps all other settings; another one takes those that both have, but for the length of a step.
    """
    shared = {name: getattr(strategy, name) for name in SHARED if hasattr(strategy, name)}
    other: Strategy | None = None
    if isinstance(strategy, FastFGSM | FGSMTraining):
        linf = strategy.threat.norm == "linf"
        other = NFGSM(strategy.threat, **shared) if linf else PGDTraining(strategy.threat, 2, **shared)
    elif isinstance(strategy, NFGSM) and strategy.k <= 2:
        other = replace(strategy, k=2 * strategy.k)
    elif isinstance(strategy, NFGSM):
        other = PGDTraining(strategy.threat, 2, **shared)
    elif isinstance(strategy, GradAlign):
        other = replace(strategy, weight=2 * strategy.weight)
    elif isinstance(strategy, PGDTraining) and strategy.schedule is None and strategy.steps < 10:
        other = replace(strategy, steps=min(2 * strategy.steps, 10))
        other.kept = strategy.kept
    if other is not None:
        other.statistics, other.passes, other.batches = strategy.statistics, strategy.passes, strategy.batches
        other.autocast, other.crew, other.parts = strategy.autocast, strategy.crew, strategy.parts
    return other


def _change(before: Strategy, after: Strategy) -> str:
    """What goes on in place of what, and which settings do not."""
    same = type(before) is type(after)
    own = (
        {}
        if same
        else {f.name: f.default for f in fields(before) if f.name not in (*SHARED, "threat", _detail(before))}
    )
    lost = [f"{name}={getattr(before, name)}" for name, default in own.items() if getattr(before, name) != default]
    return f"{_named(after)} in place of {_named(before)}" + (f", without its {', '.join(lost)}" if lost else "")


def _named(strategy: Strategy) -> str:
    detail = _detail(strategy)
    return f"{strategy.name}({detail}={getattr(strategy, detail)})" if detail else strategy.name


def _detail(strategy: Strategy) -> str | None:
    """The setting that `safer` raises."""
    return {"NFGSM": "k", "PGDTraining": "steps", "GradAlign": "weight"}.get(strategy.name)
