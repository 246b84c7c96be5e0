"""For a Trainer of `lightning`: `import lightning.pytorch as pl`, or `import lightning as L`."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule

from sparring.lightning.callback import Sparring
from sparring.lightning.module import Adversarial


class AdversarialModule(Adversarial, LightningModule):
    __doc__ = Adversarial.__doc__


class AdversarialCallback(Sparring, Callback):
    __doc__ = Sparring.__doc__
