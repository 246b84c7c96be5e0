"""What may look at a training, or act on it, from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from sparring.training.run import Run


class Callback(Protocol):
    """What looks at a training after every epoch, and may act: `run.note(text)`, `run.roll_back()`, `run.strategy = …`.

    `after_step(run)`, where there is one, is called after every step of the model's optimiser. `state_dict()` and
    `load_state_dict(state, run)`, where there are any, are kept in the checkpoint; loading comes before the strategy's
    own state is loaded, so a strategy that was replaced is replaced again. What `settings()` returns, if it is there, must be
    the same for a training to go on.
    """

    def after_epoch(self, run: Run) -> None: ...


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
