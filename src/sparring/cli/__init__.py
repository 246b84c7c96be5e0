"""The command line. ``main`` is the console script ``sparring``; nothing imports torch before it must."""

from sparring.cli.app import main

__all__ = ["main"]
