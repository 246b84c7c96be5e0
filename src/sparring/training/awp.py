"""Adversarial weight perturbation: learn where the loss is flat in the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparring.checks import check_positive
from sparring.training.free import Free
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.parts import Part
from sparring.training.strategy import Strategy
from sparring.training.text import FromBackward
from sparring.training.yopo import YOPO


@dataclass
class AWP(Part):
    """The gradient is taken at weights that are worse for the loss: w + γ · ‖w‖ · g / ‖g‖ in each layer, g the loss's gradient
    at w, on the same examples. Wu et al. (2020).

    gamma: γ, relative size of the perturbation; 0.005 to 0.01. It moves the parameters of two and more dimensions (no biases,
    nothing of BatchNorm); where only others learn, the loss is as it was. start: number of the first batch with it; the paper
    warms up without for some epochs.
    The weights themselves never change: the loss is computed with others in their place, and its backward arrives at the
    model's own parameters. One more pass for each loss; the forward at w leaves no trace in the buffers.
    Not round `Free`, `YOPO` and others that use their own backward: what they take from it would be another network's.
    """

    gamma: float = 0.01
    start: int = 0

    def __post_init__(self) -> None:
        check_positive("AWP", gamma=self.gamma)
        if not isinstance(self.start, int) or self.start < 0:
            raise ValueError(f"AWP(start={self.start!r}): expected the number of a batch, 0 or more")

    def check(self, strategy: Strategy) -> None:
        if isinstance(strategy, (Free, YOPO, FromBackward)):
            raise ValueError(
                f"AWP can't stand round {strategy.name}, which uses what its own backward leaves behind: "
                "put it round PGDTraining or TRADES"
            )

    def around(self, strategy: Strategy, model: nn.Module, batch: Batch, losses: Iterator[Loss]) -> Iterator[Loss]:
        for loss in losses:
            if loss.owner == "model" and strategy.batches > self.start:
                self._perturb(loss, strategy, model, len(batch.y))
            yield loss

    def _perturb(self, loss: Loss, strategy: Strategy, model: nn.Module, samples: int) -> None:
        there = loss.compute

        def perturbed(seen: Seen) -> Tensor:
            layers = {name: p for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
            if not layers:
                return there(seen)
            with strategy.aside(model):
                slopes = torch.autograd.grad(there(Seen()), list(layers.values()), allow_unused=True)
            if strategy.crew is not None:
                strategy.crew.mean([slope for slope in slopes if slope is not None], samples)
            moved = {}
            for (name, weight), slope in zip(layers.items(), slopes, strict=True):
                if slope is not None:
                    size, length = weight.detach().norm(), slope.norm()
                    step = self.gamma * size * slope / torch.where(length > 0, length, 1)
                    moved[f"model.{name}"] = weight + step.nan_to_num(0.0, 0.0, 0.0)
            value: Tensor = functional_call(_Computed(model, there), moved, (seen,))
            return value

        loss.compute = perturbed


class _Computed(nn.Module):
    """A loss of a model as a module, so that other weights can stand in for the model's own."""

    def __init__(self, model: nn.Module, compute: object) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, seen: Seen) -> Tensor:
        value: Tensor = self.compute(seen)  # type: ignore[operator]
        return value
