"""For a Trainer of `lightning`: `import lightning.pytorch as pl`, or `import lightning as L`."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule

from sparring.lightning import callbacks
from sparring.lightning.callback import Sparring
from sparring.lightning.module import Adversarial


class AdversarialModule(Adversarial, LightningModule):
    __doc__ = Adversarial.__doc__


class AdversarialCallback(Sparring, Callback):
    __doc__ = Sparring.__doc__


class AdversarialGallery(callbacks.AdversarialGallery, Callback):
    __doc__ = callbacks.AdversarialGallery.__doc__


class BatchNormDrift(callbacks.BatchNormDrift, Callback):
    __doc__ = callbacks.BatchNormDrift.__doc__


class ConfusedLogits(callbacks.ConfusedLogits, Callback):
    __doc__ = callbacks.ConfusedLogits.__doc__


class GradientNorms(callbacks.GradientNorms, Callback):
    __doc__ = callbacks.GradientNorms.__doc__


class RobustnessMonitor(callbacks.RobustnessMonitor, Callback):
    __doc__ = callbacks.RobustnessMonitor.__doc__
