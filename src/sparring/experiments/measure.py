"""Crafting and counting over a test set, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparring.borrow import borrow
from sparring.evaluation.statistics import Proportion
from sparring.wrappers import Model

BATCH = 250


def logits_of(model: Model, x: Tensor) -> Tensor:
    """(N, C), without a graph, in eval mode."""
    with borrow(model) as borrowed:
        return torch.cat([borrowed.look(part) for part in torch.split(x, BATCH)])


def craft(attack: Any, model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None = None, seed: int = 0) -> Tensor:
    """What the attack makes of x (N, *S), labels y (N,), in batches; its noise is keyed by the sample's number."""
    made = []
    for numbers in torch.split(torch.arange(len(x)), BATCH):
        goal = None if targets is None else targets[numbers]
        made.append(attack(model, x[numbers], y[numbers], goal, indices=numbers, seed=seed).x)
    return torch.cat(made)


@dataclass(frozen=True)
class Errors:
    """How often a network is wrong, and how sure it is of its wrong answers.

    confidence: the mean, over the misclassified samples alone, of the probability of the class predicted; None where
    none is misclassified. Goodfellow et al. (2015) average "over the incorrect labels" in this sense.
    """

    rate: Proportion
    confidence: float | None


def errors(model: nn.Module, x: Tensor, y: Tensor) -> Errors:
    probability, predicted = logits_of(model, x).softmax(1).max(1)
    wrong = predicted != y
    sure = float(probability[wrong].mean()) if bool(wrong.any()) else None
    return Errors(Proportion(int(wrong.sum()), len(y)), sure)


Step = Callable[[str], None]
