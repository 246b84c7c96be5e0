"""For a Trainer of `pytorch_lightning`: `import pytorch_lightning as pl`."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule

from sparring.lightning.callback import Sparring
from sparring.lightning.module import Adversarial


class AdversarialModule(Adversarial, LightningModule):  # type: ignore[misc]  # the other LightningModule, to a type checker
    __doc__ = Adversarial.__doc__


class AdversarialCallback(Sparring, Callback):  # type: ignore[misc]
    __doc__ = Sparring.__doc__
