"""Right or wrong? One look decides, for a random model most of several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.objective import fooled, predict
from sparring.threat import per_sample


def vote(model: Borrowed, x: Tensor, y: Tensor, context: Mapping[str, Tensor], looks: int = 1) -> tuple[Tensor, Tensor]:
    """Logits (N, C) for x, and (N,) bool: the model is wrong on it in more than half of so many looks.

    The logits say the same as the verdict: the last of a wrong look where it is wrong, else the mean over the right looks.
    """
    first = model.look(x, context)
    if looks == 1:
        return first, fooled(predict(first), y)
    right, wrong, times = torch.zeros_like(first), first, torch.zeros_like(y)
    for look in range(looks):
        logits = model.look(x, context) if look else first
        now = fooled(predict(logits), y)
        wrong = torch.where(per_sample(now, logits), logits, wrong)
        right += torch.where(per_sample(now, logits), torch.zeros_like(logits), logits)
        times += now
    verdict = 2 * times > looks
    return torch.where(
        per_sample(verdict, first), wrong, right / per_sample((looks - times).clamp_min(1), right)
    ), verdict
