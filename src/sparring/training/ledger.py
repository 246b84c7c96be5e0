"""What an epoch has shown so far: numbers stay on the device until somebody looks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparring.training.history import Epoch
from sparring.training.losses import Loss

if TYPE_CHECKING:
    from sparring.training.run import Run


@dataclass
class Tally:
    """Sums over the epoch's samples so far, of this process."""

    loss: float = 0.0
    samples: int = 0
    clean: float = 0.0
    cleans: int = 0
    adversarial: float = 0.0
    adversarials: int = 0

    def means(self) -> tuple[float, float | None, float | None]:
        """Loss, clean accuracy and robust accuracy; None for one that nothing was seen of."""
        clean = self.clean / self.cleans if self.cleans else None
        robust = self.adversarial / self.adversarials if self.adversarials else None
        return self.loss / max(self.samples, 1), clean, robust


class NotFinite(Exception):
    """What is not finite ("the loss is nan"), in this batch of this epoch (both from 0), and what helps."""

    def __init__(self, what: str, epoch: int, batch: int, cure: str = "lower lr, or clip with max_grad_norm") -> None:
        super().__init__(f"{what} in epoch {epoch + 1}, batch {batch + 1}: {cure}")


class Ledger:
    """Takes the losses of each batch; `read` fetches them all at once, for each look at a GPU waits for it."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._pending: list[tuple[str, Tensor, int, int, int]] = []

    def add(self, loss: Loss, samples: int, epoch: int, batch: int) -> None:
        if loss.seen.right:  # others, such as YOPO's of the first layer, are no mean over samples
            self._pending.append(("loss", loss.value.detach() / loss.share, samples, epoch, batch))
        for name, (right, count) in loss.seen.right.items():
            if name in ("clean", "adversarial"):
                self._pending.append((name, right, count, epoch, batch))

    def read(self) -> None:
        """NotFinite for the first loss that is not."""
        pending, self._pending = self._pending, []
        values = torch.stack([tensor.double() for _, tensor, *_ in pending]).tolist() if pending else []
        for value, (name, _, count, epoch, batch) in zip(values, pending, strict=True):
            if name == "clean":
                self.tally.clean, self.tally.cleans = self.tally.clean + value, self.tally.cleans + count
            elif name == "adversarial":
                self.tally.adversarial += value
                self.tally.adversarials += count
            elif math.isfinite(value):
                self.tally.loss, self.tally.samples = self.tally.loss + value * count, self.tally.samples + count
            else:
                raise NotFinite(f"the loss is {value}", epoch, batch)


def epoch_row(run: Run) -> Epoch:
    """What this epoch has shown to all processes together; nothing was validated yet."""
    now, before = asdict(run.strategy.passes), asdict(run.counted)
    everybody = run.crew.gather((asdict(run.ledger.tally), {name: now[name] - before[name] for name in now}))
    sums = [{name: sum(each[i][name] for each in everybody) for name in everybody[0][i]} for i in (0, 1)]
    rate = run.optimizers["model"].param_groups[0]["lr"]
    means = Tally(**sums[0]).means()
    return Epoch(run.epoch + 1, (run.epoch + 1) * run.batches, *means, lr=rate, seconds=run.seconds, **sums[1])
