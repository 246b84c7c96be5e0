"""The perturbation set: a norm ball round each sample, the box that inputs live in, and where one may change anything.

`Threat` is geometry and nothing else. Inputs are (B, *S) floats; half-precision inputs are computed with in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from sparring.noise import Noise
from sparring.projection import cross, project_l0, project_l1, project_l2, sparse_step

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")


def parse_eps(eps: float | str) -> float:
    """A number, or text such as ``8/255``, ``0.3`` or ``0.5/255``.

    >>> parse_eps("8/255") == 8 / 255, parse_eps("0.5/255") == 0.5 / 255
    (True, True)
    """
    try:
        if isinstance(eps, str):
            over, slash, under = eps.replace(" ", "").partition("/")
            value = float(Fraction(over) / (Fraction(float(under)) if slash else 1))
        else:
            value = float(eps)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"eps={eps!r}: expected a number such as 0.3 or 8/255") from None
    if not value >= 0:
        raise ValueError(f"eps={eps!r}: expected a number that is not negative")
    return value


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, …), to broadcast against `like` (B, *S)."""
    return value.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, eq=False)
class Threat:
    """What the attacker may do: move each input by at most `eps` in `norm`, inside the box, where `mask` is true.

    norm: "linf", "l2", "l1" (sum of absolute changes) or "l0" (number of changed entries).
    eps: in the model's input units (for images in [0, 1], 8/255 and not 8); a number, text such as ``"8/255"``, or a
        (B,) tensor with one eps per sample. `math.inf` leaves the box alone as the limit.
    bounds: the box (low, high) that inputs live in, or None.
    mask: bool, broadcastable to the inputs without their batch dimension, or with it, one mask per sample;
        entries where it is false stay as they are.

    Raises ValueError for an unknown norm, a negative eps, an eps larger than a linf box, and bounds that are no interval.

    >>> Linf("8/255")
    Linf(8/255)
    """

    norm: Norm
    eps: float | Tensor
    bounds: tuple[float, float] | None = (0.0, 1.0)
    mask: Tensor | None = None
    typed: str = ""
    _mask_per_sample: bool = False  # known once `for_inputs` has seen the inputs' rank

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: expected one of {', '.join(NORMS)}")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds={self.bounds}: expected (low, high) with low < high")
        if isinstance(self.eps, Tensor):
            if self.eps.ndim != 1 or not bool((self.eps >= 0).all()):
                raise ValueError(
                    f"eps of shape {tuple(self.eps.shape)}: expected a number or (B,) numbers, none negative"
                )
            object.__setattr__(self, "typed", self.typed or "one per sample")
        else:
            typed, value = self.eps, parse_eps(self.eps)
            object.__setattr__(self, "typed", self.typed or (typed if isinstance(typed, str) else f"{value:g}"))
            object.__setattr__(self, "eps", value)
            self._check_size(float(self.eps))
        if self.norm == "l0" and self.bounds is None:
            raise ValueError("an l0 threat needs bounds: without a box one entry may change without limit")

    def _check_size(self, eps: float) -> None:
        if self.norm != "linf" or self.bounds is None or math.isinf(eps):
            return
        low, high = self.bounds
        if eps > high - low:
            hint = f": did you mean {eps:g}/255?" if eps >= 1 and high - low <= 2 else ""
            raise ValueError(
                f"eps={self.typed} with inputs in [{low:g}, {high:g}]{hint or ': the box is smaller than eps'}"
            )

    def __repr__(self) -> str:
        box = "" if self.bounds == (0.0, 1.0) else f", bounds={self.bounds}"
        return f"{self.norm.capitalize()}({self.typed}{box}{', masked' if self.mask is not None else ''})"

    def __getitem__(self, rows: Tensor) -> Threat:
        """The threat of these samples: itself, unless eps or the mask differs by sample."""
        eps, mask = self.eps, self.mask
        if isinstance(eps, Tensor):
            eps = eps[rows.to(eps.device)]
        if mask is not None and self._mask_per_sample:
            mask = mask[rows.to(mask.device)]
        return self if eps is self.eps and mask is self.mask else replace(self, eps=eps, mask=mask)

    def joined(self, other: Threat) -> Threat:
        """The threat of this threat's samples followed by those of `other`, which differs in per-sample values only."""
        eps, mask = self.eps, self.mask
        if isinstance(eps, Tensor) and isinstance(other.eps, Tensor):
            eps = torch.cat([eps, other.eps])
        if mask is not None and other.mask is not None and self._mask_per_sample:
            mask = torch.cat([mask, other.mask])
        return self if eps is self.eps and mask is self.mask else replace(self, eps=eps, mask=mask)

    def for_inputs(self, x: Tensor) -> Threat:
        """This threat with eps and mask checked against inputs (B, *S), on their device."""
        eps, mask, by_sample = self.eps, self.mask, False
        if isinstance(eps, Tensor):
            if len(eps) != len(x):
                raise ValueError(
                    f"eps has {len(eps)} values for {len(x)} samples: expected one number, or one per sample"
                )
            if len(eps):
                self._check_size(float(eps.max()))
            eps = eps.to(x.device, torch.promote_types(x.dtype, torch.float32))
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"mask of dtype {mask.dtype}: expected torch.bool, true where the input may change")
            shapes = (mask.shape, x.shape[1:]) if mask.ndim < x.ndim else (mask.shape[1:], x.shape[1:])
            by_sample = mask.ndim == x.ndim and len(mask) == len(x)
            if mask.ndim > x.ndim or (mask.ndim == x.ndim and len(mask) not in (1, len(x))) or not _broadcasts(*shapes):
                raise ValueError(
                    f"mask of shape {tuple(mask.shape)} does not broadcast to inputs of shape {tuple(x.shape)}"
                )
            mask = mask.to(x.device)
        if eps is self.eps and mask is self.mask and by_sample == self._mask_per_sample:
            return self
        return replace(self, eps=eps, mask=mask, _mask_per_sample=by_sample)

    def _eps(self, like: Tensor) -> float | Tensor:
        """eps, broadcastable against (B, *S)."""
        return per_sample(self.eps, like).to(like.dtype) if isinstance(self.eps, Tensor) else self.eps

    def _limits(self, x: Tensor) -> tuple[float, float]:
        return self.bounds if self.bounds is not None else (-math.inf, math.inf)

    def project(self, x: Tensor, candidate: Tensor, wide: bool = False) -> Tensor:
        """The point of ball ∩ box nearest to `candidate` (Euclidean distance), round `x`. Both (B, *S) → (B, *S).

        Exact: linf clips; l2 and l1 solve for the multiplier of the joint set (the l1 case as in Croce and Hein 2021);
        l0 keeps the entries whose change brings the most. The result has x's dtype (see `rounded`), or with `wide`
        float32 where that is half precision: the steps of a loop add up there, where half precision would lose them.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        low, high = self._limits(x)
        centre = x.to(dtype)
        if self.norm == "linf":
            eps = self._eps(centre)
            edge = centre - eps
            moved = torch.maximum(candidate.to(dtype), edge)
            torch.minimum(moved, torch.add(centre, eps, out=edge), out=moved).clamp_(low, high)
            if self.mask is not None:
                moved = torch.where(self.mask, moved, centre)
        else:
            change = (candidate.to(dtype) - centre).flatten(1)
            if self.mask is not None:
                change = change * self.mask.expand_as(x).flatten(1)
            room = torch.where(change > 0, high - centre.flatten(1), centre.flatten(1) - low)
            solve = {"l2": project_l2, "l1": project_l1, "l0": project_l0}[self.norm]
            eps = self.eps.to(dtype) if isinstance(self.eps, Tensor) else self.eps
            if x.dtype != dtype and self.norm != "l0":
                eps = eps * (1 - 4 * torch.finfo(x.dtype).eps)
            moved = centre + (solve(change.abs(), room, eps) * change.sign()).view_as(x)
            if self.bounds is not None:
                moved = moved.clamp_(low, high)
        return moved if wide else self.rounded(x, moved)

    def rounded(self, x: Tensor, moved: Tensor) -> Tensor:
        """`moved` in x's dtype; where rounding in half precision would leave the ball, it is rounded towards `x`."""
        return moved if moved.dtype == x.dtype else _towards(x, moved)

    def random(self, x: Tensor, noise: Noise, *draw: str | int | Tensor) -> Tensor:
        """A random point of the set: uniform in the ball of the free entries, then projected onto the box. (B, *S) → (B, *S)."""
        shape, wide = x.shape[1:], x.to(torch.promote_types(x.dtype, torch.float32))
        free = None if self.mask is None else self.mask.expand_as(x).flatten(1)
        eps = self._eps(wide)
        if isinstance(eps, float) and math.isinf(eps):
            raise ValueError("a random start needs a finite eps")
        if self.norm == "linf":
            moved = wide + noise.uniform(shape, *draw, like=wide, low=-1.0) * eps
        elif self.norm == "l2":
            direction = noise.normal(shape, *draw, like=wide).flatten(1)
            if free is not None:
                direction = direction * free
            entries = direction.shape[1] if free is None else free.sum(1, keepdim=True).clamp_min(1)
            radius = noise.root(entries, *draw, "radius", like=wide)
            length = direction.norm(dim=1, keepdim=True)
            moved = wide + eps * (direction / torch.where(length > 0, length, 1) * radius).view_as(x)
        elif self.norm == "l1":
            # D + 1 exponentials, normalised, are uniform on the simplex; the last one is the slack inside the ball
            parts = noise.exponential((math.prod(shape) + 1,), *draw, like=wide)
            if free is not None:
                parts[:, :-1] *= free
            parts = parts / parts.sum(1, keepdim=True)
            moved = wide + eps * (parts[:, :-1] * noise.sign((math.prod(shape),), *draw, "sign", like=wide)).view_as(x)
        else:
            low, high = self._limits(x)
            order = noise.uniform((math.prod(shape),), *draw, "where").argsort(1).argsort(1).view(x.shape).to(x.device)
            moved = torch.where(order < eps, noise.uniform(shape, *draw, like=wide, low=low, high=high), wide)
        return self.project(x, moved.to(x.dtype) if x.dtype == wide.dtype else moved)

    def steepest(self, gradient: Tensor, x: Tensor, sparsity: float = 0.99, length: float | Tensor = 1.0) -> Tensor:
        """The direction of length 1 in this norm along which a linear function with this gradient grows fastest.

        gradient, x: (B, *S), `x` the point it was taken at. length: how far the step will go, a number or (B,). l1: a
        sparse step as in SLIDE (Tramèr and Boneh, 2019), at most length / k to an entry with k = (1 − sparsity) of all;
        entries are served in the order of their gradients, each no further than the box lets it, until the length is
        spent. So entries at the end of the box neither stop the step nor waste it.
        Zero where the gradient is zero, never NaN.
        """
        if self.mask is not None:
            gradient = gradient * self.mask
        if self.norm == "linf":
            return gradient.sign()
        flat = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).flatten(1)
        if self.norm == "l2":
            largest = flat.abs().amax(1, keepdim=True)  # first, so that squares neither vanish nor overflow
            flat = flat / torch.where(largest > 0, largest, 1)
            norm = flat.norm(dim=1, keepdim=True)
            return (flat / torch.where(norm > 0, norm, 1)).view_as(gradient)
        if self.norm == "l1":
            low, high = self._limits(x)
            at = x.to(flat.dtype).flatten(1)
            room = torch.where(flat > 0, high - at, at - low)
            served = max(1, round((1 - sparsity) * flat.shape[1]))
            return (sparse_step(flat.abs(), room, length, served) * flat.sign()).view_as(gradient)
        raise ValueError("l0 has no steepest step: use an attack made for l0")

    def crossing(self, x: Tensor, gradient: Tensor, gain: Tensor) -> Tensor:
        """The smallest change of x inside the box by which a linear function with this gradient grows by `gain`. (B, *S)

        x, gradient: (B, *S) in float32 or better; gain: (B,), negative to let it fall. Linf, l2 and l1; eps plays no part.
        Where the box lets it grow less than that, as much as it lets it. Zero where the gradient is. The projection onto
        a hyperplane and the box of Croce and Hein (2020, FAB).
        """
        if self.mask is not None:
            gradient = gradient * self.mask
        flat = gradient.flatten(1) * gain.sign()[:, None]
        largest = flat.abs().amax(1)  # divided by it, so that tiny gradients do not vanish in the sums
        scale = torch.where(largest > 0, largest, 1)
        (low, high), at = self._limits(x), x.flatten(1)
        room = torch.where(flat > 0, high - at, at - low).clamp_min(0)
        size = cross(self.norm, (flat / scale[:, None]).abs(), room, gain.abs() / scale)
        return (size * flat.sign()).view_as(x)

    def size(self, x: Tensor, moved: Tensor) -> Tensor:
        """The norm of the change from `x` to `moved`, (B,), in float32 or better (l0: the number of entries)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        change = (moved.to(dtype) - x.to(dtype)).flatten(1)
        if self.norm == "l0":
            return (change != 0).sum(1).to(dtype)
        if change.shape[1] == 0:
            return change.new_zeros(len(change))
        return change.abs().amax(1) if self.norm == "linf" else change.norm(1 if self.norm == "l1" else 2, dim=1)


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target)))


def _towards(x: Tensor, moved: Tensor) -> Tensor:
    """`moved` (wider dtype) in x's dtype, each entry rounded towards x, so that no rounding leaves the ball."""
    narrow = moved.to(x.dtype)
    beyond = (narrow.to(moved.dtype) - x.to(moved.dtype)).abs() > (moved - x.to(moved.dtype)).abs()
    # one step towards zero or away from it is one integer step of the bit pattern, sign apart
    bits = narrow.view(torch.int16)
    outward = (narrow.to(moved.dtype).abs() > x.to(moved.dtype).abs()) | (narrow.sign() != x.sign())
    stepped = torch.where(outward, bits - 1, bits + 1).view(x.dtype)
    tiniest = torch.where(x > 0, 1, -32767).to(torch.int16).view(x.dtype)  # the neighbours of zero
    return torch.where(beyond, torch.where(narrow != 0, stepped, tiniest), narrow)


def Linf(
    eps: float | str | Tensor, bounds: tuple[float, float] | None = (0.0, 1.0), mask: Tensor | None = None
) -> Threat:
    """Every entry moves by at most eps (input units: 8/255, not 8, for images in [0, 1]). See `Threat`."""
    return Threat("linf", eps, bounds, mask)  # type: ignore[arg-type]  # text is parsed there


def L2(
    eps: float | str | Tensor, bounds: tuple[float, float] | None = (0.0, 1.0), mask: Tensor | None = None
) -> Threat:
    """The Euclidean length of the change is at most eps. See `Threat`."""
    return Threat("l2", eps, bounds, mask)  # type: ignore[arg-type]


def L1(
    eps: float | str | Tensor, bounds: tuple[float, float] | None = (0.0, 1.0), mask: Tensor | None = None
) -> Threat:
    """The absolute changes add up to at most eps. See `Threat`."""
    return Threat("l1", eps, bounds, mask)  # type: ignore[arg-type]


def L0(
    eps: float | str | Tensor, bounds: tuple[float, float] | None = (0.0, 1.0), mask: Tensor | None = None
) -> Threat:
    """At most eps entries change (each channel of a pixel counts). See `Threat`."""
    return Threat("l0", eps, bounds, mask)  # type: ignore[arg-type]
