"""`AdversarialGallery`: what fools the network now, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparring.attacks.base import Attack
from sparring.borrow import borrow
from sparring.inspection import gallery
from sparring.inspection.pictures import need_images
from sparring.lightning.callbacks.boards import show
from sparring.lightning.callbacks.confused import box
from sparring.lightning.callbacks.watching import EpochWatcher, Get
from sparring.lightning.measuring import in_precision, precision, short_attack, undisturbed
from sparring.threat import Threat


class AdversarialGallery(EpochWatcher):
    """Every so many epochs the same few samples, the perturbations that an attack finds, and what the network then sees.

    against: a threat (PGD of 10 steps), or an attack such as sp.PGD(sp.L2(0.5), steps=40). samples: the first so many of each
    epoch, of the first process. every: epochs between two looks. names: of the classes. network, get: as for every
    callback here. Shown as adversarial_gallery/val (train, where nothing is validated; test).

    Raises TypeError for what is no attack, ValueError for samples that are no pictures.
    """

    def __init__(
        self,
        against: Threat | Attack,
        *,
        samples: int = 6,
        every: int = 1,
        names: Sequence[str] | None = None,
        network: str | None = None,
        get: Get | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(samples, every, network, get)
        threat, attack = (against, None) if isinstance(against, Threat) else (None, against)
        self.attack = short_attack(attack, threat)
        self.names, self.seed = names, seed

    def look(self, stage: str, trainer: Any, pl_module: Any, x: Tensor, y: Tensor) -> Mapping[str, float]:
        need_images(x, "a gallery")
        model, cast = self.logits(pl_module), precision(trainer)
        assert self.attack is not None
        with undisturbed(x):
            made = in_precision(self.attack, cast)(model, x, y, seed=self.seed).x
            with borrow(model, cast) as borrowed:
                before, after = (self._seen(borrowed.look(part)) for part in (x, made))
        threat = getattr(self.attack, "threat", None)
        bounds = getattr(threat, "bounds", None) or box(x)
        figure = gallery(x, made, before=before, after=after, bounds=bounds)
        show(trainer, f"adversarial_gallery/{stage}", figure, int(trainer.global_step))
        return {}

    def _seen(self, logits: Tensor) -> list[tuple[str, float]]:
        chance, predicted = logits.double().softmax(1).max(1)
        names = [f"class {i}" if self.names is None else str(self.names[i]) for i in predicted.tolist()]
        return list(zip(names, chance.tolist()))
