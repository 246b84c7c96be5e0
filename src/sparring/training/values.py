"""Settings as JSON can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparring.attacks.base import Attack


def plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if isinstance(value, Attack):
        return {"name": value.name, "threat": str(value.threat), **value.settings()}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, nn.Module):
        return type(value).__name__
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
