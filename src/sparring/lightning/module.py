"""`AdversarialModule`: any strategy in a Lightning Trainer, by manual optimisation."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparring.attacks.base import Attack
from sparring.lightning import states
from sparring.lightning.batches import Fields, Names, learned, parted, places
from sparring.lightning.limits import refuse, refuse_by_hand, refuse_settings
from sparring.lightning.measuring import NAMES, joined, measured, precision, short_attack, tally
from sparring.lightning.progress import done
from sparring.lightning.settling import Recent
from sparring.training import fit, optimizing
from sparring.training.averaging import deployed
from sparring.training.batchnorm import BRANCHES
from sparring.training.ledger import NotFinite
from sparring.training.losses import Batch, Loss, set_aside
from sparring.training.optimizing import Optimizer, Rates, Schedule, Tuning
from sparring.training.recalibration import recalibrate
from sparring.training.settings import check, check_warmup
from sparring.training.settling import BATCHES
from sparring.training.snapshot import Soundness
from sparring.training.strategy import Strategy
from sparring.training.team import bare
from sparring.training.validation import threat_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as Host
else:
    Host = object  # the namespace's own LightningModule comes in with the class that a user sees

EVERY = 20  # batches between two looks at what lies on a GPU
STATE = "sparring"  # in a checkpoint


class Adversarial(Host):
    """A LightningModule that trains `model` with `strategy`, whatever the strategy makes of a batch.

    model: maps float inputs (B, *S) to logits (B, C); may be compiled, `torch.compile(net)`. One whose root is in eval mode is
    switched to train mode when training begins. `module.model` has the weights, `module(x)` gives its logits.
    strategy: such as `sp.YOPO(sp.Linf(8/255))`, also with parts round it: weights that `sp.EMA` or `sp.SWA` averages are
    what is validated, tested and predicted with. Its state is in the checkpoint.
    optimizer, lr, momentum, weight_decay, schedule, max_grad_norm, accumulate: as in `sp.fit`. warmup: in epochs. Optimisation
    is manual, so clipping and accumulation are set here, not in the Trainer. The schedule ends where `max_epochs` or
    `max_steps` does, and a strategy of several updates a batch takes as many of Lightning's global steps.
    validation_attack: what validation and test measure with; default PGD of 10 steps under the strategy's threat, clean
    accuracy alone for a strategy without one. `Trainer(limit_val_batches=…)` limits what it costs.
    fields: where a batch has x and y (and, third, the samples' numbers), for dicts and tuples that leave a doubt.

    Batches are (x, y), (x, y, number), or dicts; `Indexed` adds the number for strategies that keep something for every
    sample. Strategies that learn from unlabelled samples, too, get them from `trainer.fit(module, {"labelled": loader,
    "unlabelled": loader})`, or a CombinedLoader of these two. With DDP the examples are those of one process: random draws
    are keyed by the sample's place among all.
    Logged: train_loss, train_clean_accuracy, train_robust_accuracy (those that the strategy sees); val_… and test_…, of both
    branches where BatchNorm is split (val_adversarial_branch_robust_accuracy).

    Raises TypeError or ValueError, in one line, for what can't be trained, FloatingPointError for losses or weights not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: Strategy,
        *,
        optimizer: Optimizer = "sgd",
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: Schedule = "cosine",
        warmup: float = 0.0,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        validation_attack: Attack | None = None,
        fields: Names | None = None,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {
            "optimizer": optimizer, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule,
            "warmup": warmup, "max_grad_norm": max_grad_norm, "accumulate": accumulate,
        }  # fmt: skip
        left_out = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
        check({**left_out, "epochs": 1, "model": model, "strategy": strategy, **settings})
        self.model, self.strategy, self.settings = bare(model), strategy, settings
        self.networks = nn.ModuleDict(strategy.modules())  # so that they move to the device with the model
        self.validation_attack = short_attack(validation_attack, threat_of(strategy))
        self.automatic_optimization = False
        self._fields = Fields.named(fields)
        self._rates = Rates(schedule, [], 0.0)
        self._held = self._samples = 0  # since the last step: batches, samples
        self._unit = 0  # samples that count as one loss
        self._seen = 0  # samples of this validation so far
        self._bad = torch.zeros((), dtype=torch.float64)
        self._recent = Recent()
        self._sound = Soundness([self], states.gathered)
        told = {"strategy_name": strategy.name, "strategy_settings": strategy.settings()}
        plain = {
            name: value for name, value in settings.items() if value is None or isinstance(value, (str, float, int))
        }
        self.save_hyperparameters({**plain, **told})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.model(x)
        return logits

    def deployed(self) -> AbstractContextManager[None]:
        """The model with the weights that it will be used with: averaged ones, where the strategy has a part that averages."""
        return deployed(self.model, self.strategy)

    def recalibrate(self, data: Any, batches: int | None = BATCHES) -> None:
        """Takes the BatchNorm statistics of the `deployed` network anew, from so many batches of the training mixture.

        data: batches as `sp.recalibrate` takes them, best of the training data; for others than the last batches, from which
        it happens before each validation and at the end of each epoch. An average keeps what it was given.
        """
        with self.deployed():
            recalibrate(self.model, data, self.strategy, batches)

    def configure_callbacks(self) -> list[Any]:
        refuse_settings(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        refuse(self.trainer)
        refuse_by_hand(self.trainer, self.strategy)
        if stage == "fit":
            states.begin(self.strategy, self.trainer)
            self.networks = nn.ModuleDict(self.strategy.modules())
        if getattr(self, "_compiler_ctx", None) is not None:
            raise ValueError(
                "torch.compile(AdversarialModule(net)): compile the network, AdversarialModule(torch.compile(net))"
            )

    def configure_optimizers(self) -> Any:
        given, kind = self.settings, self.settings["optimizer"]
        groups = [Tuning(self.model, (), None, 0, None).groups()]
        groups += [[{"params": list(network.parameters())}] for network in self.networks.values()]
        return [
            optimizing.make(kind, each, given["lr"], given["momentum"], given["weight_decay"], self.strategy.summed)
            for each in groups
        ]

    def on_fit_start(self) -> None:
        self._recent = Recent()
        if not self.model.training:
            self.model.train()

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # Lightning leaves it out where it goes on in the middle of an epoch

    def on_train_epoch_start(self) -> None:
        trainer, schedule, warmup = self.trainer, self.settings["schedule"], self.settings["warmup"]
        epochs = max(trainer.max_epochs or -1, -1)
        moves = schedule != "constant" and not isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        if epochs < 0 and (warmup or (moves and trainer.max_steps < 0)):
            raise ValueError(
                f"schedule={schedule!r}, warmup={warmup}: the Trainer has no end to plan for, give it max_epochs"
            )
        if epochs > 0 and not getattr(trainer, "fast_dev_run", False):
            check_warmup(warmup, epochs, "max_epochs")
        # anew: a callback may have added parameters to an optimiser
        self._rates = Rates(schedule, list(self._by_owner().values()), warmup / epochs if warmup else 0.0)
        self._bad = self._bad.to(self.device)
        self._recent.begin(trainer.num_training_batches)
        self._held = self._samples = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        trainer = self.trainer
        batch, extras = parted(batch, self.strategy, trainer)
        x, y, numbers = (self._fields or Fields.of(batch)).read(batch)
        count = len(y)
        indices = learned(self.strategy, numbers, count, trainer)
        self._unit = self._unit if self._held else count * self.settings["accumulate"]
        self._held, self._samples = self._held + 1, self._samples + count
        ends = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        last = ends or self._held == self.settings["accumulate"]
        self._rates.set(done(trainer, batch_idx + 1 - self._held / 2))
        sums: dict[str, tuple[Tensor, int]] = {}
        updates: set[str] = set()
        with joined(self.strategy, trainer, x):
            asked = Batch(x, y, indices, extras=extras)
            for loss in self.strategy(self.model, asked):
                self._backward(loss, count / self._unit)
                tally(sums, loss, count)
                if self.settings["accumulate"] > 1 and loss.update and loss.owner in updates:
                    raise ValueError(
                        f"accumulate={self.settings['accumulate']}: {self.strategy.name} steps more than once a batch; use "
                        "accumulate=1"
                    )
                updates |= {loss.owner} if loss.update else set()
                if loss.update and last:
                    self._update(loss.owner)
                loss.update = loss.update and last
        self._recent.add(self.strategy, asked)
        if last:
            self._rates.stepped()
            self._held = self._samples = 0
        if ends or batch_idx % EVERY == 0:
            self._check_finite(weights=ends)
        for name, (total, number) in sums.items():
            self._log(f"train_{name}", total / number, number)
        return sums["loss"][0] / sums["loss"][1] if "loss" in sums else None

    def _backward(self, loss: Loss, weight: float) -> None:
        value = loss.value
        self._bad += ~torch.isfinite(value.detach())
        if value.device.type == "cpu" and self.trainer.world_size == 1:
            self._check_finite()
        if not value.requires_grad:
            return  # all that it would teach is frozen
        # a reducer waits for every parameter in every backward: here they add up, and are averaged once before the step
        wrapped = self.trainer.strategy.model
        others = [opt for owner, opt in self._by_owner().items() if owner != loss.owner]
        silent = wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()
        with silent, set_aside(p for opt in others for group in opt.param_groups for p in group["params"]):
            self.manual_backward(value if weight == 1 else value * weight)

    def _update(self, owner: str) -> None:
        optimizers = self._by_owner()
        if owner not in optimizers:
            raise ValueError(f"{self.strategy.name} trains {owner!r}, too: configure_optimizers must return one for it")
        optimizer = optimizers[owner]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self._samples != self._unit:  # the epoch ended early, or batches differ
            for p in parameters:
                if p.grad is not None:
                    p.grad.mul_(self._unit / self._samples)
        if self.strategy.crew is not None:
            running = self.strategy.statistics.running()
            self._bad = self.strategy.crew.average(running, parameters, self._samples, self._bad[None])[0]
            if self.device.type == "cpu":
                self._check_finite()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips, behind what a gradient scaler undoes."""
        if (limit := self.settings["max_grad_norm"]) is not None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit)

    def _by_owner(self) -> dict[str, Any]:
        found: Any = self.optimizers()
        return dict(zip(["model", *self.networks], found if isinstance(found, list) else [found]))

    def _check_finite(self, weights: bool = False) -> None:
        epoch, batch = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx
        try:
            if float(self._bad) > 0:
                raise NotFinite("a loss is not finite, at the latest", epoch, batch)
            if weights:
                self._sound.check(epoch, batch)
        except NotFinite as found:
            raise FloatingPointError(f"{found}; checkpoints hold no such weights") from None

    def _log(self, name: str, value: Tensor, count: int) -> None:
        self.log(name, value, on_step=False, on_epoch=True, prog_bar=True, batch_size=count, sync_dist=True)

    def on_validation_model_eval(self) -> None:
        """The last moment at which frozen layers are told from others."""
        if self.trainer.state.fn == "fit":
            self._recent.settle(self.model, self.strategy, self.trainer)
        super().on_validation_model_eval()

    def on_validation_model_zero_grad(self) -> None:
        if not self._held:  # else gradients are waiting for more batches
            super().on_validation_model_zero_grad()

    def on_train_epoch_end(self) -> None:
        self._recent.settle(self.model, self.strategy, self.trainer)

    def on_validation_epoch_start(self) -> None:
        self._seen = 0

    def on_test_epoch_start(self) -> None:
        self._seen = 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure("test", batch)

    def _measure(self, stage: str, batch: Any) -> None:
        x, y, numbers = (self._fields or Fields.of(batch)).read(batch)
        indices = places(numbers, len(y), self.trainer, self._seen)
        self._seen += len(y)
        statistics = self.strategy.statistics
        for branch in BRANCHES if statistics.policy == "split" else BRANCHES[:1]:
            with self.deployed(), statistics.branch(self.model, branch) if branch != BRANCHES[0] else nullcontext():
                clean, robust = measured(self.model, self.validation_attack, x, y, indices, precision(self.trainer))
            of = stage if branch == BRANCHES[0] else f"{stage}_{branch}_branch"
            for kind, right in (("clean", clean), ("adversarial", robust)):
                if right is not None:
                    self._log(f"{of}_{NAMES[kind]}", right.float().mean(), len(y))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits (B, C) of a batch x, or of the x in it."""
        x = batch if isinstance(batch, Tensor) else (self._fields or Fields.of(batch)).read(batch)[0]
        with self.deployed():
            return self(x)  # type: ignore[no-any-return]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite(weights=True)
        checkpoint[STATE] = {**states.everybodys(self.strategy), "rates": self._rates.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if STATE not in checkpoint:
            raise ValueError("the checkpoint is not one of an AdversarialModule")
        state, trainer = checkpoint[STATE], self._trainer
        states.restore(self.strategy, state, training=trainer is not None and trainer.state.fn == "fit")
        self._rates.load_state_dict(state["rates"])
