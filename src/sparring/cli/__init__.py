"""The command line. ``main`` is the console script ``sparring``; nothing imports torch before it must."""

import gc

gc.disable()  # imports make no garbage, and looking for it while they run costs a tenth of the time to the first line
from sparring.cli.app import main  # noqa: E402

gc.enable()

__all__ = ["main"]
