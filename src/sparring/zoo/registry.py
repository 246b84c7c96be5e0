"""Networks by name, constructed the same way every time."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparring.zoo import efficientnet, maxout, plain, resnet, text

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "softmax": plain.softmax,
    "mlp": plain.mlp,
    "small-cnn": plain.small_cnn,
    "lenet5": plain.lenet5,
    "maxout": maxout.maxout,
    "conv-maxout": maxout.conv_maxout,
    "small-resnet": resnet.small_resnet,
    "preact-resnet18": resnet.preact_resnet18,
    "efficientnet-lite0": efficientnet.efficientnet_lite0,
    "lstm": text.lstm,
}


def names() -> list[str]:
    """The names that `build` knows."""
    return list(NETWORKS)


def build(name: str, seed: int = 0, **args: Any) -> nn.Module:
    """A network on the CPU that takes x float (B, C, H, W) in [0, 1] ("lstm": token numbers) and returns logits (B, classes).

    Its random weights depend on `seed` alone; the global generators are left as they were.

    Args:
        name: one of `names()`.
        seed: of the initial weights.
        args: the network's own, such as in_channels, size, classes; the network's docstring says which.

    Raises:
        ValueError: an unknown name, or an argument's value that the network can't have.
        TypeError: an argument that the network doesn't take.

    >>> build("small-cnn", in_channels=3, size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if name not in NETWORKS:
        close = difflib.get_close_matches(name, NETWORKS, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no network is called {name!r}: expected one of {', '.join(NETWORKS)}{meant}")
    network = NETWORKS[name]
    known = inspect.signature(network).parameters
    unknown = [key for key in args if key not in known]
    if unknown:
        raise TypeError(f"{name} takes no {unknown[0]}: it takes seed, {', '.join(known)}")
    generator = torch.default_generator  # of the CPU; torch.manual_seed would reset the accelerators' as well
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        with torch.device("cpu"):
            return network(**args)
    finally:
        generator.set_state(state)
