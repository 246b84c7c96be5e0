"""Networks without normalisation layers: softmax regression, perceptrons, LeNet-5, a strided convolutional network.

All take x float (B, in_channels, size, size) in [0, 1] and return logits (B, classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def softmax(in_channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """Softmax regression on flat pixels: linear logits, so every attack's optimum is known in closed form."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * size * size, classes))


def mlp(in_channels: int = 1, size: int = 28, classes: int = 10, hidden: Sequence[int] = (256, 256)) -> nn.Sequential:
    """A ReLU perceptron with hidden layers of the widths given."""
    layers: list[nn.Module] = [nn.Flatten()]
    widths = (in_channels * size * size, *hidden)
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def small_cnn(in_channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """Two strided 4×4 convolutions (16, 32 channels) and 100 hidden units: the small network of Wong & Kolter (2018).

    Their published weights, and those of "Fast is better than free" (Wong, Rice, Kolter 2020), load into it.
    size: divisible by 4.
    """
    _divisible(size, 4)
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def lenet5(in_channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling: 6 and 16 maps of 5×5, then 120 and 84 units.

    28×28 images are padded to the original's 32×32. size: 28 or 32.
    """
    if size not in (28, 32):
        raise ValueError(f"size={size}: lenet5 takes images of 28×28 or 32×32")
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=(32 - size) // 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def _divisible(size: int, by: int) -> None:
    if size < by or size % by:
        raise ValueError(f"size={size}: expected a multiple of {by}")
