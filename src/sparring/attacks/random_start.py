"""Where attacks by decisions begin: images without meaning, which some model calls something else."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.attacks.square import plane
from sparring.noise import Noise
from sparring.threat import per_sample

BLOCKS = 4  # sizes of the blocks: 1, 2, 4, 8


def random_images(x: Tensor, noise: Noise, draws: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """(N, *S) images of single entries and of ever coarser blocks, which fool where fine noise looks like nothing to the model.

    draws: (N,) which one each sample asks for; every other one is in black and white, of any brightness. Without bounds
    they lie round x (N, *S), ever further out.
    """
    channels, height, width = plane(x)
    unit = noise.uniform((channels, height, width), "image", draws, like=x)
    level = noise.uniform((1, 1, 1), "level", draws, like=x)
    plain = per_sample((draws % 2 == 0).to(x.device), unit)
    unit = torch.where(plain, unit, (unit < level).to(x.dtype))
    block = 2 ** (draws // 2 % BLOCKS)[:, None]
    i, j = (torch.arange(n) // block * block for n in (height, width))
    unit = unit[torch.arange(len(x))[:, None, None], :, i[:, :, None], j[:, None]].permute(0, 3, 1, 2).reshape(x.shape)
    if bounds is not None:
        low, high = bounds
        return low + (high - low) * unit
    reach = x.flatten(1).abs().amax(1).clamp_min(1) * 2.0 ** (draws // (2 * BLOCKS)).to(x.device, x.dtype)
    return x + per_sample(reach, x) * (2 * unit - 1)
