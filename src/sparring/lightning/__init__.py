"""Adversarial training, measuring and looking in a Lightning `Trainer`.

`AdversarialModule` and `AdversarialCallback` train; `ConfusedLogits`, `RobustnessMonitor`, `AdversarialGallery`, `GradientNorms`
and `BatchNormDrift` look at a module of one's own and change nothing.

Lightning exists twice, and a Trainer of `lightning` refuses a module of `pytorch_lightning`: the names here are for the one
that the program has imported (else the one that is installed); `sparring.lightning.pytorch` and
`sparring.lightning.pytorch_lightning` say which.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparring.lightning.batches import Indexed as Indexed
    from sparring.lightning.pytorch import AdversarialCallback as AdversarialCallback
    from sparring.lightning.pytorch import AdversarialGallery as AdversarialGallery
    from sparring.lightning.pytorch import AdversarialModule as AdversarialModule
    from sparring.lightning.pytorch import BatchNormDrift as BatchNormDrift
    from sparring.lightning.pytorch import ConfusedLogits as ConfusedLogits
    from sparring.lightning.pytorch import GradientNorms as GradientNorms
    from sparring.lightning.pytorch import RobustnessMonitor as RobustnessMonitor

HOMES = {"lightning.pytorch": "sparring.lightning.pytorch", "pytorch_lightning": "sparring.lightning.pytorch_lightning"}

__all__ = [
    "AdversarialCallback",
    "AdversarialGallery",
    "AdversarialModule",
    "BatchNormDrift",
    "ConfusedLogits",
    "GradientNorms",
    "Indexed",
    "RobustnessMonitor",
]


def home() -> str:
    """The module whose classes fit this program's Trainer. ImportError where no Lightning is installed."""
    imported = [name for name in HOMES if name in sys.modules]
    installed = [name for name in HOMES if find_spec(name.split(".")[0]) is not None]
    for name in imported + installed:
        return HOMES[name]
    raise ImportError("sparring.lightning needs Lightning, which is not installed: pip install 'sparring[lightning]'")


def __getattr__(name: str) -> Any:
    if name == "Indexed":
        return import_module("sparring.lightning.batches").Indexed
    if name not in __all__:
        raise AttributeError(f"module 'sparring.lightning' has no attribute {name!r}")
    return getattr(import_module(home()), name)


def __dir__() -> list[str]:
    return sorted(__all__)
