"""`RobustnessMonitor`: a few samples an epoch under one step and under many; an alarm where only one step is withstood."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparring.lightning.callbacks.watching import EpochWatcher, Get
from sparring.threat import Threat
from sparring.training.diagnosis import examine
from sparring.training.findings import Finding, judge


class RobustnessMonitor(EpochWatcher):
    """Clean and robust accuracy of a few samples every epoch, and an alarm for what goes wrong silently.

    Logged: val_clean_accuracy, val_one_step_accuracy (FGSM) and val_robust_accuracy (PGD of 10 steps), of samples that are
    also right unattacked; test_… in tests, train_… where nothing is validated. Catastrophic overfitting, where one step is
    withstood and ten are not, and what else `sp.diagnose` finds on these samples, is said in words: once, and again when
    it has been gone for an epoch. `findings` holds all of them, as (epoch, finding).

    threat: such as sp.Linf(8/255); not l0, nor an infinite eps. samples: the first so many of each epoch, of the first
    process. every: epochs between two looks. A look costs 18 forwards and 13 backwards a sample.
    It is for watching: the verdict is `sp.evaluate`'s. network, get: as for every callback here.
    """

    def __init__(
        self,
        threat: Threat,
        *,
        samples: int = 64,
        every: int = 1,
        network: str | None = None,
        get: Get | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(samples, every, network, get)
        if not isinstance(threat, Threat):
            raise TypeError(f"RobustnessMonitor({threat!r}): expected a threat, such as sp.Linf('8/255')")
        if threat.norm == "l0" or isinstance(threat.eps, Tensor) or not 0 < threat.eps < math.inf:
            raise ValueError(f"RobustnessMonitor({threat!r}): expected one finite eps above 0, under linf, l2 or l1")
        self.threat, self.seed = threat, seed
        self.findings: list[tuple[int, Finding]] = []
        self._said: frozenset[str] = frozenset()
        self._history: list[dict[str, float]] = []

    def look(self, stage: str, trainer: Any, pl_module: Any, x: Tensor, y: Tensor) -> Mapping[str, float]:
        seen = examine(self.logits(pl_module), x, y, self.threat, seed=self.seed, gains=False)
        numbers: dict[str, float] = {}
        if seen.attacked is not None:
            clean = seen.answers[seen.attacked.mode].right
            several = {
                "clean": clean,
                "one_step": clean & seen.attacked.one_step,
                "robust": clean & seen.attacked.many_steps,
            }
            numbers = {f"{stage}_{name}_accuracy": float(right.double().mean()) for name, right in several.items()}
        if trainer.state.fn == "fit" and numbers:
            self._history.append({"validation_robust_accuracy": numbers[f"{stage}_robust_accuracy"]})
        findings = list(judge(seen, history=self._history))
        self.findings += [(int(trainer.current_epoch), finding) for finding in findings]
        for finding in findings:
            if finding.code not in self._said:
                warnings.warn(f"RobustnessMonitor, after epoch {self.epochs(trainer)}: {finding}", stacklevel=2)
        self._said = frozenset(finding.code for finding in findings)
        return numbers

    @property
    def state_key(self) -> str:
        """What a checkpoint calls it: several monitors, each with a threat of its own, can stand beside each other."""
        return f"RobustnessMonitor({self.threat!r}, network={self.network!r})"

    def state_dict(self) -> dict[str, Any]:
        return {"said": sorted(self._said), "history": self._history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._said, self._history = frozenset(state_dict["said"]), list(state_dict["history"])
