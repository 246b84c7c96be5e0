"""Random changes of training images, keyed by (seed, step, sample): the same in any batch and on any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.noise import Noise


def mirror_and_shift(x: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Each image of x (B, C, H, W) mirrored with probability 1/2, and shifted by up to 4 pixels, zeros moving in."""
    return _moved(x, Noise(seed, indices), "mirror-shift", 4, mirror=True)


def shift(x: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Each image of x (B, C, H, W) shifted by up to 2 pixels, zeros moving in: for digits, letters and signs, which a mirror
    makes into something else."""
    return _moved(x, Noise(seed, indices), "shift", 2, mirror=False)


AUGMENTATIONS = {"mirror-shift": mirror_and_shift, "shift": shift}
"""By the name that `fit` and `--augment` know."""


def _moved(x: Tensor, noise: Noise, name: str, reach: int, *, mirror: bool) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"augment={name!r} moves images (B, C, H, W), and x is {tuple(x.shape)}")
    count, channels, height, width = x.shape
    down, right = noise.below(2 * reach + 1, (2, 1), "shift").to(x.device).unbind(1)
    columns = torch.arange(width, device=x.device).expand(count, -1)
    if mirror:
        mirrored = noise.below(2, (1,), "mirror").to(x.device) == 1
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows = torch.arange(height, device=x.device) + down
    padded = F.pad(x, [reach] * 4).flatten(2)
    places = (rows[:, :, None] * (width + 2 * reach) + (columns + right)[:, None, :]).flatten(1)
    return padded.gather(2, places[:, None].expand(-1, channels, -1)).view(count, channels, height, width)
