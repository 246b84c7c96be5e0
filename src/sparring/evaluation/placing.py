"""Where the model and its inputs are while they are worked with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sparring.wrappers import Model


def to_device(x: Any, device: torch.device | None) -> Any:
    """A tensor, or a dict or tuple of them, on the device (None: where it is)."""
    if isinstance(x, dict):
        return {name: to_device(part, device) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(to_device(part, device) for part in x)
    return x if device is None or not isinstance(x, torch.Tensor) else x.to(device, non_blocking=True)


def own_device(device: torch.device) -> torch.device:
    """Of "cuda" the one that torchrun's processes on this machine share out, where it has started this one."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))


@contextmanager
def placed(model: Model, device: torch.device | str | None) -> Iterator[torch.device | None]:
    """The model on the device, and back afterwards; the device to send data to."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    home = None if first is None else first.device
    where = home if device is None else torch.device(device)
    if not isinstance(model, nn.Module) or home is None or home == where:
        yield where
        return
    try:
        try:
            model.to(where)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's ways to say that it is not there
            raise ValueError(
                f"device={str(device)!r} can't be used here: {str(error).strip().splitlines()[0]}"
            ) from error
        yield where
    finally:
        model.to(home)
