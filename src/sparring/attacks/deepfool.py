"""DeepFool: step to the nearest of the boundaries that a linear model would have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparring.ascent import Pool, Probe
from sparring.attacks.minimal import DUAL, MinimalAttack
from sparring.attacks.sign import need_norm
from sparring.borrow import Borrowed
from sparring.checks import check_whole
from sparring.rows import Rows
from sparring.threat import per_sample

_NEAR = 0.1  # a step this short, as a part of the change so far, is near the end


@dataclass(frozen=True)
class DeepFool(MinimalAttack):
    """DeepFool, l2 and linf, untargeted. Moosavi-Dezfooli, Fawzi and Frossard (2016).

    At each step the logits are taken for linear: of the likeliest other classes it goes for the one whose boundary is nearest
    then, and steps just across, clipped to the box. Near the end, where clipping would leave ever smaller steps that never
    arrive, it takes the smallest change that crosses inside the box instead. A sample leaves once it is fooled.

    steps: at most. rivals: how many other classes are looked at; a step costs 1 forward and as many backwards.
    overshoot: how far beyond the boundary a step goes, as a part of its length.
    """

    steps: int = 50
    rivals: int = 9
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2")
        if self.targets is not None:
            raise ValueError(f"DeepFool(targets={self.targets!r}): it has no targeted form; use FMN or CarliniWagner")
        check_whole("DeepFool", rivals=self.rivals)
        if not self.overshoot >= 0:
            raise ValueError(f"DeepFool(overshoot={self.overshoot!r}): expected a number that is not negative")

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        threat, lead = rows.threat, -rows.current.to(gradient.dtype)
        step = replace(threat, bounds=None).crossing(rows.x, gradient, lead)
        if threat.bounds is None:
            return rows.x + (1 + self.overshoot) * step
        near = threat.size(rows.x, rows.x + step) <= _NEAR * threat.size(rows.original, rows.x)
        if bool(near.any()):
            step = torch.where(per_sample(near, step), threat.crossing(rows.x, gradient, lead), step)
        return (rows.x + (1 + self.overshoot) * step).clamp(*threat.bounds)

    def settled(self, rows: Rows) -> Tensor:
        return rows.norm.isfinite()

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        return _NearestRival(model, self, self.climbs(), **settings)


class _NearestRival(Pool):
    """Its objective is the lead over the label of the class whose boundary is nearest, where the logits are taken for linear."""

    recipe: DeepFool

    def add(self, rows: Rows) -> None:
        if rows.targets is not None:
            raise ValueError("DeepFool has no targeted form: call it without targets, or use FMN or CarliniWagner")
        super().add(rows)

    def _probe(self, rows: Rows, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def leads(logits: Tensor) -> Tensor:
            self._value(rows, logits)  # checks them
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            others = wide.scatter(1, rows.y[:, None], -torch.inf)
            best = others.topk(min(self.recipe.rivals, logits.shape[1] - 1), dim=1).values
            return best - wide.gather(1, rows.y[:, None])

        logits, values, gradients = self.model.probe(point, leads, rows.context)
        rows.forwards, rows.backwards = rows.forwards + 1, rows.backwards + values.shape[1]
        if rows.threat.mask is not None:
            gradients = gradients * rows.threat.mask.expand_as(rows.original)[:, None]
        steep = torch.linalg.vector_norm(gradients.flatten(2), DUAL[rows.threat.norm], dim=2)
        far = torch.where(steep > 0, values.abs() / steep, torch.inf).nan_to_num(torch.inf)
        nearest, here = far.argmin(1), torch.arange(len(rows), device=point.device)
        return logits, values[here, nearest], gradients[here, nearest]
