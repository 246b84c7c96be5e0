"""What attacks that are learned from data share: being fitted, applied in one pass, measured, saved and loaded."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from sparring.ascent import Pool, Probe
from sparring.attacks import Adversarial, Attack
from sparring.attacks.inputs import Targets
from sparring.borrow import Borrowed, borrow
from sparring.checks import check_whole
from sparring.evaluation.statistics import Proportion
from sparring.learned import storage
from sparring.learned.fitting import FitRecord, Learner, Progress, attackable, count_fooled, divided, gather, learn
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import Threat
from sparring.wrappers import Model

Self = TypeVar("Self", bound="LearnedAttack")


@dataclass(frozen=True, eq=False)
class LearnedAttack(Attack):
    """An attack that `fit` learns from data once; applied, it costs one forward a sample and asks for no gradient.

    Fitted or not, it is a value: `fit` and `load` return another one that holds what was learned. `sp.evaluate` runs a
    fitted one as it runs any attack.

    target: the class that every sample is to become; default: any class but its own. softness: what is climbed is the
    mean of sigmoid(margin / softness), a smooth count of the fooled samples; in logits, default half the median clean
    margin of the samples, so that the scale of the logits doesn't matter. record: how it was fitted, `None` before.
    """

    target: int | None = field(default=None, kw_only=True)
    softness: float | None = field(default=None, kw_only=True)
    record: FitRecord | None = field(default=None, kw_only=True, repr=False)

    access: ClassVar[str] = "decisions"  # as it is applied
    learned: ClassVar[tuple[str, ...]] = ()  # the fields that hold what was learned

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is not None:
            raise ValueError(f"{self.name}(targets={self.targets!r}): it has one class for all samples, as in target=3")
        if self.target is not None and (not isinstance(self.target, int) or self.target < 0):
            raise ValueError(f"{self.name}(target={self.target!r}): expected a class number")
        if self.softness is not None and not self.softness > 0:
            raise ValueError(f"{self.name}(softness={self.softness!r}): expected a number above 0")
        if isinstance(self.threat.eps, Tensor):
            raise ValueError(f"{self.name}: one perturbation for all samples needs one eps, not one a sample")

    @abstractmethod
    def learner(self: Self, rows: Rows, softness: float, seed: int) -> Learner[Self]:
        """What fits this attack to samples like `rows`."""

    @abstractmethod
    def apply(self, rows: Rows, noise: Noise, draw: int | Tensor = 0) -> Tensor:
        """The examples (N, *S), in the inputs' dtype; `draw`, a number or (N,), tells tries apart that draw at random."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What was learned; empty before `fit`."""

    @abstractmethod
    def holding(self: Self, tensors: Mapping[str, Tensor]) -> Self:
        """This attack with what was learned; KeyError or ValueError where the tensors are not what `tensors` gives."""

    def fit(
        self: Self,
        model: Model,
        data: Any,
        *,
        steps: int = 500,
        batch_size: int = 64,
        seed: int = 0,
        held_out: float = 0.2,
        max_samples: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """The attack fitted to `model` on `data`; the model and the global random states are afterwards as before.

        data: a Dataset or DataLoader of (x, y), or a pair of tensors (x (N, *S), y (N,)); it is held in memory.
        A sample that is wrong to begin with (or at the target) is left out.
        steps: updates, each from `batch_size` samples at one forward and one backward each. held_out: the share of the
        samples that it does not learn from; ten times they are asked how many of them are fooled (a forward each), and
        the best state is what comes back. max_samples: use a random part of that size. progress: called as
        progress(message, fraction done).

        Raises TypeError or ValueError, in one line, for settings, data or a model that nothing can be learned from.
        """
        check_whole("", steps=steps, batch_size=batch_size)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out={held_out!r}: expected a share of the samples, between 0 and 1")
        with borrow(model, self.autocast, seed) as borrowed:
            rows = gather(borrowed, self.threat, data, self.target, max_samples, seed)
            total = len(rows)
            rows, margins = attackable(borrowed, rows, max(batch_size, 256))
            if len(rows) < 2:
                left = "the model gets right" if self.target is None else f"are not class {self.target} already"
                raise ValueError(
                    f"{len(rows)} of {total} samples {left}: too few to learn from and to choose by; are the labels and the "
                    "range of the inputs those that the model was trained with?"
                )
            softness = self.softness or max(float(-margins.median()) / 2, torch.finfo(torch.float32).tiny)
            train, held = divided(rows, held_out, seed)
            learner = self.learner(train, softness, seed)
            attack, record = learn(
                borrowed, learner, train, held, steps=steps, batch_size=batch_size, seed=seed, progress=progress
            )
        return replace(attack, record=record)

    def fooling_rate(
        self, model: Model, data: Any, *, batch_size: int = 256, max_samples: int | None = None, seed: int = 0
    ) -> Proportion:
        """Of the samples that the model gets right (with a target: does not see there) the share that this fools.

        data as for `fit`. Two forwards a sample. `.value`, with its 95% interval in `.low` and `.high`.
        """
        self.check_fitted()
        with borrow(model, self.autocast, seed) as borrowed:
            rows = gather(borrowed, self.threat, data, self.target, max_samples, seed)
            rows, _ = attackable(borrowed, rows, batch_size)
            return Proportion(count_fooled(borrowed, self, rows, batch_size, seed)[0], len(rows))

    def __call__(
        self,
        model: Model,
        x: Any,
        y: Any,
        targets: Targets = None,
        *,
        start: Tensor | None = None,
        indices: Tensor | None = None,
        seed: int = 0,
    ) -> Adversarial:
        """The examples of the samples x (B, *S) with labels y (B,), one forward each. See `Attack.__call__`.

        targets: (B,) classes that count as success; default: the attack's own target for all.
        """
        if targets is None and self.target is not None:
            targets = torch.full((len(y),), self.target)
        return super().__call__(model, x, y, targets, start=start, indices=indices, seed=seed)

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        self.check_fitted()
        return Pool(model, _Application(self, self.restarts), self.climbs(), **settings)

    def check_fitted(self) -> None:
        if not self.tensors():
            raise ValueError(f"{self.name} has learned nothing yet: {self.name}(...).fit(model, data), or load one")

    def settings(self) -> dict[str, Any]:
        """What it was set to, how it was fitted, and a fingerprint of what it learned."""
        hidden = ("record", *self.learned)
        found = {name: value for name, value in super().settings().items() if name not in hidden}
        tensors = self.tensors()
        if tensors:
            found["fit"] = None if self.record is None else self.record.to_dict()
            found["sha256"] = _digest(tensors)
        return found

    def save(self, path: str | Path) -> Path:
        """Write what was learned, the settings and the threat as one safetensors file, whole or not at all."""
        self.check_fitted()
        return storage.save(Path(path), self)

    @classmethod
    def restored(cls: type[Self], threat: Threat, settings: dict[str, Any], record: FitRecord | None) -> Self:
        """An attack of these settings, as they were saved, that has learned nothing yet."""
        return cls(threat, record=record, **settings)

    @classmethod
    def load(cls: type[Self], path: str | Path) -> Self:
        """The attack that `save` wrote, the same to the bit.

        FileNotFoundError, or ValueError where the file is damaged or holds another kind of attack.
        """
        return storage.load(Path(path), cls)


@dataclass(frozen=True)
class _Application:
    """A fitted attack as a recipe of no steps: the loop looks at its example, and no more."""

    attack: LearnedAttack
    restarts: int
    steps: int = 0
    keep: str = "best"

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        return self.attack.apply(rows, noise, rows.restart)

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        raise AssertionError("no steps")

    def again(self, rows: Rows) -> Tensor:
        return rows.restart < self.restarts


def _digest(tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
