"""Random changes of an image that a model, or an attack, meets: a rotation, a smaller copy somewhere on the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.noise import Noise


@dataclass
class Keys:
    """What a batch's random numbers are keyed by. call: (B,) how often each sample was asked before; drawn: in this call."""

    noise: Noise
    call: Tensor
    drawn: int = 0


class RandomTransform(nn.Module):
    """A change of x (B, *S) that is differentiable in x and random in each sample.

    A subclass says how many random `numbers` a sample needs, and what they do: ``at(x, u)`` with u (B, numbers) in (0, 1),
    in x's dtype or a wider one, on its device. While an attack or `evaluate` asks the model, the numbers are keyed by
    (seed, sample index, draw), so that they are the same in any batch; otherwise they come from torch's generator.
    """

    numbers = 1
    keys: Keys | None = None

    def at(self, x: Tensor, u: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.at(x, self._draw(x))

    def _draw(self, x: Tensor) -> Tensor:
        like = torch.empty(0, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        keys = self.keys
        if keys is None or len(keys.call) != len(x):
            return torch.rand(len(x), self.numbers).to(like)
        keys.drawn += 1
        return keys.noise.uniform((self.numbers,), "transform", keys.call, keys.drawn, like=like)


def need_images(x: Tensor, what: str) -> None:
    if x.ndim != 4:
        raise ValueError(f"{what} works on images: expected x (B, C, H, W), given shape {tuple(x.shape)}")


def sample(x: Tensor, across: Tensor, down: Tensor, padding: str) -> Tensor:
    """x (B, C, H, W) read between its pixels, at column `across` and row `down` (B, H', W'), counted from 0 at the first centre.

    padding: "zeros" or "border", what lies outside.
    """
    height, width = x.shape[2:]
    grid = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], 3)
    wide = x.to(grid.dtype)  # kernels for half precision are not everywhere
    return F.grid_sample(wide, grid, mode="bilinear", padding_mode=padding, align_corners=False).to(x.dtype)


def rotate(x: Tensor, degrees: Tensor | float) -> Tensor:
    """The images x (B, C, H, W) turned about their centre, counter-clockwise, by (B,) or one number of degrees.

    Bilinear, differentiable in x; what comes in from outside is 0. ValueError where x holds no images.

    >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 90.0).round().flatten().tolist()
    [2.0, 4.0, 1.0, 3.0]
    """
    need_images(x, "a rotation")
    dtype = torch.promote_types(x.dtype, torch.float32)
    angle = torch.as_tensor(degrees, device=x.device).to(dtype).expand(len(x)).view(-1, 1, 1) * (math.pi / 180)
    rows, columns = (torch.arange(n, device=x.device, dtype=dtype) - (n - 1) / 2 for n in x.shape[2:])
    across, down = columns[None, None, :], rows[None, :, None]
    # where each pixel comes from: turned back; the axis of rows points down
    origin = (
        angle.cos() * across - angle.sin() * down + (x.shape[3] - 1) / 2,
        angle.sin() * across + angle.cos() * down + (x.shape[2] - 1) / 2,
    )
    return sample(x, *origin, padding="zeros")


class Rotated(RandomTransform):
    """See `rotated`."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        if not 0 < degrees <= 180:
            raise ValueError(f"rotated({degrees!r}): expected a largest angle in degrees, above 0 and at most 180")
        self.degrees = degrees

    def at(self, x: Tensor, u: Tensor) -> Tensor:
        return rotate(x, (2 * u[:, 0] - 1) * self.degrees)

    def extra_repr(self) -> str:
        return f"degrees={self.degrees:g}"


def rotated(degrees: float) -> Rotated:
    """Turns each image (B, C, H, W) by a random angle of its own, uniform from −degrees to +degrees.

    For `expectation`, or inside a model. ValueError for an angle that is not in (0, 180].

    >>> x = torch.rand(2, 3, 8, 8)
    >>> rotated(22.5)(x).shape
    torch.Size([2, 3, 8, 8])
    """
    return Rotated(degrees)


class ResizedAndPadded(RandomTransform):
    """With this probability, the image shrunk to a random size and put at a random place of a black canvas of its own size.

    Xie et al. (2018, 2019). The shorter sizes go from `smallest` times the side, rounded down, to a pixel below the side. As
    in their code, the top left corner is drawn below the last place that would fit: a row and a column at the end stay black.
    """

    numbers = 4

    def __init__(self, probability: float = 0.5, smallest: float = 0.9) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability!r}: expected a number from 0 to 1")
        if not 0 < smallest < 1:
            raise ValueError(
                f"resize={smallest!r}: expected the smallest side as a part of the image's, between 0 and 1"
            )
        self.probability, self.smallest = probability, smallest

    def chosen(self, u: Tensor) -> Tensor:
        """(B,) bool: whom these numbers (B, 4) change at all."""
        return u[:, 0] < self.probability

    def at(self, x: Tensor, u: Tensor) -> Tensor:
        need_images(x, "resizing and padding")
        size, place = u[:, 1], u[:, 2:]
        down, inside_rows = self._origin(x.shape[2], size, place[:, 0])
        across, inside_columns = self._origin(x.shape[3], size, place[:, 1])
        shape = (len(x), *x.shape[2:])
        small = sample(x, across[:, None, :].expand(shape), down[:, :, None].expand(shape), padding="border")
        small = small * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])
        return torch.where(self.chosen(u).view(-1, 1, 1, 1), small, x)

    def _origin(self, side: int, size: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """(B, side) which place of the image each place of the canvas shows, and whether it shows any."""
        least = max(1, int(side * self.smallest))
        small = (least + (size * (side - least)).floor()).clamp(max=max(side - 1, 1))[:, None]
        room = side - small
        first = (
            (place[:, None] * room).floor().minimum(room - 1).clamp(min=0)
        )  # u may be rounded to 1, the side may be 1
        here = torch.arange(side, device=size.device, dtype=size.dtype) - first
        return (here + 0.5) * side / small - 0.5, (here >= 0) & (here < small)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}, smallest={self.smallest:g}"
