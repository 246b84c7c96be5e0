"""The networks of a learned generator, for any image size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _convolved(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolved(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


class Generator(nn.Module):
    """Images (B, C, H, W) to a change in [−1, 1], (B, C, H, W): down by four, residual blocks, up again.

    Smaller than that of Xiao et al. (2018). Sums carry each scale across, and resizing goes to the size that was, so that
    odd sizes come back as they were. Batch normalisation, because normalising each image by itself would take away how
    bright it is; once trained, no sample sees another.
    """

    def __init__(self, channels: int, width: int, blocks: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.first = _convolved(channels, width)
        self.down = nn.ModuleList([_convolved(width, 2 * width, 2), _convolved(2 * width, 4 * width, 2)])
        self.middle = nn.Sequential(*(_Residual(4 * width) for _ in range(blocks)))
        self.up = nn.ModuleList([_convolved(4 * width, 2 * width), _convolved(2 * width, width)])
        self.last = nn.Conv2d(width, channels, 3, 1, 1)
        for parameter in self.last.parameters():  # no change to begin with: a large one would sit where tanh is flat
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        half = self.down[0](fine)
        h = self.middle(self.down[1](half))
        for up, skipped in zip(self.up, (half, fine)):
            h = skipped + up(F.interpolate(h, size=skipped.shape[2:]))
        return torch.tanh(self.last(h))


class Discriminator(nn.Module):
    """Images (B, C, H, W) to how real they look, (B,): 1 for images of the data, 0 for made ones."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x).flatten(1).mean(1)
        return out
