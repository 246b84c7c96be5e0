"""Which part of a LightningModule maps x to logits."""

from __future__ import annotations

from typing import Any

from torch import nn


def network_in(pl_module: Any, name: str | None) -> nn.Module:
    """The module itself, or its submodule of that name. ValueError where there is none."""
    if name is None:
        return pl_module  # type: ignore[no-any-return]
    try:
        return pl_module.get_submodule(name)  # type: ignore[no-any-return]
    except AttributeError:
        names = ", ".join(name for name, _ in pl_module.named_children())
        raise ValueError(f"network={name!r}: the module has no such part; it has {names}") from None


def check_forward(pl_module: Any, name: str | None) -> None:
    """ValueError for a module that maps nothing to anything."""
    if network_in(pl_module, name).forward.__qualname__ == "LightningModule.forward":
        raise ValueError(f"{type(pl_module).__name__} has no forward: name the part that maps x to logits, network='…'")
