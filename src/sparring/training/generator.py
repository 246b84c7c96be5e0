"""A generator of adversarial examples and the classifier that withstands them, learning in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks.inputs import check_inputs
from sparring.checks import check_whole
from sparring.learned.generator import changed
from sparring.learned.networks import Generator
from sparring.objective import check_label_range, margin
from sparring.threat import Threat
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import check_threat
from sparring.training.supervised import AdversarialTraining


@dataclass(eq=False)
class GeneratorTraining(AdversarialTraining):
    """A network makes the examples in one pass; it learns to fool the classifier, which learns from what it makes. Wang and
    Yu (2019); Baluja and Fischer (2018).

    Each batch gives a loss for the generator (owner "generator": softplus(−margin) of its examples), then one for the
    classifier, on the examples that the generator makes after its step. Both need an optimiser: `modules()` has the
    generator, and the loop steps `optimizers[loss.owner]`.
    Such examples are weaker than PGD's: it shows the idea, and is fast; for robustness take `PGDTraining`.

    threat: linf or l2. channels: of the images (B, C, H, W). width: channels of the generator's first layer. generator: another
    network instead, from inputs scaled to [−1, 1] to changes in [−1, 1] of the same shape. alpha, fraction: see
    `AdversarialTraining`. Passes of the classifier a batch: 3 (2 where alpha = 0).
    """

    threat: Threat
    alpha: float = field(default=0.5, kw_only=True)
    channels: int = field(default=3, kw_only=True)
    width: int = field(default=16, kw_only=True)
    generator: nn.Module | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2")
        check_whole(self.name, channels=self.channels)
        check_whole(self.name, 8, width=self.width)
        if self.generator is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self._network: nn.Module = Generator(self.channels, self.width)
        else:
            self._network = self.generator

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self._network}

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        x = batch.x
        check_inputs(x, self.threat)
        threat = self.threat.for_inputs(x)
        if self.generator is None and (x.ndim != 4 or x.shape[1] != self.channels):
            raise ValueError(
                f"{self.name}: inputs of shape {tuple(x.shape[1:])} for a generator of images ({self.channels}, H, W): say "
                "channels=..., or bring a generator=... of your own"
            )
        network = self._network.to(x.device)

        def fool(seen: Seen) -> Tensor:
            assert batch.indices is not None
            moved = changed(network, x, threat)
            made = (moved + (threat.project(x, moved.detach()) - moved.detach())).to(
                x.dtype
            )  # the box, straight through
            with self.crafting(model, batch) as borrowed:
                logits = borrowed.call(made, borrowed.keyed({}, batch.indices))
                check_label_range(batch.y, logits.shape[1])
            self.passes.backwards += len(x)
            return F.softplus(-margin(logits, batch.y)).mean()

        yield Loss(fool, owner="generator")
        yield from super().losses(model, batch)

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            moved = changed(self._network, batch.x, self.threat.for_inputs(batch.x))
        return self.threat.project(batch.x, moved)
