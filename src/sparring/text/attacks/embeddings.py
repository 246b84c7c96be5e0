"""Projected gradient descent on a text's embeddings: what a continuous attacker could do where a text is vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparring.attacks import PGD
from sparring.attacks.base import drain
from sparring.attacks.inputs import prepare
from sparring.borrow import Borrowed, borrow
from sparring.checks import check_whole
from sparring.noise import Noise
from sparring.objective import resolve
from sparring.rows import Rows
from sparring.text.attacks.attempt import Attempt, Sample, TextAttack
from sparring.text.attacks.words import Words
from sparring.text.encoded import Encoded
from sparring.text.perturber import EmbeddingPerturber
from sparring.wrappers import attacked_input


@dataclass(frozen=True)
class EmbeddingPGD(TextAttack):
    """Steepest ascent in the vectors of a text's words, projected onto an L2 ball over the whole sequence. Padding and special
    tokens stay as they are. The threat of Miyato et al. (2017), climbed as by Madry et al. (2018).

    No text has these vectors: what holds against it says how steep the model is around its texts.

    eps: the L2 length over the sequence, in the embeddings' own unit (5 for embeddings normalised by frequency). steps: K cost K
    backwards and K + 1 forwards. step_size: default eps / 4, or 2.5 · eps / steps below 10 steps. objective: as for `sp.PGD`.
    restarts: the first begins at the text itself, the others at random points of the ball.
    """

    eps: float
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    objective: str = "cross-entropy"

    substitutes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float)) or not 0 < self.eps < math.inf:
            raise ValueError(f"EmbeddingPGD(eps={self.eps!r}): expected a length above 0, such as 5")
        check_whole("EmbeddingPGD", steps=self.steps, restarts=self.restarts)
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"EmbeddingPGD(step_size={self.step_size!r}): expected a number above 0")
        resolve(self.objective)

    @property
    def access(self) -> str:
        return "gradients"

    def settings(self) -> dict[str, Any]:
        names = ("eps", "steps", "step_size", "restarts", "objective")
        return {name: getattr(self, name) for name in names}

    def attempts(
        self, model: Borrowed, samples: Iterable[Sample], *, batch_size: int = 64, seed: int = 0
    ) -> Iterator[Attempt]:
        source = iter(samples)
        while some := list(islice(source, batch_size)):
            yield from self._batch(model, some, seed)

    def _batch(self, model: Borrowed, samples: list[Sample], seed: int) -> list[Attempt]:
        classifier: Any = model.model
        encoded = classifier.encode([sample.text for sample in samples])
        perturber = EmbeddingPerturber(classifier)
        threat = perturber.threat(encoded.words, self.eps)
        attack = _SequencePGD(
            threat, self.steps, self.step_size, random_start=self.restarts > 1, restarts=self.restarts,
            objective=self.objective, stop_when_fooled=True, perturber=perturber,
        )  # fmt: skip
        y = torch.tensor([sample.label for sample in samples], device=encoded.device)
        indices = torch.tensor([sample.index for sample in samples])
        attempts: list[Attempt] = []
        with borrow(attacked_input(_OfDelta(perturber), 0), seed=seed) as inner:
            inputs = (perturber.zeros(encoded.words), encoded.ids, encoded.mask, encoded.special)
            rows = prepare(inner, threat, inputs, y, indices=indices, seed=seed)
            for done in drain(attack.pool(inner, seed=seed, stop_when_fooled=True), rows):
                attempts += self._left(done, samples, encoded)
        model.forwards += inner.forwards
        model.backwards += inner.backwards
        return attempts

    def _left(self, done: Rows, samples: list[Sample], encoded: Encoded) -> Iterator[Attempt]:
        sizes = done.threat.size(done.original, done.best)
        for i, place in enumerate(done.ticket.tolist()):
            sample = samples[place]
            yield Attempt(
                sample.index, sample.text, bool(done.fooled[i]), int(done.prediction[i]), float(done.value[i]),
                int(done.forwards[i]), int(done.backwards[i]), len(Words(sample.text)), norm=float(sizes[i]),
                perturbation=done.best[i][encoded.words[place]].cpu(),
            )  # fmt: skip

    def answer(self, model: Borrowed, attempt: Attempt) -> Tensor:
        classifier: Any = model.model
        encoded, perturber = classifier.encode([attempt.text]), EmbeddingPerturber(classifier)
        delta = perturber.zeros(encoded.words)
        if attempt.perturbation is not None:
            delta[encoded.words] = attempt.perturbation.to(delta)
        with perturber.adding(delta, encoded):
            return model.look(encoded).cpu()


class _OfDelta(nn.Module):
    """A text model as a function of what is added to its vectors, with the texts beside it, so that rows can leave."""

    def __init__(self, perturber: EmbeddingPerturber) -> None:
        super().__init__()
        self.model, self.perturber = perturber.model, perturber

    def forward(self, delta: Tensor, ids: Tensor, mask: Tensor, special: Tensor) -> Tensor:
        encoded = Encoded(ids, mask, special)
        with self.perturber.adding(delta, encoded):
            logits: Tensor = self.model(encoded)
        return logits


@dataclass(frozen=True)
class _SequencePGD(PGD):
    """PGD whose random starts give a word the same numbers whatever the padding, and whose first start is the text."""

    perturber: Any = None

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        assert rows.threat.mask is not None
        words = rows.threat.mask[..., 0].expand(rows.original.shape[:2])
        direction = self.perturber.normal(noise, words, "start", rows.restart)
        entries = (words.sum(1) * rows.original.shape[2]).clamp_min(1)
        radius = noise.root(entries[:, None].cpu(), "radius", rows.restart, like=direction)
        length = direction.flatten(1).norm(dim=1)[:, None]
        away = rows.threat.eps * direction.flatten(1) / torch.where(length > 0, length, 1) * radius
        first = (rows.restart == 0).to(direction.device)[:, None]
        start = torch.where(first, 0, away).view_as(rows.original).to(rows.original.dtype)
        return rows.threat.project(rows.original, start)
