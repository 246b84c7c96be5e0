"""The single step itself, as the papers that measured it define it.

`sparring.FGSM` returns the better of where it started and where it stepped to, as every attack here does. That is right
for an attacker, but it hides what these experiments are about: on a network that masks its gradient the step can lead
downhill, and training and transfer must then see where it led.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.borrow import borrow
from sparring.noise import Noise
from sparring.objective import cross_entropy
from sparring.threat import Threat
from sparring.wrappers import Model


@dataclass(frozen=True, eq=False)
class Stepped:
    """x: (B, *S), where the step led, whatever it did to the loss."""

    x: Tensor


@dataclass(frozen=True)
class SingleStep:
    """x + eps·sign(∇ cross-entropy) (Goodfellow et al., 2015), projected onto the threat; Linf.

    random_share: the part of eps that a random sign step takes first: 0 is FGSM, 1/2 is R+FGSM (Tramèr et al., 2018).
    """

    threat: Threat
    random_share: float = 0.0

    def __post_init__(self) -> None:
        if self.threat.norm != "linf" or not isinstance(self.threat.eps, float):
            raise ValueError(f"SingleStep({self.threat}): expected a linf threat with one eps for all samples")
        if not 0 <= self.random_share < 1:
            raise ValueError(f"SingleStep(random_share={self.random_share}): expected a number from 0 to below 1")

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        targets: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        seed: int = 0,
    ) -> Stepped:
        """The step from x (B, *S) with labels y (B,), or towards targets (B,); random signs keyed by (seed, index)."""
        eps = float(self.threat.eps)
        threat, start = self.threat.for_inputs(x), x
        if self.random_share:
            noise = Noise(seed, torch.arange(len(x)) if indices is None else indices)
            start = threat.project(x, x + self.random_share * eps * noise.sign(x.shape[1:], "sign", like=x))
        with borrow(model) as borrowed:
            _, _, gradient = borrowed.probe(start, lambda logits: cross_entropy(logits, y, targets))
        step = (1 - self.random_share) * eps * threat.steepest(gradient, start)
        return Stepped(threat.project(x, start + step))
