"""How the demo's and the experiments' small networks are trained."""

from sparring.training.loop import Epoch, History, train

__all__ = ["Epoch", "History", "train"]
