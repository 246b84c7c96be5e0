"""Where a patch lies on an image, and pasting it there: differentiable in the patch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.noise import Noise


@dataclass(frozen=True)
class Footprint:
    """A patch's form: (h, w) pixels at scale 1, a rectangle or the ellipse in it, and how it may be turned and scaled.

    rotation: the most it is turned, in degrees, either way. scale: the smallest and the largest.
    """

    height: int
    width: int
    round: bool
    rotation: float
    scale: tuple[float, float]

    def extent(self, cosine: Tensor, sine: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width of the upright box round the turned and scaled patch."""
        h, w = self.height * scale, self.width * scale
        if self.round:
            return torch.hypot(h * cosine, w * sine), torch.hypot(w * cosine, h * sine)
        return h * cosine.abs() + w * sine.abs(), w * cosine.abs() + h * sine.abs()

    @property
    def most_pixels(self) -> int:
        """No placement covers more pixels: a convex set of area A and perimeter P holds at most A + P/2 + 1 points of
        the grid (Nosarzewska, 1948)."""
        h, w = self.height * self.scale[1], self.width * self.scale[1]
        area = h * w * (math.pi / 4 if self.round else 1)
        perimeter = math.pi * math.hypot(h, w) / math.sqrt(2) if self.round else 2 * (h + w)
        return math.floor(area + perimeter / 2 + 1)

    @property
    def most_extent(self) -> tuple[float, float]:
        """(height, width) that the largest placement may need."""
        turn = torch.linspace(0, min(math.radians(self.rotation), math.pi), 721, dtype=torch.float64)
        box = self.extent(turn.cos(), turn.sin(), torch.tensor(self.scale[1], dtype=torch.float64))
        return float(box[0].max()), float(box[1].max())


@dataclass(frozen=True)
class Placement:
    """One placement a sample. centre: (N, 2) row and column in pixels, 0 at the image's edge. angle: (N,) radians,
    counted from the columns' axis to the rows'. scale: (N,). All float64 on the CPU."""

    centre: Tensor
    angle: Tensor
    scale: Tensor


def random(footprint: Footprint, size: tuple[int, int], noise: Noise, draw: int | Tensor) -> Placement:
    """Uniform in angle and scale, then in the whole-pixel places where the box round it lies inside the image."""
    most = math.radians(footprint.rotation)
    low, high = footprint.scale
    angle = (2 * noise.uniform((1,), "angle", draw)[:, 0].double() - 1) * most
    scale = low + (high - low) * noise.uniform((1,), "scale", draw)[:, 0].double()
    box = torch.stack(footprint.extent(angle.cos(), angle.sin(), scale), 1)
    room = (torch.tensor(size) - box + 1e-9).floor().long().clamp_min(0) + 1
    corner = noise.below(room, (2,), "corner", draw)
    return Placement(corner + box / 2, angle, scale)


def pasted(x: Tensor, patch: Tensor, footprint: Footprint, placement: Placement) -> Tensor:
    """The images x (N, C, H, W) with the patch (C, h, w) on each; a pixel is covered where its centre lies on the patch.

    Differentiable in `patch`, which is sampled bilinearly. In the wider dtype of the two.
    """
    like = patch.new_empty(0, dtype=torch.promote_types(x.dtype, patch.dtype), device=x.device)
    rows = (torch.arange(x.shape[2], device=x.device) + 0.5).view(1, -1, 1)
    columns = (torch.arange(x.shape[3], device=x.device) + 0.5).view(1, 1, -1)
    row, column = placement.centre.to(like)[:, :, None, None].unbind(1)
    cosine, sine = (
        (part / placement.scale).to(like)[:, None, None] for part in (placement.angle.cos(), placement.angle.sin())
    )
    down, right = rows - row, columns - column
    across = (cosine * right + sine * down) * (2 / footprint.width)  # -1 to 1 over the patch
    along = (cosine * down - sine * right) * (2 / footprint.height)
    covered = across**2 + along**2 <= 1 if footprint.round else (across.abs() <= 1) & (along.abs() <= 1)
    sampled = F.grid_sample(
        patch.to(like).expand(len(x), *patch.shape),
        torch.stack([across, along], 3),
        padding_mode="border",
        align_corners=False,
    )
    return torch.where(covered[:, None], sampled, x.to(like))
