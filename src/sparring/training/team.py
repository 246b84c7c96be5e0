"""Training in many processes: the bare module in each, gradients averaged once before each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sparring.evaluation.together import Team, joined, processes


@dataclass(frozen=True)
class Crew:
    """The processes that train together; of one, everything here is a way of doing nothing."""

    team: Team | None = None
    group: Any = None

    @property
    def rank(self) -> int:
        return 0 if self.team is None else self.team.rank

    @property
    def size(self) -> int:
        return 1 if self.team is None else self.team.size

    def gather(self, value: Any) -> list[Any]:
        return [value] if self.team is None else self.team.gather(value)

    def tell(self, value: Any) -> Any:
        """The first process's value."""
        return value if self.team is None else self.team.tell(value)

    def begin(self, modules: Sequence[nn.Module]) -> None:
        """Everybody starts with the first process's weights and buffers."""
        for module in modules if self.team is not None else ():
            for tensor in [*module.parameters(), *module.buffers()]:
                distributed.broadcast(tensor.detach(), 0, group=self.group)

    def average(self, running: Sequence[Tensor], parameters: Sequence[Tensor], samples: int, flags: Tensor) -> Tensor:
        """Gradients, and BatchNorm's running statistics, become the means over all samples; the flags are summed.

        samples: that this process's gradients are the mean of.
        """
        tensors = [p.grad for p in parameters if p.grad is not None] + list(running)
        tail = torch.cat([flags.new_tensor([samples]), flags])
        distributed.all_reduce(tail, group=self.group)
        self._reduce(tensors, samples / tail[0])
        return tail[1:]

    def mean(self, tensors: Sequence[Tensor], samples: int) -> None:
        """These, each the mean over so many samples here, become the means over the samples of all processes."""
        total = torch.tensor([samples], dtype=torch.float64, device=tensors[0].device)
        distributed.all_reduce(total, group=self.group)
        self._reduce(tensors, samples / total[0])

    def _reduce(self, tensors: Sequence[Tensor], share: Tensor) -> None:
        """The sum over all processes of what each has, times its share: one reduction for each dtype."""
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            those = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in those]).mul_(share)
            distributed.all_reduce(flat, group=self.group)
            for tensor, mean in zip(those, torch.split(flat, [t.numel() for t in those]), strict=True):
                tensor.copy_(mean.view_as(tensor))


@contextmanager
def crew(device: torch.device | None) -> Iterator[Crew]:
    """The processes that torchrun started, or that are in the process group already; Lightning Fabric joins them."""
    if processes() == 1:
        yield Crew()
        return
    with joined() as team:
        group = team.group
        if device is not None and device.type == "cuda":
            torch.cuda.set_device(device)
            group = distributed.new_group(backend="nccl")
        try:
            yield Crew(team, group)
        finally:
            if group is not team.group:
                distributed.destroy_process_group(group)


def bare(model: nn.Module) -> nn.Module:
    """The module inside of what trains it in many processes. ValueError where its parameters are spread over them."""
    wrapped: Any = model
    while isinstance(wrapped, DistributedDataParallel) or type(wrapped).__name__ == "_FabricModule":
        wrapped = wrapped.module
    if not isinstance(wrapped, nn.Module):
        raise TypeError(f"the model is a {type(wrapped).__name__}: expected an nn.Module, fit(model, data, strategy)")
    if type(wrapped).__name__.startswith(("FSDP", "FullyShardedDataParallel")) or any(
        hasattr(p, "placements") for p in wrapped.parameters()
    ):
        raise ValueError("the model's parameters are spread over processes (FSDP): fit needs the whole model in each")
    return wrapped
