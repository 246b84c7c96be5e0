"""Keras 3 models on the torch backend: attacked, evaluated and trained like any other torch module."""

from sparring.keras.network import KerasModel

__all__ = ["KerasModel"]
