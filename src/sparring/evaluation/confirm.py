"""Right or wrong? One look decides, for a random model most of several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.objective import fooled, predict
from sparring.threat import per_sample

ROUNDS = 8  # of looks at most, where one leaves it open


def vote(
    model: Borrowed, x: Tensor, y: Tensor, context: Mapping[str, Tensor], looks: int = 1, rounds: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C) for x; (N,) bool: the model is wrong on it in more than half of its looks; (N,) int64 on the CPU: how many.

    A sample gets so many looks, and as many again, up to `rounds` times, while it is within two standard deviations of a
    draw. Of the many examples that a random model is shown, some get most of a few votes by luck alone.
    The logits say the same as the verdict: the last of a wrong look where it is wrong, else the mean over the right looks.
    """
    first = model.look(x, context)
    if looks == 1:
        return first, fooled(predict(first), y), torch.ones(len(x), dtype=torch.int64)
    right, wrong, times = torch.zeros_like(first), first, torch.zeros_like(y)
    asked = torch.zeros_like(y)
    for _ in range(rounds):
        unsure = ((2 * times - asked).abs() <= 2 * asked.sqrt()).nonzero().squeeze(1)
        if not len(unsure):
            break
        some, labels, others = x[unsure], y[unsure], {name: part[unsure] for name, part in context.items()}
        for _ in range(looks):
            logits = model.look(some, others) if int(asked.max()) else first
            now = fooled(predict(logits), labels)
            wrong = wrong.index_copy(0, unsure, torch.where(per_sample(now, logits), logits, wrong[unsure]))
            right = right.index_add(0, unsure, logits.masked_fill(per_sample(now, logits), 0))
            times, asked = (
                times.index_add(0, unsure, now.to(times)),
                asked.index_add(0, unsure, torch.ones_like(unsure)),
            )
    verdict = 2 * times > asked
    mean = right / per_sample((asked - times).clamp_min(1), right)
    return torch.where(per_sample(verdict, first), wrong, mean), verdict, asked.cpu()
