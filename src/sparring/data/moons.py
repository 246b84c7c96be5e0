"""Two half moons, each round the other's tip: the smallest data on which labels must follow the shape of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def two_moons(count: int, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (count, 2) float32 and y (count,): the upper moon is class 0, the lower 1, and Gaussian noise moves each point.

    The moons have radius 1; the lower one is moved by (1, 0.5). noise: its standard deviation. Every other point is of class
    1. Raises ValueError for fewer than 2 points or a negative noise.

    >>> x, y = two_moons(4, noise=0.0)
    >>> x.shape, y.tolist(), bool((x[y == 0].norm(dim=1) - 1).abs().max() < 1e-6)
    (torch.Size([4, 2]), [0, 1, 0, 1], True)
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2 or not 0 <= noise < math.inf:
        raise ValueError(f"count={count!r}, noise={noise!r}: expected 2 points or more, and noise that is not negative")
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    x = torch.where(y[:, None] == 0, upper, torch.tensor([1.0, 0.5]) - upper)
    return x + noise * torch.randn(count, 2, generator=generator), y
