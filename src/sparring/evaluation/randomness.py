"""Other people's code draws from the global random states; this keeps it from moving them."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch


class OwnRandomness:
    """A context in which the global random states of torch, numpy and Python are its own, begun from `seed`.

    On the way out they are as they were before; on the way in again they go on where they stopped inside.

    >>> own, before = OwnRandomness(0), torch.get_rng_state()
    >>> with own:
    ...     drawn = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inside: Any = None
        self._outside: Any = None

    def __enter__(self) -> None:
        self._outside = _states()
        if self._inside is not None:
            _restore(self._inside)
            return
        random.seed(self._seed)
        np.random.seed(self._seed % 2**32)  # noqa: NPY002  # the global state is the point
        torch.default_generator.manual_seed(self._seed)
        if _cuda():
            torch.cuda.manual_seed_all(self._seed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = _states()
        _restore(self._outside)


def _cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if _cuda() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
