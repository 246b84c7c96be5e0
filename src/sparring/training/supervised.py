"""Learning from labels: the samples as they are, or adversarial examples that any attack makes of them on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks.base import Attack
from sparring.attacks.pgd import PGD
from sparring.attacks.sign import FGSM, default_step
from sparring.checks import check_positive, check_whole
from sparring.noise import Noise
from sparring.threat import Threat
from sparring.training.friendly import FriendlyPGD
from sparring.training.kept import Kept
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy, check_threat


@dataclass(eq=False)
class Standard(Strategy):
    """Ordinary training: cross-entropy of the samples as they are. 1 pass a batch."""

    takes_tokens = True

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        def clean(seen: Seen) -> Tensor:
            logits = self.forward(model, batch.x, batch.y, "clean")
            seen.add("clean", logits, batch.y)
            return F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)

        yield Loss(clean)


@dataclass(eq=False, kw_only=True)
class AdversarialTraining(Strategy):
    """Base of strategies that craft examples and learn from them: α · L(x) + (1 − α) · L(x_adv). A subclass crafts.

    alpha: weight of the clean loss, from 0 (adversarial examples only) to 1. Goodfellow et al. (2015) take 0.5, Madry et al.
    (2018) 0. Where both count they go through the network in one forward, so BatchNorm sees their mixture.
    fraction: below 1, Kurakin et al. (2017)'s form: this part of the batch, its first samples, is replaced by adversarial
    examples, and the loss is the mean over the batch in which each of those counts λ = (1 − α)/α times as much as a clean
    one (they take half the batch and λ = 0.3: fraction=0.5, alpha=1/1.3).
    """

    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"{self.name}(alpha={self.alpha!r}): expected a number from 0 (adversarial) to 1 (clean only)"
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"{self.name}(fraction={self.fraction!r}): expected a part of the batch, above 0, at most 1"
            )
        if self.fraction < 1 and self.alpha == 0:
            raise ValueError(
                f"{self.name}(fraction={self.fraction!r}, alpha=0): the clean part of the batch would count nothing; "
                "give it a weight, as in alpha=0.5"
            )

    @property
    def alpha(self) -> float:
        """A subclass has it as a field."""
        return 0.0

    def examples(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Adversarial examples (B, *S) of these samples; None where this batch shall be learned from as it is."""
        raise NotImplementedError

    @property
    def splits(self) -> bool:
        """Whether clean and adversarial samples both are learned from, and can have statistics of their own."""
        return 0 < self.alpha < 1

    def adversarial_part(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Examples of the first `fraction` of the batch; None where these are none, or shall be learned from as they are."""
        count = len(batch.x) if self.fraction == 1 else round(self.fraction * len(batch.x))
        if not count:
            return None
        # one sample alone has no batch statistics: its neighbour climbs beside it
        made = self.examples(model, first(batch, 2 if count == 1 and self.statistics.mixes else count))
        return None if made is None else made[:count]

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        made = self.adversarial_part(model, batch) if self.alpha < 1 else None
        if made is None:
            shown = [Shown("clean", batch.x, batch.y, 1.0)]
        else:
            clean = slice(0 if self.fraction == 1 else len(made), None)
            shown = [Shown("clean", batch.x[clean], batch.y[clean], self.alpha)]
            shown += [Shown("adversarial", made, batch.y[: len(made)], 1 - self.alpha)]
        yield Loss(lambda seen: self._mean(seen, model, [each for each in shown if each.weight and len(each.y)]))

    def _mean(self, seen: Seen, model: nn.Module, shown: list[Shown]) -> Tensor:
        """The weighted mean of the cross-entropy over all these samples, from one forward (with bn="split" one a branch)."""
        sizes = [len(each.y) for each in shown]
        y = torch.cat([each.y for each in shown])
        if self.bn == "split":
            if 1 in sizes and self.statistics.live:
                raise ValueError(
                    f"{self.name}(bn='split', fraction={self.fraction}): a branch has one sample of a batch of "
                    f"{sum(sizes)}, so no batch statistics: take larger batches, drop a small last one (drop_last=True)"
                )
            logits = torch.cat([self.forward(model, each.x, each.y, each.name) for each in shown])
        else:
            x = shown[0].x if len(shown) == 1 else torch.cat([each.x for each in shown])
            logits = self.forward(model, x, y, shown[-1].name)
        losses = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")
        for each, answers in zip(shown, torch.split(logits, sizes)):
            seen.add(each.name, answers, each.y)
        totals = [each.weight * part.sum() for each, part in zip(shown, torch.split(losses, sizes))]
        return torch.stack(totals).sum() / sum(each.weight * size for each, size in zip(shown, sizes))


class Shown(NamedTuple):
    """Samples to learn from: what they are, x (N, *S), y (N,), and how much each counts."""

    name: str
    x: Tensor
    y: Tensor
    weight: float


def check_attack(name: str, attack: Attack) -> None:
    """One line for what can't craft training examples."""
    if not isinstance(attack, Attack):
        raise TypeError(f"{name}(attack={attack!r}): expected an attack such as sp.FGSM(sp.Linf(0.1))")
    check_threat(name, attack.threat)


def first(batch: Batch, count: int) -> Batch:
    """The first so many samples."""
    assert batch.indices is not None
    return replace(batch, x=batch.x[:count], y=batch.y[:count], indices=batch.indices[:count])


@dataclass(eq=False)
class Mixed(AdversarialTraining):
    """α · L(x) + (1 − α) · L(x_adv), with any attack; x_adv constant in the gradient. Goodfellow et al. (2015).

    attack: any sparring attack; its own `stop_when_fooled` holds. alpha, fraction: see `AdversarialTraining`.
    Passes a batch, with K attack steps: K + 2; K + 1 where alpha = 0; 1 + K · fraction where fraction < 1; 1 where alpha = 1.
    """

    attack: Attack
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack(self.name, self.attack)

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.crafted(model, batch, self.attack)


@dataclass(eq=False)
class FGSMTraining(AdversarialTraining):
    """Examples of one full step from the input. Goodfellow et al. (2015), with `alpha=0.5`. 2 passes a batch.

    Alone it overfits catastrophically where eps is large: robust to FGSM, not to PGD (Wong et al., 2020). Better: `NFGSM`.
    """

    threat: Threat
    alpha: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        self.attack = FGSM(self.threat)

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.crafted(model, batch, self.attack)


@dataclass(eq=False)
class PGDTraining(AdversarialTraining):
    """Examples of K steps of projected gradient ascent from a random start, the last iterate. Madry et al. (2018).

    steps: K; passes a batch K + 1. step_size: in input units; default eps / 4, or 2.5 · eps / K below 10 steps (1.25 · eps
    for one; .7 · eps for one that goes on from what is kept). random_start: begin inside the ball, not at the input.
    What makes it cheaper, all to be combined:
    stop_when_fooled: a sample climbs until the network errs on it. Zhang et al. (2020), FAT. tau: and so many steps further.
    keep: each sample's perturbation is kept, and is where it begins next time, so that fewer steps suffice. Zheng et al.
    (2020), ATTA. Batches must carry indices, and show each sample as it was (no random crops and mirrors).
    schedule: {batch number: K from there on}; 0 steps is clean training. {0: 0, 800: 2, 2400: 5} warms up clean (Gupta et al.,
    2020), then climbs longer and longer. Overrides `steps`, which holds before its first entry.

    >>> strategy = PGDTraining(Threat("linf", 0.1), steps=2, schedule={100: 3, 200: 5})
    >>> [strategy.steps_at(batch) for batch in (0, 100, 150, 999)]
    [2, 3, 3, 5]
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    alpha: float = field(default=0.0, kw_only=True)
    random_start: bool = field(default=True, kw_only=True)
    stop_when_fooled: bool = field(default=False, kw_only=True)
    tau: int = field(default=0, kw_only=True)
    keep: bool = field(default=False, kw_only=True)
    schedule: Mapping[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        for number, steps in (self.schedule or {}).items():
            if not isinstance(number, int) or not isinstance(steps, int) or number < 0 or steps < 0:
                raise ValueError(
                    f"{self.name}(schedule={self.schedule!r}): expected {{batch number: steps}}, whole numbers"
                )
        check_whole(self.name, steps=self.steps)
        check_positive(self.name, step_size=self.step_size)
        if not isinstance(self.tau, int) or self.tau < 0 or (self.tau and not self.stop_when_fooled):
            raise ValueError(f"{self.name}(tau={self.tau!r}): expected steps, 0 or more, beside stop_when_fooled=True")
        self.kept = Kept()

    @property
    def needs_indices(self) -> bool:
        return self.keep

    def steps_at(self, number: int) -> int:
        """K in the batch of this number."""
        begun = [since for since in self.schedule or {} if since <= number]
        return (self.schedule or {})[max(begun)] if begun else self.steps

    def attack(self, steps: int) -> PGD:
        """The attack of so many steps."""
        size = self.step_size
        if size is None:
            one = 0.7 if self.keep else 1.25
            size = float(self.threat.eps) * (one if steps == 1 else default_step(steps))
        if self.stop_when_fooled:
            return FriendlyPGD(self.threat, steps, size, random_start=self.random_start, keep="last", tau=self.tau)
        return PGD(self.threat, steps, size, random_start=self.random_start, keep="last")

    def examples(self, model: nn.Module, batch: Batch) -> Tensor | None:
        assert batch.step is not None
        assert batch.indices is not None
        steps = self.steps_at(batch.step)
        if steps == 0:
            return None
        attack = self.attack(steps)
        if not self.keep:
            return self.crafted(model, batch, attack)
        noise = Noise(self.draw_seed(batch), batch.indices)
        start = self.kept.start(
            batch.x,
            batch.indices,
            lambda: attack.threat.random(batch.x, noise, "start", 0) if self.random_start else batch.x,
        )
        made = self.crafted(model, batch, replace(attack, random_start=False), start)
        self.kept.put(batch.indices, made - batch.x, self.crew)
        return made

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept.load_state_dict(state["kept"])
