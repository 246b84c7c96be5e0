"""Random changes of training images, keyed by (seed, step, sample): the same in any batch and on any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.noise import Noise

REACH = 4


def mirror_and_shift(x: Tensor, indices: Tensor, seed: int, reach: int = REACH) -> Tensor:
    """Each image of x (B, C, H, W) mirrored with probability 1/2, and shifted by up to `reach` pixels, zeros moving in."""
    if x.ndim != 4:
        raise ValueError(f"augment='mirror-shift' moves images (B, C, H, W), and x is {tuple(x.shape)}")
    count, channels, height, width = x.shape
    noise = Noise(seed, indices)
    mirrored = noise.below(2, (1,), "mirror").to(x.device) == 1
    down, right = noise.below(2 * reach + 1, (2, 1), "shift").to(x.device).unbind(1)
    columns = torch.arange(width, device=x.device)
    columns = torch.where(mirrored, columns.flip(0), columns)
    rows = torch.arange(height, device=x.device) + down
    padded = F.pad(x, [reach] * 4).flatten(2)
    places = (rows[:, :, None] * (width + 2 * reach) + (columns + right)[:, None, :]).flatten(1)
    return padded.gather(2, places[:, None].expand(-1, channels, -1)).view(count, channels, height, width)
