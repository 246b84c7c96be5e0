"""What makes a network hard to attack without making it robust: the masks of `networks.py`'s hard networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AddedNoise(nn.Module):
    """Normal noise on the input at every forward, in evaluation too: a random model."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"


class Rounding(nn.Module):
    """Inputs rounded to a few grey levels (Guo 2018): the gradient is zero almost everywhere."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return (x * (self.levels - 1)).round() / (self.levels - 1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class Scaled(nn.Module):
    """Logits times a constant: the softmax saturates, and cross-entropy's gradient is zero in float32."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class KWinners(nn.Module):
    """The largest tenth of a sample's activations pass, the others are 0 (k-winners-take-all, Xiao 2020): a step at every
    change of winners, so that the gradient at a point says little about the next."""

    share = 0.1

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(x)


class Detector(nn.Module):
    """Where the network wavers (its two best logits closer than `margin`) a second look decides, and decides surely.

    The second look is the network's own answer for the image blurred and rounded, as a constant logit of `sure`: near
    the decision boundary, where attacks work, the gradient is exactly zero and the class mostly the right one. An
    attack has to cross the band in one leap, from sure and right to sure and wrong.
    """

    def __init__(self, net: nn.Module, margin: float = 1.0, levels: int = 4, sure: float = 20.0) -> None:
        super().__init__()
        self.net, self.margin, self.sure = net, margin, sure
        self.look = nn.Sequential(nn.AvgPool2d(3, 1, 1), Rounding(levels))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        with torch.no_grad():
            second_look = self.sure * nn.functional.one_hot(self.net(self.look(x)).argmax(1), logits.shape[1])
        return torch.where((first - second > self.margin).unsqueeze(1), logits, second_look.to(logits))
