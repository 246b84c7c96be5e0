"""Residual networks with BatchNorm for small images (He, Zhang, Ren, Sun 2016, both papers)."""

from __future__ import annotations

from torch import Tensor, nn


def _conv(fan_in: int, fan_out: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input, then ReLU. Where the shape changes, the input passes a 1×1 convolution."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(fan_in, fan_out, stride), nn.BatchNorm2d(fan_out)
        self.conv2, self.bn2 = _conv(fan_out, fan_out), nn.BatchNorm2d(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(_conv(fan_in, fan_out, stride, kernel=1), nn.BatchNorm2d(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return out.relu()


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice, plus the input; where the shape changes, the activated input passes a 1×1 convolution."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(fan_in), _conv(fan_in, fan_out, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(fan_out), _conv(fan_out, fan_out)
        self.shortcut: nn.Module | None = None
        if stride != 1 or fan_in != fan_out:
            self.shortcut = _conv(fan_in, fan_out, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = self.bn1(x).relu()
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.bn2(self.conv1(active)).relu())
        return out + kept


def _pooled_head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def small_resnet(in_channels: int = 3, classes: int = 10, width: int = 16, depth: int = 8) -> nn.Sequential:
    """The CIFAR ResNet of He et al.: three stages of width, 2·width, 4·width; depth = 6n + 2 layers.

    Images of any size.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth={depth}: expected 6n + 2: 8, 14, 20, …")
    layers: list[nn.Module] = [_conv(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()]
    fan_in = width
    for stage in range(3):
        fan_out = width << stage
        for i in range((depth - 2) // 6):
            layers.append(Block(fan_in, fan_out, stride=2 if stage and not i else 1))
            fan_in = fan_out
    return _kaiming(nn.Sequential(*layers, *_pooled_head(fan_in, classes)))


def preact_resnet18(in_channels: int = 3, classes: int = 10, width: int = 64) -> nn.Sequential:
    """The pre-activation ResNet-18 usual in adversarial training on CIFAR-10: four stages of two blocks.

    Images of any size.
    """
    layers: list[nn.Module] = [_conv(in_channels, width)]
    fan_in = width
    for stage in range(4):
        fan_out = width << stage
        for i in range(2):
            layers.append(PreActBlock(fan_in, fan_out, stride=2 if stage and not i else 1))
            fan_in = fan_out
    return _kaiming(nn.Sequential(*layers, nn.BatchNorm2d(fan_in), nn.ReLU(), *_pooled_head(fan_in, classes)))


def _kaiming(model: nn.Sequential) -> nn.Sequential:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
