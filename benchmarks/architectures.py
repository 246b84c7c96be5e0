"""The networks' architectures: those of the published weights, and small ones that train in minutes on one CPU core."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """Two 3x3 convolutions (32, 64), pooled, and 200 hidden units: (B, 1, 28, 28) to (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())


def strided(width: int = 16, hidden: int = 100, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two 4x4 convolutions of stride 2 (width, 2 width) and a hidden layer: (B, 1, 28, 28) to (B, 10)."""
    convolutions = nn.Conv2d(1, width, 4, 2, 1), activation(), nn.Conv2d(width, 2 * width, 4, 2, 1), activation()
    dense = nn.Linear(98 * width, hidden), activation(), nn.Linear(hidden, 10)
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def wide() -> nn.Sequential:
    """`strided` with 32 and 64 channels and 200 hidden units."""
    return strided(32, 200)


class Residual(nn.Module):
    """relu(x + two 3x3 convolutions); a 1x1 convolution on the shortcut where the stride is not 1."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(channels, out, 1, stride)] if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """alpha-beta-CROWN's networks of 2 and 4 blocks, normalising inside: (B, 3, 32, 32) to (B, 10)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        out, deep = 2 * width, blocks == 4
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        self.layer1 = nn.Sequential(Residual(width, out, 2), Residual(out, out, 1))
        self.layer2 = nn.Sequential(*([Residual(out, out, 2), Residual(out, out, 1)] if deep else []))
        self.linear1, self.linear2 = nn.Linear(out * (16 if deep else 64), 100), nn.Linear(100, 10)
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1((x - self.mean) / self.std).relu()))
        return self.linear2(self.linear1(x.flatten(1)).relu())


class Preactivation(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution of stride 2, BatchNorm, ReLU, 3x3 convolution; 1x1 on the shortcut (He 2016)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x).relu()
        return self.conv2(self.norm2(self.conv1(x)).relu()) + self.shortcut(x)


def batch_norm_resnet(width: int = 16) -> nn.Sequential:
    """A residual network with BatchNorm, three blocks and a global average: (B, 3, 32, 32) to (B, 10)."""
    blocks = Preactivation(width, 2 * width), Preactivation(2 * width, 4 * width), Preactivation(4 * width, 8 * width)
    tail = nn.BatchNorm2d(8 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)
    return nn.Sequential(nn.Conv2d(3, width, 4, 2, 1, bias=False), *blocks, *tail)
