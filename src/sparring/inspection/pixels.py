"""From tensors to what can be looked at: 8-bit pictures, and a perturbation amplified until it shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bounds = tuple[float, float]


def layout(shape: tuple[int, ...] | torch.Size) -> str:
    """How one sample of this shape is shown: ``"image"``, ``"line"`` or ``"none"``.

    Two dimensions are an image (H, W) when they are of like size, and channels of a signal (C, L) when they are not.

    >>> layout((3, 32, 32)), layout((28, 28)), layout((1, 1, 784)), layout((12, 1000)), layout((3, 8, 32, 32))
    ('image', 'image', 'line', 'line', 'none')
    """
    sizes = tuple(int(size) for size in shape)
    if not sizes or 0 in sizes:
        return "none"
    if len(sizes) == 3 and min(sizes[1:]) > 1:
        return "image"
    sizes = tuple(size for size in sizes if size > 1) or (1,)
    if len(sizes) == 2 and min(sizes) > 4 and max(sizes) <= 4 * min(sizes):
        return "image"
    return "line" if len(sizes) <= 2 else "none"


def pixels(image: Tensor, bounds: Bounds = (0.0, 1.0)) -> npt.NDArray[np.uint8]:
    """An image (C, H, W) or (H, W) with values in ``bounds``, as 8 bits: (H, W, 3) for 3 channels or more, else (H, W).

    Of 2 channels or of more than 4 the mean is shown, of 4 the first three.
    """
    low, high = bounds
    scaled = (image.detach().to("cpu", torch.float64) - low) / (high - low)
    if scaled.ndim > 2 and layout(scaled.shape) != "image":
        raise ValueError(f"not an image: shape {tuple(image.shape)}, expected (C, H, W) or (H, W)")
    if scaled.ndim == 3:
        channels = scaled.shape[0]
        scaled = scaled[:3].permute(1, 2, 0) if channels in (3, 4) else scaled.mean(0)
    return scaled.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def amplification(original: Tensor, adversarial: Tensor, bounds: Bounds = (0.0, 1.0)) -> float:
    """The largest factor of two digits by which the perturbation can be multiplied and still be drawn around mid-grey.

    >>> amplification(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 8 / 255))
    15.0
    """
    size = float((adversarial.detach().double() - original.detach().double()).abs().max())
    if size == 0.0:
        return 1.0
    largest = (bounds[1] - bounds[0]) / 2 / size
    digit = 10.0 ** (math.floor(math.log10(largest)) - 1)
    # 1e-9: what floating point loses must not cost a whole digit
    return float(f"{math.floor(largest / digit + 1e-9) * digit:.2g}")


def amplified(original: Tensor, adversarial: Tensor, factor: float, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """``factor`` times the perturbation, around the middle of ``bounds`` and clipped to them; shape as ``original``."""
    low, high = bounds
    change = adversarial.detach().double() - original.detach().double()
    return (change * factor + (low + high) / 2).clamp(low, high)


def signal(sample: Tensor) -> npt.NDArray[Any]:
    """A sample that is laid out as lines, one row a line: (L,) or (C, L) becomes float64 (C, L)."""
    rows = sample.detach().to("cpu", torch.float64).squeeze()
    return rows.reshape(-1, rows.shape[-1] if rows.ndim else 1).numpy()
