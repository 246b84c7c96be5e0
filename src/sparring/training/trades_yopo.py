"""TRADES whose examples cost YOPO's few full passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparring.attacks.inputs import check_inputs
from sparring.checks import check_positive
from sparring.noise import Noise
from sparring.objective import check_label_range, kl
from sparring.threat import Threat
from sparring.training.losses import Batch
from sparring.training.strategy import check_threat
from sparring.training.trades import Agreeing, beside, trades_loss
from sparring.training.yopo import YOPO


@dataclass(eq=False)
class TRADESYOPO(Agreeing):
    """TRADES-YOPO-m-n: m full passes up the KL divergence, n steps of the first layer behind each. Zhang et al. (2019, YOPO).

    As in the authors' code the full passes only craft; what is learned is `TRADES`'s loss at the refined points. step_size,
    first, collapse: see `YOPO`; where the first layer is affine the n steps are done with one gradient. beta: see `TRADES`.
    Passes a batch: m + 2, one more forward, and m · n of the first layer (none where it is affine).
    """

    threat: Threat
    m: int = 3
    n: int = 4
    beta: float = 6.0
    step_size: float | str | None = field(default=None, kw_only=True)
    first: str | nn.Module | None = field(default=None, kw_only=True)
    collapse: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_positive(self.name, beta=self.beta)
        self._inner = YOPO(
            self.threat, self.m, self.n, step_size=self.step_size, first=self.first, collapse=self.collapse
        )

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        assert batch.indices is not None
        check_inputs(batch.x, self.threat)
        inner = self._inner
        inner.statistics, inner.passes, inner.autocast = self.statistics, self.passes, self.autocast
        first = inner._find(model, batch)
        x = beside(self.threat, batch.x, Noise(self.draw_seed(batch), batch.indices))
        with self.crafting(model, batch) as borrowed, torch.enable_grad():
            context = borrowed.keyed({}, batch.indices)
            reference = borrowed.look(batch.x, context)
            check_label_range(batch.y, reference.shape[1])
            for _ in range(self.m):
                point = x.detach().requires_grad_(True)
                with first.watched(cut=False) as costate:
                    gain = kl(borrowed.call(point, context), batch.y, None, reference).sum()
                p, *gradient = torch.autograd.grad(
                    gain, (costate.reached, point) if inner._affine else (costate.reached,)
                )
                borrowed.backwards += len(x)
                x = inner._refined(model, batch, first, point.detach(), p, gradient[0] if gradient else None)
        return x.detach()

    def value(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        return trades_loss(clean, adversarial, y, self.beta, self.label_smoothing)
