"""Which statistics BatchNorm layers use while a strategy crafts, and who may move the running ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

POLICIES = ("auto", "train", "eval", "batch", "split")


def layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers (1d, 2d, 3d, SyncBatchNorm) that are not frozen: in train mode, with running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


@contextmanager
def batch_statistics(chosen: list[_BatchNorm]) -> Iterator[None]:
    """These layers normalise with the batch's own statistics and leave the running ones alone."""
    before = [(layer, layer.training) for layer in chosen]
    try:
        for layer in chosen:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, mode in before:
            layer.training, layer.track_running_stats = mode, True


class Statistics:
    """The BatchNorm policy of a strategy. (First form; "auto" is "batch" until the drift is measured.)"""

    def __init__(self, policy: str = "auto") -> None:
        if policy not in POLICIES:
            raise ValueError(f"bn={policy!r}: expected one of {', '.join(POLICIES)}")
        self.policy = policy
        self._layers: list[_BatchNorm] = []

    def check(self, model: nn.Module, x: Tensor) -> None:
        """ValueError for a batch that has no statistics. Looks at the layers' modes, before they are borrowed."""
        self._layers = layers(model)
        if self._layers and len(x) == 1:
            raise ValueError(
                "a batch of one sample has no batch statistics: drop it (drop_last=True), or freeze BatchNorm with .eval()"
            )

    @contextmanager
    def crafting(self, model: nn.Module) -> Iterator[None]:
        with batch_statistics([] if self.policy == "eval" else self._layers):
            yield

    @contextmanager
    def learning(self, model: nn.Module, branch: str) -> Iterator[None]:
        yield

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None
