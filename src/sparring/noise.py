"""Randomness keyed by (seed, sample index, draw): the same sample gets the same noise in any batch, order or world size.

A counter-based generator: every number is a hash of its key and its position, so nothing is consumed and no global
state is touched. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    return _mix_(z.clone())


def _mix_(z: Tensor) -> Tensor:
    """In place: on millions of numbers a new tensor for every operation costs several times the operation."""
    scratch = torch.empty_like(z)
    for bits, factor in ((30, _MIX1), (27, _MIX2), (31, 1)):
        torch.bitwise_right_shift(z, bits, out=scratch)
        z.bitwise_xor_(scratch.bitwise_and_((1 << (64 - bits)) - 1))
        if factor != 1:
            z.mul_(factor)
    return z


def _settled(values: Tensor, like: Tensor | None) -> Tensor:
    """Float64 rounded to float32, then to `like`: a kernel's vector part and its tail differ in the last bit of a
    logarithm, and so a sample's noise would depend on its place in the batch."""
    return values.float() if like is None else values.float().to(like.device, like.dtype)


class Noise:
    """Random draws for the samples `indices` (N,) under `seed`; `draw` names each draw, as in ``("start", restart)``.

    A draw's parts are strings, whole numbers, or (N,) whole-number tensors where it differs by sample.

    >>> a = Noise(0, torch.tensor([7, 3])).uniform((2,), "start")
    >>> b = Noise(0, torch.tensor([3])).uniform((2,), "start")
    >>> bool((a[1] == b[0]).all())
    True
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        self.seed, self.indices = seed, indices.to("cpu", torch.int64)

    @cached_property
    def _key(self) -> Tensor:
        """(N,) int64, what all draws of a sample are hashed from; not before the first draw: many attacks make none."""
        return _mix(self.indices * _GAMMA + _mix(torch.tensor(self.seed, dtype=torch.int64)))

    def __getitem__(self, rows: Tensor) -> Noise:
        """The noise of these samples: rows, (M,) int64 on the CPU, may name a sample more than once."""
        return Noise(self.seed, self.indices[rows])

    def bits(self, shape: Sequence[int], *draw: str | int | Tensor) -> Tensor:
        """(N, *shape) int64, all 64 bits random, on the CPU."""
        key = self._key
        for part in draw:
            if isinstance(part, str):
                part = zlib.crc32(part.encode())
            key = _mix(key + _GAMMA + (part.cpu().long() if isinstance(part, Tensor) else part))
        counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64) * _GAMMA
        return _mix_(key[:, None] + counter).view(len(key), *shape)

    def uniform(
        self,
        shape: Sequence[int],
        *draw: str | int | Tensor,
        like: Tensor | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> Tensor:
        """(N, *shape) uniform on (low, high); dtype and device of `like` (default float32 on the CPU)."""
        # 24 bits, half a step away from both ends: exact in float32, and never 0 or 1 for the logarithms below
        bits = self.bits(shape, *draw).bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)
        unit = bits.to(torch.float32).add_(0.5).mul_(2.0**-24)
        dtype = torch.float32 if like is None else like.dtype
        unit = unit.to(torch.promote_types(dtype, torch.float32)).mul_(high - low).add_(low).to(dtype)
        return unit if like is None else unit.to(like.device)

    def sign(self, shape: Sequence[int], *draw: str | int | Tensor, like: Tensor | None = None) -> Tensor:
        """(N, *shape) of -1 and +1 with equal probability."""
        sign = (_shift_right(self.bits(shape, *draw), 63) * 2 - 1).to(torch.float32)
        return sign if like is None else sign.to(like.device, like.dtype)

    def normal(self, shape: Sequence[int], *draw: str | int | Tensor, like: Tensor | None = None) -> Tensor:
        """(N, *shape) standard normal (Box-Muller, from 24-bit uniforms)."""
        radius = self.uniform(shape, *draw, "radius").double().log_().mul_(-2).sqrt_()
        angle = self.uniform(shape, *draw, "angle").double().mul_(2 * math.pi).cos_()
        return _settled(radius.mul_(angle), like)

    def exponential(self, shape: Sequence[int], *draw: str | int | Tensor, like: Tensor | None = None) -> Tensor:
        """(N, *shape) exponential with mean 1."""
        return _settled(self.uniform(shape, *draw).double().log_().neg_(), like)

    def root(self, power: int | Tensor, *draw: str | int | Tensor, like: Tensor | None = None) -> Tensor:
        """(N, 1) u^(1/power), u uniform: how far out a random point of a ball lies. power: a number or (N, 1)."""
        power = power.cpu().double() if isinstance(power, Tensor) else power
        return _settled(self.uniform((1,), *draw).double() ** (1 / power), like)

    def below(self, high: int | Tensor, shape: Sequence[int], *draw: str | int | Tensor) -> Tensor:
        """(N, *shape) int64, uniform on 0 … high − 1, on the CPU (`high` may be a tensor that broadcasts)."""
        return _shift_right(self.bits(shape, *draw), 1) % high
