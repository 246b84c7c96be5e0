"""Maxout networks (Goodfellow et al. 2013): each unit is the largest of k linear pieces.

The paper keeps the norm of every unit's incoming weights below a constant (about 1.9 on MNIST);
that is the trainer's work.
"""

from __future__ import annotations

from torch import Tensor, nn


class Maxout(nn.Module):
    """The maximum over groups of `pieces` neighbouring channels: (B, units · pieces, …) to (B, units, …)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.pieces, *x.shape[2:]).amax(2)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


def maxout(
    in_channels: int = 1,
    size: int = 28,
    classes: int = 10,
    units: int = 240,
    pieces: int = 5,
    dropout: tuple[float, float] = (0.2, 0.5),
) -> nn.Sequential:
    """Two dense maxout layers and softmax, the paper's permutation-invariant MNIST network (0.94% error).

    dropout: the probabilities of dropping an input and a hidden unit.
    """
    at_input, hidden = dropout
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(at_input),
        nn.Linear(in_channels * size * size, units * pieces),
        Maxout(pieces),
        nn.Dropout(hidden),
        nn.Linear(units, units * pieces),
        Maxout(pieces),
        nn.Dropout(hidden),
        nn.Linear(units, classes),
    )


def conv_maxout(
    in_channels: int = 3,
    size: int = 32,
    classes: int = 10,
    width: int = 32,
    pieces: int = 2,
    dropout: tuple[float, float] = (0.1, 0.3),
) -> nn.Sequential:
    """Three convolutional maxout layers and a dense one: the paper's CIFAR-10 network, made small enough for a CPU.

    Each convolution is followed by overlapping max-pooling of stride 2. dropout: at the input and before dense layers.
    size: 8 or more.
    """
    if size < 8:
        raise ValueError(f"size={size}: conv-maxout takes images of 8×8 or more")
    at_input, hidden = dropout
    layers: list[nn.Module] = [nn.Dropout(at_input)]
    channels, side = in_channels, size
    for units in (width, 2 * width, 2 * width):
        layers += [nn.Conv2d(channels, units * pieces, 5, padding=2), Maxout(pieces), nn.MaxPool2d(3, 2, 1)]
        channels, side = units, (side + 1) // 2
    dense = 4 * width
    layers += [nn.Flatten(), nn.Dropout(hidden), nn.Linear(channels * side * side, dense * pieces), Maxout(pieces)]
    return nn.Sequential(*layers, nn.Dropout(hidden), nn.Linear(dense, classes))
