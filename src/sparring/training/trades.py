"""Robustness as agreement: the answers at a sample and at its worst neighbour, held together by their KL divergence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks.pgd import PGD
from sparring.checks import check_positive
from sparring.noise import Noise
from sparring.threat import Threat
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy, check_threat

SPREAD = 1e-3  # of the Gaussian start, in parts of the box: at x itself the KL divergence has no gradient


def beside(threat: Threat, x: Tensor, noise: Noise) -> Tensor:
    """x (B, *S) and a little Gaussian noise, inside the set."""
    low, high = threat.bounds or (0.0, 1.0)
    return threat.project(x, x + SPREAD * (high - low) * noise.normal(x.shape[1:], "beside", like=x))


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p(x) ‖ p(x′)) of logits (B, C), with the gradient of both. (B,)"""
    p, q = clean.log_softmax(1), adversarial.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def trades_loss(clean: Tensor, adversarial: Tensor, y: Tensor, beta: float, smoothing: float) -> Tensor:
    """CE(f(x), y) + β · KL(f(x) ‖ f(x′)), a scalar, of logits (B, C)."""
    return F.cross_entropy(clean, y, label_smoothing=smoothing) + beta * divergence(clean, adversarial).mean()


@dataclass(eq=False, kw_only=True)
class Agreeing(Strategy):
    """Base of strategies that learn from clean and adversarial answers at once: one joint forward, so that BatchNorm sees the
    mixture (the authors' code normalises each half by itself, or crafts and learns with different statistics)."""

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        """Adversarial examples (B, *S)."""
        raise NotImplementedError

    def value(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of logits (B, C)."""
        raise NotImplementedError

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        made = self.examples(model, batch)

        def joint(seen: Seen) -> Tensor:
            y = batch.y
            clean, adversarial = self.forward(model, torch.cat([batch.x, made]), torch.cat([y, y])).chunk(2)
            seen.add("clean", clean, y)
            seen.add("adversarial", adversarial, y)
            return self.value(clean, adversarial, y)

        yield Loss(joint)


@dataclass(eq=False)
class TRADES(Agreeing):
    """CE(f(x), y) + β · KL(f(x) ‖ f(x′)), x′ from K steps up the same divergence, from beside x. Zhang et al. (2019).

    beta: β; more is more robust and less accurate. steps: K. step_size: in input units, default as for `PGDTraining`.
    Passes a batch: K + 2, and one more forward: the clean answer is taken once a batch, not once a step.
    """

    threat: Threat
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_positive(self.name, beta=self.beta, step_size=self.step_size)
        self.attack = PGD(self.threat, self.steps, self.step_size, random_start=False, objective="kl", keep="last")

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        return from_beside(self, self.attack, model, batch)

    def value(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        return trades_loss(clean, adversarial, y, self.beta, self.label_smoothing)


@dataclass(eq=False)
class MART(Agreeing):
    """BCE(f(x′), y) + λ · KL(f(x) ‖ f(x′)) · (1 − p_y(x)): misclassified samples count more. Wang et al. (2020).

    BCE is −log p_y(x′) − log(1 − the largest other p(x′)). x′ comes from K steps up the cross-entropy, from beside x.
    weight: λ. steps: K. step_size: in input units, default as for `PGDTraining`. Passes a batch: K + 2.
    """

    threat: Threat
    weight: float = 5.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_positive(self.name, weight=self.weight, step_size=self.step_size)
        self.attack = PGD(self.threat, self.steps, self.step_size, random_start=False, keep="last")

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        return from_beside(self, self.attack, model, batch)

    def value(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        other = adversarial.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        rest = adversarial.scatter(1, other[:, None], -torch.inf).logsumexp(
            1
        )  # log(1 − p), exactly also where p is near 1
        second = (adversarial.logsumexp(1) - rest).mean()
        learned = F.cross_entropy(adversarial, y, label_smoothing=self.label_smoothing) + second
        doubt = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        return learned + self.weight * (divergence(clean, adversarial) * doubt).mean()


def from_beside(strategy: Strategy, attack: PGD, model: nn.Module, batch: Batch) -> Tensor:
    """What the attack makes of the batch when it starts beside each sample."""
    assert batch.indices is not None
    start = beside(attack.threat, batch.x, Noise(strategy.draw_seed(batch), batch.indices))
    return strategy.crafted(model, batch, attack, start)
