"""Callbacks that look at a training, a validation or a test, and change nothing: the user's own module stays as it is."""

from sparring.lightning.callbacks.confused import ConfusedLogits
from sparring.lightning.callbacks.drift import BatchNormDrift
from sparring.lightning.callbacks.examples import AdversarialGallery
from sparring.lightning.callbacks.monitor import RobustnessMonitor
from sparring.lightning.callbacks.norms import GradientNorms

__all__ = ["AdversarialGallery", "BatchNormDrift", "ConfusedLogits", "GradientNorms", "RobustnessMonitor"]
