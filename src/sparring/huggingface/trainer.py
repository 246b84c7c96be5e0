"""`AdversarialTrainerMixin`: sparring's strategies inside Hugging Face's `Trainer`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring.huggingface.batches import UNLABELLED, Inputs, encoded
from sparring.text.tokens import needed
from sparring.training.losses import Batch, Loss
from sparring.training.strategy import Strategy
from sparring.training.unlabelled import Unlabelled

STATE = "sparring.pt"


class AdversarialTrainerMixin:
    """Puts a strategy for texts into a Trainer:

        class AdversarialTrainer(AdversarialTrainerMixin, Trainer): ...

        AdversarialTrainer(model, args, train_dataset=…, strategy=sp.TextAdversarial(1.0)).train()

    strategy: one that takes texts and makes one update a batch, `Standard`, `TextAdversarial`, `TextVAT`, `FGM`, `FreeLB` or
    `SMART`, with what is put round it. The model is one for sequence classification. Evaluation, saving, logging, clipping, mixed
    precision and accumulation remain the Trainer's; the model's own loss (and compute_loss_func) gives way to the strategy's.

    `training_step` goes backward from each of the strategy's losses. A text counts 1 / `num_items_in_batch` where the Trainer
    has counted the labels of all the batches of a step, so that batches of unlike sizes are weighted rightly; else each batch
    counts the same. Texts labelled −100 are unlabelled ones: strategies that take those learn from all texts without a label,
    also of a batch in which none has one; there each text of a step counts the same.
    An average of weights (EMA) is kept in the strategy, and in the checkpoint as `sparring.pt`; the Trainer evaluates and
    saves the model itself (`strategy.parts[-1].averaged(model)` is the other one).
    """

    def __init__(self, *args: Any, strategy: Strategy, **kwargs: Any) -> None:
        if not isinstance(strategy, Strategy):
            raise TypeError(f"strategy={strategy!r}: expected one for texts, such as sp.TextAdversarial()")
        if not strategy.takes_tokens or strategy.modules():
            raise ValueError(
                f"{strategy.name} does not learn from texts: expected TextAdversarial, TextVAT, FGM, FreeLB, SMART or Standard"
            )
        self.strategy = strategy
        self._inputs: Inputs | None = None
        self._open: Iterator[Loss] | None = None
        self._micro = 0
        self._texts = 0  # of a step; 0 where nobody counted them: a batch that was handed over by itself
        super().__init__(*args, **kwargs)
        if smoothing := self.args.label_smoothing_factor:  # type: ignore[attr-defined]
            raise ValueError(
                f"label_smoothing_factor={smoothing}: the loss is the strategy's; give it to that, as label_smoothing={smoothing}"
            )
        if self.args.n_gpu > 1:  # type: ignore[attr-defined]
            raise ValueError("several GPUs in one process: a hook sees one of them; start with torchrun or accelerate")
        self.add_callback(_callback(self))  # type: ignore[attr-defined]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Every loss of the strategy goes backward; the Trainer steps. The sum of them, for the log."""
        trainer: Any = self
        model.train()
        if callable(train := getattr(trainer.optimizer, "train", None)):
            train()
        inputs = dict(trainer._prepare_inputs(inputs))
        labels = inputs.pop("labels", None)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
            given = "none" if labels is None else f"dtype {labels.dtype}, shape {tuple(labels.shape)}"
            raise ValueError(f"labels: {given}; expected one class number a text, (B,)")
        adapted = self._adapted(model)
        known = labels != UNLABELLED
        share = self._share(known, num_items_in_batch)
        total = torch.zeros((), device=labels.device)
        self._finish()
        updates = 0
        losses = self.strategy(adapted, self._batch(inputs, labels, known, share))
        for loss in losses:
            value = loss.value
            total += share * value.detach().to(total.dtype)
            if value.requires_grad:
                trainer.accelerator.backward(share * value)
            updates += loss.update
            if updates > 1 or loss.owner != "model":
                raise ValueError(
                    f"{self.strategy.name} makes more than one update a batch, or one of another network: the Trainer makes one"
                )
            if loss.update:
                loss.update = trainer.accelerator.sync_gradients
                self._open = losses  # what stands behind its yield runs when the optimiser has stepped
                break
        self._micro += 1
        return total

    def _batch(self, inputs: dict[str, Any], labels: Tensor, known: Tensor, share: float) -> Batch:
        """share: what every loss of it will be multiplied with, which that of unlabelled texts is freed from."""
        trainer: Any = self
        bare = trainer.accelerator.unwrap_model(trainer.model)
        tokenizer = getattr(trainer, "processing_class", None)
        x: Any = encoded(inputs, tokenizer, getattr(bare.config, "pad_token_id", None))
        step = trainer.state.global_step * trainer.args.gradient_accumulation_steps + self._micro
        if self.strategy.takes_unlabelled:
            others = Unlabelled(x, weight=len(labels) / (self._texts or len(labels)) / share)
            return Batch(x[known], labels[known], step=step, extras={"unlabelled": others})
        if not bool(known.any()):
            raise ValueError(
                f"a batch without a labelled text, and {self.strategy.name} learns nothing from others: use sp.TextVAT, or put "
                "sp.VirtualAdversarial round it"
            )
        return Batch(x[known], labels[known], step=step)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of the next step, whose texts are counted, labelled or not."""
        samples, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._texts = sum(len(batch.get("input_ids", ())) for batch in samples)
        return samples, items

    def _share(self, known: Tensor, items: Any) -> float:
        """What the mean over the labelled texts of this batch counts in the step; where there are none, what its texts do."""
        trainer: Any = self
        count = int(known.sum())
        if not count:
            return len(known) / (self._texts or len(known))
        if items is None:
            return 1 / float(trainer.current_gradient_accumulation_steps)
        world = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
        return count * world / float(items)

    def _adapted(self, model: nn.Module) -> Inputs:
        if self._inputs is None or self._inputs.wrapped is not model:
            trainer: Any = self
            self._inputs = Inputs(model, trainer.accelerator.unwrap_model(model))
        return self._inputs

    def _finish(self) -> None:
        """Let the strategy go on behind its last loss: the optimiser has stepped (or the batch was accumulated)."""
        losses, self._open = self._open, None
        if losses is not None and next(losses, None) is not None:
            raise ValueError(f"{self.strategy.name} goes on after its update: the Trainer makes one a batch")

    def _stepped(self) -> None:
        self._finish()
        self._micro = 0

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and (file := Path(checkpoint) / STATE).is_file():
            self.strategy.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def _callback(trainer: AdversarialTrainerMixin) -> Any:
    library = needed("transformers")

    class Watch(library.TrainerCallback):  # type: ignore[misc, name-defined]
        """Tells the mixin what the Trainer has done."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            trainer._stepped()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if folder.is_dir() and state.is_world_process_zero:
                torch.save(trainer.strategy.state_dict(), folder / STATE)

    return Watch()
