"""Tiny models and inputs that the tests share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (3, 4, 5)  # of the inputs of `labelled`
SHAPES = {2: (12,), 3: (2, 9), 4: (3, 4, 5)}  # by the rank of a batch; not square on purpose


def linear(shape: Sequence[int], classes: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A linear classifier with every weight away from zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(shape), classes, dtype=dtype)
    weight = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    layer.weight.data.copy_(weight + 0.05 * weight.sign())
    layer.bias.data.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def direction(model: nn.Sequential, y: Tensor) -> Tensor:
    """(B, D) gradient of the margin of a linear two-class model."""
    weight = model[1].weight.detach()
    return weight[1 - y] - weight[y]


def mlp(shape: Sequence[int], classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)


class RowWise(nn.Module):
    """A two-layer network whose sums run within one sample, so that its float64 logits are the same bits in any batch.

    Matrix products are not: BLAS picks another order of summation for another batch size.
    """

    def __init__(self, shape: Sequence[int], classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        entries = math.prod(shape)
        self.first = nn.Parameter(torch.randn(8, entries, generator=generator, dtype=torch.float64) / entries**0.5 * 3)
        self.second = nn.Parameter(torch.randn(classes, 8, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1) - 0.5)[:, None] * self.first).sum(2).tanh()
        return (hidden[:, None] * self.second).sum(2)


def convolutional(classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Convolution, BatchNorm, dropout: everything that a mode changes. Takes (B, 3, H, W) of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, classes),
        ).to(dtype)


def inputs(
    batch: int, shape: Sequence[int], classes: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """(B, *S) in [0, 1], some entries exactly at the ends, and labels (B,)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = (torch.rand((batch, *shape), generator=generator, dtype=torch.float64) * 1.3 - 0.15).clamp(0, 1)
    return x.to(dtype), torch.randint(0, classes, (batch,), generator=generator)


def labelled(
    model: nn.Module, count: int, dtype: torch.dtype = torch.float64, wrong: int = 10
) -> tuple[Tensor, Tensor]:
    """Inputs with the labels that the model gives them, every `wrong`-th apart."""
    x, _ = inputs(count, SHAPE, dtype=dtype)
    with torch.no_grad():
        logits = model.eval()(x)
    y = logits.argmax(1)
    y[::wrong] = (y[::wrong] + 1) % logits.shape[1]
    return x, y


class Counting(nn.Module):
    """Counts the samples that pass through a model in each direction."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def best_linear_change(
    norm: str, gradient: Tensor, x: Tensor, eps: float, bounds: tuple[float, float] | None
) -> Tensor:
    """(B, D) the change inside ball ∩ box along which a linear function with this gradient grows most.

    linf: the corner. l1: a fractional knapsack, the largest gradients first, each to the end of its room. l2: bisection
    on s in min(s·|g|, room), whose length grows with s.
    """
    low, high = bounds if bounds is not None else (-math.inf, math.inf)
    room = torch.where(gradient > 0, high - x, x - low)
    size = gradient.abs()
    if norm == "linf":
        return gradient.sign() * room.clamp_max(eps)
    if norm == "l1":
        change = torch.zeros_like(x)
        for b in range(len(x)):
            left = eps
            for i in size[b].argsort(descending=True).tolist():
                change[b, i] = min(left, float(room[b, i]))
                left -= float(change[b, i])
        return gradient.sign() * change
    least, most = torch.zeros(len(x), 1, dtype=x.dtype), torch.full((len(x), 1), 1e9, dtype=x.dtype)
    for _ in range(200):
        middle = (least + most) / 2
        inside = torch.minimum(middle * size, room).norm(dim=1, keepdim=True) <= eps
        least, most = torch.where(inside, middle, least), torch.where(inside, most, middle)
    return gradient.sign() * torch.minimum(least * size, room)


class Backwards(torch.autograd.Function):
    """The identity, with its gradient turned round: every step leads away from failure."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient
