"""For a Trainer of `pytorch_lightning`: `import pytorch_lightning as pl`."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule

from sparring.lightning import callbacks
from sparring.lightning.callback import Sparring
from sparring.lightning.module import Adversarial


class AdversarialModule(Adversarial, LightningModule):  # type: ignore[misc]  # the other LightningModule, to a type checker
    __doc__ = Adversarial.__doc__


class AdversarialCallback(Sparring, Callback):  # type: ignore[misc]
    __doc__ = Sparring.__doc__


class AdversarialGallery(callbacks.AdversarialGallery, Callback):  # type: ignore[misc]
    __doc__ = callbacks.AdversarialGallery.__doc__


class BatchNormDrift(callbacks.BatchNormDrift, Callback):  # type: ignore[misc]
    __doc__ = callbacks.BatchNormDrift.__doc__


class ConfusedLogits(callbacks.ConfusedLogits, Callback):  # type: ignore[misc]
    __doc__ = callbacks.ConfusedLogits.__doc__


class GradientNorms(callbacks.GradientNorms, Callback):  # type: ignore[misc]
    __doc__ = callbacks.GradientNorms.__doc__


class RobustnessMonitor(callbacks.RobustnessMonitor, Callback):  # type: ignore[misc]
    __doc__ = callbacks.RobustnessMonitor.__doc__
