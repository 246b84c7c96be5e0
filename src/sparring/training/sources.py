"""Examples that come from elsewhere than the network in training: from other networks, or for other statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparring.attacks.base import Attack
from sparring.borrow import borrow
from sparring.training.crafting import craft
from sparring.training.losses import Batch, Loss
from sparring.training.supervised import AdversarialTraining, Mixed, check_attack


@dataclass(eq=False)
class EnsembleTraining(AdversarialTraining):
    """Examples made on fixed source models and on the model itself, in turn from batch to batch. Tramèr et al. (2018).

    What one network learns to hide from its own attacker, another network's examples still show it. sources: trained
    models that take the same inputs; they are borrowed in eval mode, and never learn. Number 0, and every one
    len(sources) + 1 batches later, is the model's own turn. alpha, fraction: see `AdversarialTraining`.
    Passes a batch, with K attack steps: K on the source or the model, and 2 (where alpha = 0 or fraction < 1: 1) to learn.
    """

    attack: Attack
    sources: Sequence[nn.Module]
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack(self.name, self.attack)
        self.sources = tuple(self.sources) if isinstance(self.sources, Sequence) else (self.sources,)
        if not self.sources or not all(isinstance(source, nn.Module) for source in self.sources):
            raise ValueError(
                f"{self.name}(sources={self.sources!r}): expected one trained model or more, as in sources=[first, second]"
            )

    def examples(self, model: nn.Module, batch: Batch) -> Tensor:
        assert batch.step is not None
        turn = batch.step % (len(self.sources) + 1)
        if turn == 0:
            return self.crafted(model, batch, self.attack)
        seed = self.draw_seed(batch)
        with borrow(self.sources[turn - 1], self.autocast, seed) as source:
            made = craft(self.attack, source, batch.x, batch.y, indices=batch.indices, seed=seed)
        self.passes.forwards += source.forwards
        self.passes.backwards += source.backwards
        return made


@dataclass(eq=False)
class AdvProp(Mixed):
    """Clean and adversarial samples, each with BatchNorm statistics of their own. Xie et al. (2020). Made for clean accuracy.

    α · L(x) + (1 − α) · L(x_adv), the two halves in forwards of their own: the model's statistics are those of clean
    samples, the branch "adversarial" has another set. Scale and shift are shared (the paper doubles them, too).
    `with strategy.statistics.branch(model, "adversarial"):` shows the model with that branch's statistics. The accuracies
    of training are each of its own branch. Needs BatchNorm layers in train mode, or frozen with their weights, as while only
    a head learns. Passes a batch, with K attack steps: K + 2.
    """

    bn: str = field(default="split", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bn != "split":
            raise ValueError(f"{self.name}(bn={self.bn!r}): it is what bn='split' is made for; sp.Mixed has the others")
        if self.fraction != 1 or not 0 < self.alpha < 1:
            raise ValueError(
                f"{self.name}(alpha={self.alpha!r}, fraction={self.fraction!r}): both branches need samples; expected alpha "
                "between 0 and 1 and fraction=1"
            )

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if not self.statistics.live and any(p.requires_grad for norm in norms for p in norm.parameters()):
            raise ValueError(f"{self.name}: the model has no BatchNorm layer in train mode to split; use sp.Mixed")
        yield from super().losses(model, batch)
