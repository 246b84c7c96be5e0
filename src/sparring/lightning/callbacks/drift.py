"""`BatchNormDrift`: how far BatchNorm's running statistics lie from those of the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparring.checks import check_whole
from sparring.inspection.bars import layer_bars
from sparring.lightning.callbacks.boards import note, show
from sparring.lightning.callbacks.watching import EpochWatcher, Get
from sparring.training.batchnorm import live_norms, names_of
from sparring.training.drift import Buffers, Drift
from sparring.training.findings import OFF
from sparring.training.own_norms import may_have_own_norms
from sparring.training.symptoms import Examination


class BatchNormDrift(EpochWatcher):
    """How far the running statistics, which a network uses in eval mode, lie from those of its data; a warning where that is far.

    In training it is read off the buffers' own movement and costs no pass: every `interval` batches batchnorm_shift, the largest
    over layers of the root mean square over channels of (running mean − batch mean)/σ, and batchnorm_stretch, the same of
    log(running variance / batch variance), are logged, and at the end of the epoch a bar for each layer is shown
    (batchnorm_drift/train). Forwards that another strategy of this package crafts with don't count.
    In validation and tests, where nothing moves, the layers are measured on the first few samples: val_batchnorm_shift, …

    From 0.5 on, half a standard deviation or a factor of 1.65 in variance, a layer is another network's, and a warning says
    what to do: once for each layer. Networks without BatchNorm, or with all of it frozen, log nothing.

    interval: batches. samples: of the first process, 2 at least. every: epochs. network, get: as for every callback here.
    """

    def __init__(
        self,
        *,
        interval: int = 20,
        samples: int = 64,
        every: int = 1,
        network: str | None = None,
        get: Get | None = None,
    ) -> None:
        super().__init__(samples, every, network, get)
        check_whole(type(self).__name__, interval=interval)
        if samples < 2:
            raise ValueError(f"BatchNormDrift(samples={samples!r}): expected at least 2, one alone has no variance")
        self.interval = interval
        self._drift: Drift | None = None
        self._before: Buffers | None = None
        self._warned: set[str] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        network = self.logits(pl_module)
        live = live_norms(network, self.samples(batch, 2)[0] if may_have_own_norms(network) else None)
        if not live:
            self._drift = self._before = None
            return
        if self._drift is None or not self._drift.fits(live):
            self._drift = Drift(live)
        self._before = Buffers.of(live)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._drift is None or self._before is None:
            return
        self._drift.add(self._before)
        if (batch_idx + 1) % self.interval == 0:
            shift, stretch = (float(values.max()) for values in self._drift.by_layer())
            note(trainer, {"batchnorm_shift": shift, "batchnorm_stretch": stretch})

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._drift is not None and trainer.is_global_zero and self._due(trainer):
            names = names_of(self.logits(pl_module), self._drift.layers)
            shift, stretch = (values.tolist() for values in self._drift.by_layer())
            self._tell("train", trainer, names, shift, stretch)

    def look(self, stage: str, trainer: Any, pl_module: Any, x: Tensor, y: Tensor) -> Mapping[str, float]:
        if stage == "train" or len(x) < 2:
            return {}  # in training the buffers themselves tell
        found = Examination(self.logits(pl_module), x, y).drift()
        if not found:
            return {}
        shift, stretch = [layer.shift for layer in found], [layer.stretch for layer in found]
        self._tell(stage, trainer, [layer.name for layer in found], shift, stretch)
        return {f"{stage}_batchnorm_shift": max(shift), f"{stage}_batchnorm_stretch": max(stretch)}

    def _tell(
        self, stage: str, trainer: Any, names: Sequence[str], shift: Sequence[float], stretch: Sequence[float]
    ) -> None:
        figure = layer_bars(
            names, {"shift of the mean, in σ": shift, "stretch, log of the variances' ratio": stretch}, limit=OFF
        )
        show(trainer, f"batchnorm_drift/{stage}", figure, int(trainer.global_step))
        off = [name for name, a, b in zip(names, shift, stretch) if max(a, b) >= OFF]
        if new := [name for name in off if name not in self._warned]:
            self._warned.update(new)
            worst = max(new, key=lambda name: max(shift[names.index(name)], stretch[names.index(name)]))
            place = names.index(worst)
            warnings.warn(
                f"BatchNormDrift, after epoch {self.epochs(trainer)}: the running statistics of {len(new)} layers are not "
                f"those of the data; furthest off is {worst}, {shift[place]:.2g} σ in mean and ×/÷ "
                f"{math.exp(stretch[place] / 2):.2g} in σ: more updates, a higher momentum, or sp.recalibrate(model, data)",
                stacklevel=2,
            )
