"""How far BatchNorm's running statistics lie from those of the batches that come: read off the running ones' own movement.

In a training forward a running mean moves by momentum · (batch mean − running mean). So the batch's statistics are known
from the buffers before and after, and cost no pass. Batch noise averages out because the differences keep their sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.training.own_norms import Norm

MEMORY = (
    0.9  # of the moving average over forwards: what a batch of 32 adds as noise shrinks to 4% of a standard deviation
)


@dataclass(frozen=True)
class Buffers:
    """The running statistics of some layers, one after the other: mean and var (channels,), updates (layers,)."""

    mean: Tensor
    var: Tensor
    updates: Tensor

    @classmethod
    def of(cls, layers: Sequence[Norm]) -> Buffers:
        return cls(
            _joined([layer.running_mean for layer in layers]),
            _joined([layer.running_var for layer in layers]),
            torch.stack([_count(layer).to(_device(layers)) for layer in layers]),
        )


def _device(layers: Sequence[Norm]) -> torch.device:
    mean = layers[0].running_mean
    assert mean is not None
    return mean.device


def _joined(buffers: Sequence[Tensor | None]) -> Tensor:
    found = [buffer for buffer in buffers if buffer is not None]
    joined = torch.cat([buffer.detach().to(found[0].device) for buffer in found])
    return joined if joined.dtype == torch.float64 else joined.float()


def _count(layer: Norm) -> Tensor:
    known = layer.num_batches_tracked
    return torch.zeros((), dtype=torch.long) if known is None else known.detach()


class Drift:
    """Running against batch statistics of some layers, as moving averages over training forwards.

    shift (channels,): (running mean − batch mean)/σ, σ² = batch variance + eps, with its sign.
    stretch (channels,): log of (running variance + eps)/σ².
    """

    def __init__(self, layers: Sequence[Norm]) -> None:
        self.layers = list(layers)
        self.sizes = [layer.num_features for layer in layers]
        self.forwards = 0
        first = Buffers.of(layers).mean
        self.shift, self.stretch = torch.zeros_like(first), torch.zeros_like(first)
        self.weight = torch.zeros_like(first)  # how much of the moving average is filled: a layer need not always run

        def each(values: Sequence[float | None]) -> Tensor:
            return torch.tensor([value or 0.0 for value in values], dtype=first.dtype, device=first.device)

        self._each = torch.tensor(self.sizes, device=first.device)
        self._eps = each([layer.eps for layer in layers]).repeat_interleave(self._each)
        self._momentum = each([layer.momentum for layer in layers])
        self._cumulative = each([layer.momentum is None for layer in layers]).bool()
        self._uncounted = each([layer.num_batches_tracked is None for layer in layers])

    def fits(self, layers: Sequence[Norm]) -> bool:
        """Whether these are the layers it was made for, where and as precise as they were then."""
        if list(layers) != self.layers:
            return False
        mean = Buffers.of(layers).mean
        return mean.device == self.shift.device and mean.dtype == self.shift.dtype

    @torch.no_grad()
    def add(self, before: Buffers) -> None:
        """One training forward has been: `before` is how the layers were."""
        after = Buffers.of(self.layers)
        runs = self._uncounted + (after.updates - before.updates)
        # several runs of a layer in one forward: what is left of the old value is the product of what each run leaves
        kept = torch.where(self._cumulative, before.updates / after.updates.clamp(min=1), (1 - self._momentum) ** runs)
        moved = (1 - kept).repeat_interleave(self._each)
        seen = moved > 0
        moved = torch.where(seen, moved, 1)
        mean = before.mean + (after.mean - before.mean) / moved
        var = (before.var + (after.var - before.var) / moved).clamp(min=0) + self._eps
        rate = seen.to(var.dtype) * (1 - MEMORY)
        self.shift = torch.lerp(self.shift, (before.mean - mean) / var.sqrt(), rate)
        self.stretch = torch.lerp(self.stretch, ((before.var + self._eps) / var).log(), rate)
        self.weight = torch.lerp(self.weight, torch.ones_like(rate), rate)
        self.forwards += 1

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """(layers,) the root mean square over a layer's channels of the shift, and of the stretch; 0 for one that never ran,
        inf for one that did and whose running statistics stand still (momentum 0)."""
        still = (self._momentum == 0) & ~self._cumulative
        found = []
        for values in (self.shift, self.stretch):
            parts = torch.split(values / self.weight, self.sizes)
            means = torch.stack([part.square().mean().sqrt() for part in parts])
            means = torch.where(self.weight[self._each.cumsum(0) - 1] > 0, means, 0)
            found.append(means.masked_fill(still, torch.inf).nan_to_num(torch.inf, torch.inf))
        return found[0], found[1]

    def state_dict(self) -> dict[str, Any]:
        return {"forwards": self.forwards, "shift": self.shift, "stretch": self.stretch, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.forwards = state["forwards"]
        for name in ("shift", "stretch", "weight"):
            setattr(self, name, state[name].to(getattr(self, name)))
