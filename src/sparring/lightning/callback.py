"""`AdversarialCallback`: a user's own LightningModule, unchanged, trained and measured against an attacker."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparring.attacks.base import Attack
from sparring.attacks.inputs import check_labels
from sparring.checks import check_whole
from sparring.lightning import states
from sparring.lightning.batches import Fields, Names, learned, places
from sparring.lightning.limits import refuse
from sparring.lightning.measuring import joined, measured, precision, short_attack
from sparring.lightning.reading import check_forward, network_in
from sparring.threat import Threat
from sparring.training.losses import Batch
from sparring.training.strategy import Strategy
from sparring.training.supervised import AdversarialTraining, Mixed, PGDTraining
from sparring.training.validation import threat_of

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Host
else:
    Host = object  # the namespace's own Callback comes in with the class that a user sees


class Sparring(Host):
    """Shows a LightningModule adversarial examples in place of its training batches, and measures it on a few samples.

    The module stays as it is: its `training_step` gets the same batch with another x, and its loss, optimisers, precision and
    logging are its own. Its forward, or the submodule called `network`, must map x (B, *S) to logits (B, C).

    against: a threat (examples by PGD, as in `sp.PGDTraining(threat)`), an attack, or a strategy that only makes examples:
    PGDTraining, FastFGSM, NFGSM, FGSMTraining, Mixed or EnsembleTraining with alpha=0 (or fraction below 1 and alpha=0.5).
    All others have losses of their own, or several updates a batch: they need `AdversarialModule`.
    train: False measures only. validation_attack: default PGD of 10 steps under the same threat. samples: how many of each
    validation or test are measured, over all processes. fields: where a batch has x and y, as in ("image", "label"), where
    a dict or tuple leaves a doubt.

    Logged: val_clean_accuracy and val_robust_accuracy (test_… in tests) of these samples.
    """

    def __init__(
        self,
        against: Threat | Attack | Strategy,
        *,
        train: bool = True,
        network: str | None = None,
        validation_attack: Attack | None = None,
        samples: int = 64,
        fields: Names | None = None,
    ) -> None:
        super().__init__()
        check_whole("", samples=samples)
        self.strategy = _strategy(against, train)
        self.train, self.network, self.samples = train, network, samples
        own = against if isinstance(against, Attack) else None
        self.validation_attack = short_attack(validation_attack or own, threat_of(self.strategy))
        self._fields = Fields.named(fields)
        self._left = self._seen = 0
        self._training = False
        self._restore: tuple[nn.Module, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        refuse(trainer)
        self._training = stage == "fit"
        if self._training:
            states.begin(self.strategy, trainer)
        check_forward(pl_module, self.network)
        if stage == "fit" and self.train and not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimises by hand, so its batches are its own affair: use AdversarialModule, or "
                "AdversarialCallback(train=False) to measure only"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not self.train:
            return
        step = pl_module.training_step

        @functools.wraps(step)
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            batch = self._attacked(trainer, pl_module, batch)
            with self.strategy.statistics.learning(self._logits(pl_module), "adversarial"):
                return step(batch, *args, **kwargs)

        self._restore = (pl_module, pl_module.__dict__.get("training_step"))
        pl_module.training_step = training_step

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._give_back()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._restore is not None:
            module, before = self._restore
            if before is None:
                del module.training_step
            else:
                module.training_step = before
            self._restore = None

    def _attacked(self, trainer: Any, pl_module: Any, batch: Any) -> Any:
        """The batch with adversarial examples in place of its x."""
        fields = self._fields or Fields.of(batch)
        x, y, numbers = fields.read(batch)
        y = check_labels(y, x)
        strategy, model = self.strategy, self._logits(pl_module)
        indices = learned(strategy, numbers, len(y), trainer)
        assert isinstance(strategy, AdversarialTraining)
        asked = Batch(x.detach(), y, indices, strategy.batches)
        strategy.statistics.check(model, x)
        strategy.batches += 1
        with joined(strategy, trainer, x):
            made = strategy.adversarial_part(model, asked)
        return batch if made is None else fields.put(batch, torch.cat([made, asked.x[len(made) :]]))

    def _logits(self, pl_module: Any) -> nn.Module:
        """What maps x to logits."""
        return network_in(pl_module, self.network)

    def state_dict(self) -> dict[str, Any]:
        return states.everybodys(self.strategy)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states.restore(self.strategy, state_dict, training=self._training)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._left, self._seen = math.ceil(self.samples / trainer.world_size), 0

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._measure("val", trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._measure("test", trainer, pl_module, batch)

    def _measure(self, stage: str, trainer: Any, pl_module: Any, batch: Any) -> None:
        if not self._left:
            return
        x, y, numbers = (self._fields or Fields.of(batch)).read(batch)
        indices = places(numbers, len(y), trainer, self._seen)
        x, y, indices = x[: self._left], y[: self._left], indices[: self._left]
        self._left, self._seen = self._left - len(y), self._seen + len(y)
        found = measured(self._logits(pl_module), self.validation_attack, x, y, indices, precision(trainer))
        for name, right in zip(("clean", "robust"), found):
            if right is not None:
                pl_module.log(
                    f"{stage}_{name}_accuracy", right.float().mean(), on_step=False, on_epoch=True, prog_bar=True,
                    batch_size=len(y), sync_dist=True, add_dataloader_idx=False,
                )  # fmt: skip


def _strategy(against: Threat | Attack | Strategy, train: bool) -> Strategy:
    """What makes the examples. ValueError for what does more than that."""
    if isinstance(against, Threat):
        return PGDTraining(against)
    if isinstance(against, Attack):
        return Mixed(against, alpha=0.0)
    if not isinstance(against, Strategy):
        raise TypeError(f"AdversarialCallback({against!r}): expected a threat, an attack or a strategy")
    even = isinstance(against, AdversarialTraining) and (
        against.alpha == 0 if against.fraction == 1 else against.alpha == 0.5
    )
    only = even and not (against.parts or against.modules() or against.label_smoothing or against.bn == "split")
    if train and not only:
        raise ValueError(
            f"AdversarialCallback leaves loss and optimiser to your module, so it takes strategies that only make examples, "
            f"such as PGDTraining or FastFGSM with alpha=0 and no parts; {against.name} as given needs AdversarialModule"
        )
    return against
