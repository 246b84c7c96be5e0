"""Learning from examples that an attack makes on the way: standard, mixed and PGD training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks.base import Attack
from sparring.attacks.pgd import PGD
from sparring.threat import Threat
from sparring.training.crafting import craft
from sparring.training.strategy import Batch, Loss, Seen, Strategy


@dataclass(eq=False)
class Standard(Strategy):
    """Ordinary training: cross-entropy of the samples as they are. 1 pass a batch."""

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        def clean(seen: Seen) -> Tensor:
            logits = self.forward(model, batch.x, batch.y, "clean")
            seen.add("clean", logits, batch.y)
            return F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)

        yield Loss(clean)


@dataclass(eq=False)
class Mixed(Strategy):
    """α · L(x) + (1 − α) · L(x_adv), x_adv constant in the gradient. Goodfellow et al. (2015).

    attack: any sparring attack. alpha: weight of the clean loss, from 0 (adversarial examples only) to 1.
    fraction: 1 for the form above. Below 1, Kurakin et al. (2017)'s: this part of the batch, its first samples, is
    replaced by adversarial examples, and the loss is the mean over the batch in which those count (1 − α)/α as much.
    Clean and adversarial samples go through the network in one forward, as in Kurakin et al., so BatchNorm sees their
    mixture. With K attack steps: K + 2 passes a sample (K + 1 where alpha = 0 or fraction < 1).
    """

    attack: Attack = field(kw_only=False)
    alpha: float = 0.5
    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack, Attack):
            raise TypeError(f"{self.name}(attack={self.attack!r}): expected an attack such as sp.FGSM(sp.Linf(0.1))")
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"{self.name}(alpha={self.alpha!r}): expected a number from 0 (adversarial) to 1 (clean only)"
            )

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        with self.crafting(model, batch) as borrowed:
            examples = craft(self.attack, borrowed, batch.x, batch.y, indices=batch.indices, seed=self.draw_seed(batch))

        def mixture(seen: Seen) -> Tensor:
            if self.alpha == 0:
                logits = self.forward(model, examples, batch.y)
                seen.add("adversarial", logits, batch.y)
                return F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
            both = self.forward(model, torch.cat([batch.x, examples]), torch.cat([batch.y, batch.y]))
            clean, adversarial = both.chunk(2)
            seen.add("clean", clean, batch.y)
            seen.add("adversarial", adversarial, batch.y)
            parts = [F.cross_entropy(z, batch.y, label_smoothing=self.label_smoothing) for z in (clean, adversarial)]
            return self.alpha * parts[0] + (1 - self.alpha) * parts[1]

        yield Loss(mixture)


def PGDTraining(threat: Threat, steps: int = 10, step_size: float | None = None, **settings: object) -> Mixed:
    """placeholder"""
    return Mixed(PGD(threat, steps=steps, step_size=step_size), alpha=0.0, **settings)  # type: ignore[arg-type]
