"""The lab: a page on this machine where a person watches a network being fooled. Needs the extra `sparring[lab]`.

`create_app(Lab(networks))` is the server as an ASGI app; ``sparring lab`` runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparring.lab.bench import Lab as Lab
    from sparring.lab.networks import Network as Network
    from sparring.lab.server import create_app as create_app

_HOMES = {"Lab": "bench", "Network": "networks", "create_app": "server"}
__all__ = ["Lab", "Network", "create_app"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'sparring.lab' has no attribute {name!r}")
    return getattr(import_module(f"sparring.lab.{_HOMES[name]}"), name)
