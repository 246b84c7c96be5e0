"""What the callbacks share: x and y out of any batch, the network that maps one to logits, and a few samples to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparring.attacks.inputs import check_labels
from sparring.checks import check_whole
from sparring.lightning.batches import found
from sparring.lightning.reading import check_forward, network_in

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Host
else:
    Host = object  # the namespace's own Callback comes in with the class that a user sees

Get = Callable[[Any], tuple[Tensor, Tensor]]


class Watcher(Host):
    """Looks, and changes nothing: no mode, gradient, buffer, parameter or random state.

    network: the submodule that maps x (B, *S) to logits (B, C); None: the module itself. get: batch → (x, y), for batches in
    which they are not found: x is the one float tensor, y the one row of whole numbers, in tuples, lists and dicts of any depth.
    """

    def __init__(self, network: str | None = None, get: Get | None = None) -> None:
        super().__init__()
        self.network, self.get = network, get

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        check_forward(pl_module, self.network)

    def logits(self, pl_module: Any) -> nn.Module:
        """What maps x to logits."""
        return network_in(pl_module, self.network)

    def samples(self, batch: Any, count: int | None = None) -> tuple[Tensor, Tensor]:
        """x and y of a batch, the first so many: copies, because what inference mode made takes no gradient."""
        x, y = found(batch) if self.get is None else self.get(batch)
        with torch.inference_mode(False):
            x, y = x[:count].detach().clone(), y[:count].detach().clone()
            if not x.is_floating_point():
                raise TypeError(f"x is {x.dtype}: expected floats, as the network takes them; say so with get=")
            return x, check_labels(y, x)


class EpochWatcher(Watcher):
    """Looks at the first few samples of every so many epochs: of the validation, or of the training where nothing is validated;
    and of every validation or test that is run by itself."""

    def __init__(self, samples: int, every: int, network: str | None, get: Get | None) -> None:
        super().__init__(network, get)
        check_whole(type(self).__name__, samples=samples, every=every)
        self.count, self.every = samples, every
        self._held: list[tuple[Tensor, Tensor]] = []

    def look(self, stage: str, trainer: Any, pl_module: Any, x: Tensor, y: Tensor) -> Mapping[str, float]:
        """What a subclass does, in the first process, with x (n, *S) and y (n,); stage: "train", "val" or "test".

        Returns numbers to log; every process logs them, so that a ModelCheckpoint in each may follow them.
        """
        raise NotImplementedError

    def _due(self, trainer: Any) -> bool:
        fitting = trainer.state.fn == "fit"
        return not trainer.sanity_checking and not (fitting and (trainer.current_epoch + 1) % self.every)

    @staticmethod
    def epochs(trainer: Any) -> int:
        """How many there were by now, the one that is about to end included."""
        return int(trainer.current_epoch) + int(trainer.state.fn == "fit")

    def _hold(self, trainer: Any, batch: Any) -> None:
        left = self.count - sum(len(y) for _, y in self._held)
        if left > 0 and trainer.is_global_zero and self._due(trainer):
            self._held.append(self.samples(batch, left))

    def _finish(self, stage: str, trainer: Any, pl_module: Any) -> None:
        held, self._held = self._held, []
        if not self._due(trainer):
            return
        numbers: Mapping[str, float] = {}
        if held:
            with torch.inference_mode(False), torch.enable_grad():
                x, y = (torch.cat(parts) for parts in zip(*held))
                numbers = self.look(stage, trainer, pl_module, x, y)
        if trainer.world_size > 1:
            numbers = trainer.strategy.broadcast(numbers)
        for name, value in numbers.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._held = []

    on_validation_epoch_start = on_test_epoch_start = on_train_epoch_start

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.enable_validation:
            self._hold(trainer, batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._hold(trainer, batch)

    on_test_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.enable_validation:
            self._finish("train", trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish("test", trainer, pl_module)
