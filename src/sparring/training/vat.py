"""Virtual adversarial training: answers that stay where they are, also around samples that nobody has labelled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparring.checks import check_positive
from sparring.noise import Noise
from sparring.text.encoded import is_tokens
from sparring.text.perturber import EmbeddingPerturber, Perturbed
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.parts import Part
from sparring.training.strategy import Strategy, wide
from sparring.training.supervised import Standard
from sparring.training.trades import divergence
from sparring.training.unlabelled import Unlabelled
from sparring.training.virtual import Clean, Finder, Replay, Size, Start, as_it_learns, batch_wise, check


@dataclass(eq=False)
class Smoothing:
    """What `VAT` and `VirtualAdversarial` share: their settings, and the loss that needs no label."""

    eps: float
    weight: float = field(default=1.0, kw_only=True)
    xi: float | None = field(default=None, kw_only=True)
    iterations: int = field(default=1, kw_only=True)
    entropy_minimisation: bool = field(default=False, kw_only=True)

    def check_settings(self) -> None:
        check(self.eps, self.xi, self.iterations, type(self).__name__)
        check_positive(type(self).__name__, weight=self.weight)

    def smoothness(self, strategy: Strategy, model: nn.Module, batch: Batch) -> Loss:
        """weight · (KL(p(x) ‖ p(x + r)) [+ the entropy of p(x)]), the mean over the unlabelled samples; it makes no step."""
        seen_as = view(model, batch)
        model, x = seen_as.model, seen_as.unlabelled.x.detach()
        found: list[tuple[Replay, Tensor, Tensor]] = []  # once, also where AWP computes the loss again at other weights

        def answers(at: Tensor) -> Tensor:
            with strategy.precision(x), batch_wise(model, x):
                logits: Tensor = model(at)
            strategy.passes.forwards += len(x)
            strategy.passes.backwards += len(x)
            return logits

        def compute(seen: Seen) -> Tensor:
            replay = found[0][0] if found else Replay(x.device)
            clean, known = None, None
            if self.entropy_minimisation:
                with replay.again() if found else nullcontext():
                    clean, known = Clean.of(lambda: answers(x), model, x)
            if not found:
                found.append((replay, *self._worst(strategy, batch, seen_as, replay, known)))
            _, reference, moved = found[0]
            with replay.again():
                value = divergence(reference, wide(answers(moved))).mean()
            return (
                self.weight
                * seen_as.unlabelled.weight
                * (value if clean is None else value + entropy(wide(clean)).mean())
            )

        return Loss(compute, update=False)

    def _worst(
        self,
        strategy: Strategy,
        batch: Batch,
        seen_as: View,
        replay: Replay,
        clean: Clean | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, C) at the unlabelled samples, and x + r (B, *S)."""
        unlabelled, seed = seen_as.unlabelled, strategy.draw_seed(batch)
        x = unlabelled.x.detach()
        numbers = torch.arange(len(x)) if unlabelled.indices is None else unlabelled.indices.detach().cpu().long()
        finder = Finder(self.eps, self.xi, self.iterations, start=seen_as.start, size=seen_as.size)
        with as_it_learns(seen_as.model, x, strategy.autocast, seed) as borrowed:
            if clean is None:
                _, clean = Clean.of(lambda: borrowed.look(x), seen_as.model, x)
            r = finder(borrowed, x, Noise(seed, numbers), replay, clean)
        strategy.passes.forwards += borrowed.forwards
        strategy.passes.backwards += borrowed.backwards
        return wide(clean.logits), (x + r).to(x.dtype)


class View(NamedTuple):
    """The model, its unlabelled samples, where the search for their directions starts, and what ξ is measured by."""

    model: nn.Module
    unlabelled: Unlabelled
    start: Start | None = None
    size: Size | None = None


def view(model: nn.Module, batch: Batch) -> View:
    """Texts are seen as what is added to their word vectors, which begins at zero: the direction is one of those, the length
    that rounding depends on is theirs, and the embeddings learn as well."""
    unlabelled = Unlabelled.given(batch)
    if is_tokens(unlabelled.x) != is_tokens(batch.x):
        raise ValueError("labelled samples and unlabelled ones: expected texts both, or neither")
    if not is_tokens(batch.x):
        return View(model, Unlabelled.of(batch))
    perturber = EmbeddingPerturber(model)
    moved = Perturbed(perturber, unlabelled.x)

    def start(noise: Noise, like: Tensor) -> Tensor:
        return perturber.normal(noise, moved.words, "virtual")

    still = Unlabelled(perturber.zeros(moved.words), unlabelled.indices, unlabelled.weight)
    return View(moved, still, start, lambda delta: moved.lengths)


def entropy(logits: Tensor) -> Tensor:
    """−Σ p log p of logits (B, C). (B,)"""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


@dataclass(eq=False)
class VirtualAdversarial(Smoothing, Part):
    """Puts virtual adversarial training round any strategy: `sp.PGDTraining(threat).with_(sp.VirtualAdversarial(2.0))`.

    Beside every loss that the model's optimiser steps on, KL(p(x) ‖ p(x + r)) of the batch's unlabelled samples. The settings
    and the passes that it adds are those of `VAT`.
    """

    def __post_init__(self) -> None:
        self.check_settings()

    @property
    def takes_unlabelled(self) -> bool:
        return True

    def around(self, strategy: Strategy, model: nn.Module, batch: Batch, losses: Iterator[Loss]) -> Iterator[Loss]:
        for loss in losses:
            if loss.update and loss.owner == "model":
                yield self.smoothness(strategy, model, batch)
            yield loss


@dataclass(eq=False)
class VAT(Smoothing, Standard):
    """Cross-entropy of the labelled samples + KL(p(x) ‖ p(x + r)) of the unlabelled ones. Miyato et al. (2018).

    r is `virtual_perturbation`: of L2 length eps, where the answer p(x), which is constant in the gradient, changes most. No
    label is asked for. Only the labelled samples move BatchNorm's running statistics; the others are normalised with those of
    their own batch. All forwards of the unlabelled samples have the same dropout mask.

    eps: in input units. Images in [0, 1]: about 2 for 28×28. weight: of all that needs no label. xi, iterations: see
    `virtual_perturbation`. entropy_minimisation: also learn to be sure, + the entropy of p(x); for the harder data.
    The unlabelled samples come as `extras["unlabelled"]` of a `Batch`, as `fit(…, unlabelled=…)`, or from Lightning's
    `CombinedLoader({"labelled": …, "unlabelled": …})`; in the paper the labelled ones are among them. Without any, the
    divergence is that of the labelled samples.
    Passes a batch: of the labelled samples 1, of the unlabelled ones K + 2 forwards and K + 1 backwards with K iterations;
    with entropy_minimisation one backward more.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_settings()

    @property
    def takes_unlabelled(self) -> bool:
        return True

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        yield self.smoothness(self, model, batch)
        yield from super().losses(model, batch)

    def without_labels(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        yield self.smoothness(self, model, batch)
        yield from super().without_labels(model, batch)
