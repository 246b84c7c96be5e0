"""Small documented networks: `build(name)`, `names()`, and `load_weights`."""

from sparring.zoo.registry import build, names
from sparring.zoo.weights import load_weights

__all__ = ["build", "load_weights", "names"]
