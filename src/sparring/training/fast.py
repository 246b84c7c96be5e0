"""Adversarial training at two passes a batch, and what keeps it from overfitting catastrophically."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks.inputs import check_inputs
from sparring.attacks.pgd import PGD
from sparring.borrow import Borrowed
from sparring.checks import check_positive
from sparring.noise import Noise
from sparring.objective import check_label_range, cross_entropy
from sparring.threat import Threat
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.modes import twice_differentiable
from sparring.training.strategy import Strategy, check_threat, wide
from sparring.training.supervised import AdversarialTraining


def slope(model: Borrowed, x: Tensor, batch: Batch) -> Tensor:
    """The gradient (B, *S) of each sample's cross-entropy at x, for one forward and one backward."""
    assert batch.indices is not None

    def objective(logits: Tensor) -> Tensor:
        check_label_range(batch.y, logits.shape[1])
        return cross_entropy(logits, batch.y)

    return model.probe(x, objective, model.keyed({}, batch.indices))[2].nan_to_num(0.0, 0.0, 0.0)


@dataclass(eq=False)
class FastFGSM(AdversarialTraining):
    """FGSM-RS: one step from a random point of the ball, projected. Wong et al. (2020). 2 passes a batch.

    step_size: in input units, default 1.25 · eps; from 2 · eps on it overfits catastrophically, and does so at 1.25 · eps, too,
    where eps is large or training long. alpha, fraction: see `AdversarialTraining`.
    """

    threat: Threat
    step_size: float | None = None
    alpha: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_positive(self.name, step_size=self.step_size)
        size = 1.25 * float(self.threat.eps) if self.step_size is None else self.step_size
        self.attack = PGD(self.threat, 1, size, keep="last")

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.crafted(model, batch, self.attack)


@dataclass(eq=False)
class NFGSM(AdversarialTraining):
    """N-FGSM: a step of length eps from strong noise, kept inside the box but not inside the ball. De Jorge et al. (2022).

    Noise beyond eps, and no projection, are what prevents catastrophic overfitting. 2 passes a batch; linf only.
    k: the noise is uniform on ±k · eps. step_size: in input units, default eps. alpha, fraction: see `AdversarialTraining`.
    """

    threat: Threat
    k: float = 2.0
    step_size: float | None = None
    alpha: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf")
        check_positive(self.name, k=self.k, step_size=self.step_size)
        self._box = replace(self.threat, eps=math.inf, typed="")  # the box and the mask, without the ball

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        x, eps = batch.x, float(self.threat.eps)
        check_inputs(x, self.threat)
        assert batch.indices is not None
        noise = Noise(self.draw_seed(batch), batch.indices).uniform(x.shape[1:], "noise", like=x, low=-1.0)
        box = self._box.for_inputs(x)
        noisy = box.project(x, x + self.k * eps * noise)
        with self.crafting(model, batch) as borrowed:
            gradient = slope(borrowed, noisy, batch)
        size = eps if self.step_size is None else self.step_size
        return box.project(x, noisy + size * box.steepest(gradient, noisy))


@dataclass(eq=False)
class GradAlign(Strategy):
    """FGSM whose gradients are kept aligned: + λ (1 − cos(g(x), g(x + η))), η uniform in the ball. Andriushchenko and
    Flammarion (2020).

    g is the input gradient of the loss; g(x), which FGSM needs anyway, is taken as constant, as in the authors' code, and
    g(x + η) is differentiated through (double backward; a compiled model runs this part uncompiled).
    weight: λ; 0.2 suits CIFAR-10 at 8/255, larger eps need more. step_size: of the step, in input units, default eps.
    Passes a batch: 3 forwards and 4 backwards.
    """

    threat: Threat
    weight: float = 0.2
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_positive(self.name, weight=self.weight, step_size=self.step_size)

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        x = batch.x
        check_inputs(x, self.threat)
        assert batch.indices is not None
        threat, size = self.threat.for_inputs(x), float(self.threat.eps) if self.step_size is None else self.step_size
        with self.crafting(model, batch) as borrowed:
            gradient = slope(borrowed, x, batch)
        examples = threat.project(x, x + size * threat.steepest(gradient, x, length=size))
        near = threat.random(x, Noise(self.draw_seed(batch), batch.indices), "near")

        def aligned(seen: Seen) -> Tensor:
            logits = self.forward(model, examples, batch.y)
            seen.add("adversarial", logits, batch.y)
            loss = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
            return loss + self.weight * (1 - self._cosine(model, batch, near, gradient))

        yield Loss(aligned)

    def _cosine(self, model: nn.Module, batch: Batch, near: Tensor, gradient: Tensor) -> Tensor:
        """The mean cosine between g(x) and g(x + η), with a graph, over the samples that have both."""
        bare = getattr(model, "_orig_mod", model)
        point = near.detach().requires_grad_(True)
        with self.aside(model), self.precision(near), twice_differentiable():
            losses = F.cross_entropy(wide(bare(point)), batch.y, reduction="sum")
        (other,) = torch.autograd.grad(losses, point, create_graph=True)
        self.passes.forwards += len(near)
        self.passes.backwards += 2 * len(near)
        a, b = gradient.flatten(1), other.flatten(1)
        a, b = (v / v.detach().abs().amax(1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny) for v in (a, b))
        both = (a.detach() != 0).any(1) & (b.detach() != 0).any(1)
        return F.cosine_similarity(a[both], b[both]).sum() / both.sum().clamp_min(1)
