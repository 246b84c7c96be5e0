"""Does an example hold when the model is asked again?"""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.objective import fooled, predict
from sparring.rows import Rows
from sparring.threat import per_sample


def confirm(model: Borrowed, rows: Rows, looks: int) -> tuple[Tensor, Tensor]:
    """The logits (N, C) for `rows.best`, and (N,) bool on the CPU: it fools in more than half of so many looks.

    The logits are those of the last look that fooled, where one did.
    """
    kept = model.look(rows.best, rows.context)
    times = fooled(predict(kept), rows.y).int()
    for _ in range(looks - 1):
        logits = model.look(rows.best, rows.context)
        now = fooled(predict(logits), rows.y)
        times += now
        kept = torch.where(per_sample(now, logits), logits, kept)
    return kept, (2 * times > looks).cpu()
