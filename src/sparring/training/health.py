"""The same checks during training: a few samples an epoch, and catastrophic overfitting is taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sparring.training.diagnosis import crafting_mode, examine
from sparring.training.findings import Finding, judge
from sparring.training.safer import change, named, safer
from sparring.training.validation import threat_of

if TYPE_CHECKING:
    from sparring.training.run import Run


class HealthCheck:
    """A callback of `fit`: after every epoch it looks at a few samples as `diagnose` does, and says what is new.

    samples: of the validation data, or of the training data where there are none. act: where catastrophic overfitting is
    found, the last good weights come back, and training goes on with a safer strategy (`safer`), if there is one; False:
    it only says so. every: epochs between two looks.
    A look costs 18 forwards and 13 backwards a sample, and 10 and 2 more while examples are crafted with running statistics:
    with the default 128 samples less than a percent of an epoch of 50,000 at PGD-10.

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
            mode = crafting_mode(run.strategy)
            seen = examine(run.model, x, y, threat_of(run.strategy), seed=self.seed, gains=mode == "running")
        findings = run.crew.tell(list(judge(seen, mode, run.history)))
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
                f"the weights are those of the last good epoch; training goes on with {named(before)} as it was, for no safer "
                "setting of it is known: another strategy, a lower lr or a smaller eps may prevent it"
            )
            return
        self.rescues += 1
        self.said = ()
        run.strategy = other
        run.note(f"the weights are those of the last good epoch; training goes on with {change(before, other)}")

    def state_dict(self) -> dict[str, Any]:
        return {"said": list(self.said), "rescues": self.rescues}

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        self.said, self.rescues = tuple(state["said"]), state["rescues"]
        for _ in range(self.rescues):
            run.strategy = safer(run.strategy) or run.strategy
