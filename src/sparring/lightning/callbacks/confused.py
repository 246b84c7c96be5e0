"""`ConfusedLogits`: pictures of the samples between whose two likeliest classes a network can't decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparring.borrow import borrow
from sparring.checks import check_whole
from sparring.inspection import confused_logits, logit_gradients
from sparring.inspection.pictures import need_images
from sparring.lightning.callbacks.boards import show
from sparring.lightning.callbacks.watching import Get, Watcher
from sparring.lightning.measuring import precision, undisturbed


class ConfusedLogits(Watcher):
    """Shows samples whose two largest logits are almost the same, what each of the two depends on, and where it leads.

    Every so many batches of a training, a validation or a test: of the samples whose two largest logits are both above
    `min_logit_value` and less than `max_logit_difference` apart, a figure for each of the `top_k` closest. 2 × 3 panels: the
    image, d logit_a/dx, d logit_b/dx; the true and both confused labels, image + projection_factor · d logit_a/dx, and the
    same for b. TensorBoard, Weights & Biases and MLflow show it as confused_logits/train (val, test; val_1 of a second
    loader); other loggers get PNGs.

    top_k: figures at most, each time. projection_factor: of the gradient, in input units² a logit. min_logit_value: below it
    a network has no opinion worth showing. logging_batch_interval: batches between two looks; a look is a forward of
    the batch, and 2 backwards of what is shown. names: of the classes.
    network, get: as for every callback here. Batches hold images, float (B, C, H, W) or (B, H, W).

    The module's training is untouched: seen in eval mode, each sample's own gradients, no `.grad`, buffer or random state.

    Raises ValueError for settings that show nothing, and at the first batch of samples that are no pictures.
    """

    def __init__(
        self,
        top_k: int = 1,
        *,
        projection_factor: float = 2,
        min_logit_value: float = 5.0,
        logging_batch_interval: int = 20,
        max_logit_difference: float = 0.1,
        names: Sequence[str] | None = None,
        network: str | None = None,
        get: Get | None = None,
    ) -> None:
        super().__init__(network, get)
        check_whole(type(self).__name__, top_k=top_k, logging_batch_interval=logging_batch_interval)
        if not max_logit_difference > 0:
            raise ValueError(
                f"ConfusedLogits(max_logit_difference={max_logit_difference!r}): expected a number above 0"
            )
        self.top_k, self.projection_factor, self.names = top_k, projection_factor, names
        self.min_logit_value, self.max_logit_difference = min_logit_value, max_logit_difference
        self.logging_batch_interval = logging_batch_interval

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._look("train", trainer, pl_module, batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._look(_of("val", dataloader_idx), trainer, pl_module, batch, batch_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._look(_of("test", dataloader_idx), trainer, pl_module, batch, batch_idx)

    def _look(self, stage: str, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        if batch_idx == 0:
            need_images(self.samples(batch, 1)[0], "a confused sample")
        if (batch_idx + 1) % self.logging_batch_interval:
            return
        x, y = self.samples(batch)
        model, cast = self.logits(pl_module), precision(trainer)
        with undisturbed(x):
            with borrow(model, cast) as borrowed:
                logits = borrowed.look(x).float()
            chosen, classes = self.confused(logits)
            if not len(chosen):
                return
            _, gradients = logit_gradients(model, x[chosen], classes[chosen], autocast=cast)
            step = int(trainer.global_step) + (batch_idx if stage != "train" else 0)
            for place, (row, gradient) in enumerate(zip(chosen.tolist(), gradients)):
                first, second = classes[row].tolist()
                figure = confused_logits(
                    x[row],
                    gradient,
                    (first, second),
                    (float(logits[row, first]), float(logits[row, second])),
                    label=int(y[row]),
                    factor=self.projection_factor,
                    names=self.names,
                    bounds=box(x),
                )
                name = f"confused_logits/{stage}" if self.top_k == 1 else f"confused_logits/{stage}/{place}"
                show(trainer, name, figure, step)

    def confused(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples of logits (B, C) are shown, the closest first, and the two classes (B, 2) of each."""
        values, classes = logits.topk(2, dim=1)
        apart = values[:, 0] - values[:, 1]
        known = (values[:, 1] > self.min_logit_value) & (apart < self.max_logit_difference)
        order = apart.masked_fill(~known, torch.inf).argsort(stable=True)
        return order[: min(self.top_k, int(known.sum()))], classes


def _of(stage: str, dataloader_idx: int) -> str:
    """A name of its own for each of several loaders: their batches, and so their steps, are numbered alike."""
    return f"{stage}_{dataloader_idx}" if dataloader_idx else stage


def box(x: Tensor) -> tuple[float, float]:
    """What black and white stand for: [0, 1] where the batch lies in it, else its own range."""
    low, high = float(x.min()), float(x.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
