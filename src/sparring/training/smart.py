"""Smooth where it stands, and slow to leave it: SMART's regularisers for fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparring.checks import check_positive, check_whole
from sparring.noise import Noise
from sparring.text.perturber import Perturbed, Vectors
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy, wide
from sparring.training.text import Forwards
from sparring.training.virtual import as_it_learns, rounding


def symmetric_divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL(p ‖ q) + KL(q ‖ p) of logits (B, C), with the gradient of both. (B,)"""
    p, q = a.log_softmax(1), b.log_softmax(1)
    return ((p.exp() - q.exp()) * (p - q)).sum(1)


def root_mean_square(vectors: Vectors, words: Tensor) -> Tensor:
    """Of the numbers in each text's word vectors. (B, 1, 1), in float32 or better"""
    assert vectors.vectors is not None
    numbers = torch.where(words[:, :, None], vectors.vectors, 0).to(vectors.delta.dtype)
    count = words.sum(1).clamp_min(1) * numbers.shape[2]
    return (numbers.square().sum((1, 2)) / count).sqrt()[:, None, None]


@dataclass(eq=False)
class SMART(Strategy):
    """CE(e) + weight · D(p(e), p(e + δ)) [+ bregman · D(p(e), p̄(e))], D the symmetric KL divergence. Jiang et al. (2020).

    δ begins as Gaussian noise of deviation `noise`; then K times δ ← δ + step_size · g / ‖g‖∞ up D's gradient, the norm over
    each text's word vectors, with each number held within `eps` (None: no limit).
    Left out, step_size is an eighth of the root mean square of the numbers in a text's word vectors, and noise √u of that, u
    the rounding unit that the network computes in. The sizes that the paper names, 1e-3 and 1e-5, leave a divergence near
    1e-10: float32 rounds it away, and training is ordinary training.
    bregman: μ, weight of the divergence from the answers p̄ of an average of the weights (decay `decay`): steps stay short.
    Passes a batch: K + 2, and one more forward with bregman. Gradients go through both sides of D, as in the paper.
    """

    takes_tokens = True
    weight: float = 1.0
    noise: float | None = field(default=None, kw_only=True)
    step_size: float | None = field(default=None, kw_only=True)
    steps: int = field(default=1, kw_only=True)
    eps: float | None = field(default=None, kw_only=True)
    bregman: float | None = field(default=None, kw_only=True)
    decay: float = field(default=0.99, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: getattr(self, name) for name in ("weight", "noise", "step_size", "eps", "bregman")}
        check_positive(self.name, **given)
        check_whole(self.name, steps=self.steps)
        if not 0 <= self.decay < 1:
            raise ValueError(f"{self.name}(decay={self.decay!r}): expected a number from 0 to below 1")
        self._average: dict[str, Tensor] = {}

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        forwards = Forwards(self, model, batch)
        if self.bregman is not None and not self._average:
            self._remember(model)
        found: list[Tensor] = []  # once, also where AWP computes the loss again at other weights

        def smooth(seen: Seen) -> Tensor:
            with rounding(model, torch.finfo(torch.float32).eps) as unit:
                clean, vectors = forwards(seen, None, "clean")
            if not found:
                size = root_mean_square(vectors, forwards.words)
                noise = math.sqrt(unit[0]) * size / 8 if self.noise is None else torch.full_like(size, self.noise)
                step = size / 8 if self.step_size is None else torch.full_like(size, self.step_size)
                found.append(self.worst(forwards, batch, clean.detach(), noise, step))
            moved, _ = forwards(seen, found[0])
            value = forwards.loss(clean) + self.weight * symmetric_divergence(clean, moved).mean()
            if self.bregman is not None:
                value = value + self.bregman * symmetric_divergence(clean, self._former(forwards)).mean()
            return value

        loss = Loss(smooth)
        yield loss
        if loss.update and self.bregman is not None:
            self._remember(model)

    def worst(self, forwards: Forwards, batch: Batch, reference: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """δ (B, T, D) of these texts, whose logits are `reference` (B, C). noise, step: (B, 1, 1) sizes of the start and of a
        step."""
        assert batch.indices is not None
        perturber, words = forwards.perturber, forwards.words
        seed = self.draw_seed(batch)
        zero = perturber.zeros(words)
        ball = perturber.threat(words, float("inf") if self.eps is None else self.eps, "linf")
        delta = noise * perturber.normal(Noise(seed, batch.indices), words, "smart")
        with as_it_learns(Perturbed(perturber, forwards.x), zero, self.autocast, seed) as borrowed:
            for _ in range(self.steps):
                with forwards.again():
                    slope = borrowed.probe(delta, lambda logits: symmetric_divergence(wide(logits), reference))[2]
                slope = slope.nan_to_num(0.0, 0.0, 0.0)
                largest = slope.abs().amax((1, 2), keepdim=True)
                delta = delta + step * slope / torch.where(largest > 0, largest, 1)
                delta = ball.project(zero, delta)
        self.passes.forwards += borrowed.forwards
        self.passes.backwards += borrowed.backwards
        return delta

    def _former(self, forwards: Forwards) -> Tensor:
        """Logits (B, C) of the averaged weights."""
        model = forwards.model
        with torch.no_grad(), self.aside(model), forwards.again(), self.precision(forwards.words):
            average = {
                name: kept.to(forwards.words.device) for name, kept in self._average.items()
            }  # resumed: on the CPU
            logits: Tensor = functional_call(model, average, (forwards.x,))
        self.passes.forwards += len(forwards.y)
        return wide(logits)

    @torch.no_grad()
    def _remember(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if (kept := self._average.get(name)) is None:
                self._average[name] = parameter.detach().clone()
            else:
                self._average[name] = kept.to(parameter.device).lerp(parameter.detach(), 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": {name: kept.clone() for name, kept in self._average.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._average = {name: kept.clone() for name, kept in state["average"].items()}
