"""How a model runs, for as long as a block; afterwards it runs as before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def in_modes(wanted: Iterable[tuple[nn.Module, bool]]) -> Iterator[None]:
    """These modules in these modes: True for training."""
    chosen = list(wanted)
    before = [(module, module.training) for module, _ in chosen]
    try:
        for module, mode in chosen:
            module.training = mode
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """A model whose root is in eval mode in train mode; one in train mode as it stands, so that what is frozen stays frozen."""
    with in_modes((module, module.training) for module in model.modules()):
        if not model.training:
            model.train()
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by the kernel whose gradient has a gradient; the fast kernels' has none."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
