"""A bound on the norm of every unit's weights, in place of weight decay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparring.training.run import Run


@dataclass(frozen=True)
class MaxNorm:
    """A `Callback`: after each step every unit's incoming weight vector (a row of a Linear, a filter of a convolution) is scaled
    back to at most this L2 norm. Srebro and Shraibman (2005); Goodfellow et al. (2013).
    """

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"MaxNorm({self.limit!r}): expected a number above 0")

    def after_epoch(self, run: Run) -> None:
        """Nothing is left to do."""

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for module in run.model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.weight.requires_grad:
                norms = torch.linalg.vector_norm(module.weight.flatten(1), dim=1)
                scale = (self.limit / norms.clamp_min(self.limit)).reshape(-1, *[1] * (module.weight.dim() - 1))
                module.weight.mul_(scale)
