"""Adversarial training on texts: perturbations of the word vectors, from gradients that the training's own backward leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.checks import check_positive, check_whole
from sparring.noise import Noise
from sparring.text.encoded import Encoded
from sparring.text.perturber import EmbeddingPerturber, Vectors
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy
from sparring.training.vat import VAT
from sparring.training.virtual import Replay


class Forwards:
    """The forwards of one batch of texts, all with the dropout masks of the first."""

    def __init__(self, strategy: Strategy, model: nn.Module, batch: Batch) -> None:
        self.strategy, self.model, self.y = strategy, model, batch.y
        self.perturber = EmbeddingPerturber(model)
        self.x, self.words = self.perturber.prepared(batch.x)
        self._replay: Replay | None = None

    def again(self) -> AbstractContextManager[None]:
        """The random numbers of the first forward, for another one."""
        if self._replay is not None:
            return self._replay.again()
        self._replay = Replay(self.words.device)
        return nullcontext()

    def __call__(
        self, seen: Seen, delta: Tensor | None, branch: str = "adversarial", where: Tensor | None = None
    ) -> tuple[Tensor, Vectors]:
        """Logits (B, C) with the word vectors moved by delta (B, T, D), and the place where a backward leaves its gradient."""
        with self.again(), self.perturber.adding(delta, self.x, where) as vectors:
            logits = self.strategy.forward(self.model, self.x, self.y, branch)  # type: ignore[arg-type]
        seen.add(branch, logits, self.y)
        return logits, vectors

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.y, label_smoothing=self.strategy.label_smoothing)


@dataclass(eq=False, kw_only=True)
class FromBackward(Strategy):
    """Base of strategies that ascend along what the backward of their own loss leaves at the embeddings, so that the gradient
    of the attack costs nothing. It is that of the loss that is learned from, label smoothing included."""

    takes_tokens = True


@dataclass(eq=False)
class TextAdversarial(FromBackward):
    """CE(e) + weight · CE(e + r), r = eps · g / ‖g‖₂, with the norm over all word vectors of a text. Miyato et al. (2017).

    g is the gradient of the clean loss, and r constant. Both forwards have the same dropout mask. eps: L2 length over the whole
    text; 5 suits vectors normalised by `FrequencyNormalizedEmbedding`, of length √D each; for others compare it with theirs.
    2 passes a batch; the gradient comes with the clean loss's own backward. With virtual adversarial training as well:
    `TextAdversarial().with_(VirtualAdversarial(5.0))`.
    """

    eps: float = 5.0
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.name, eps=self.eps, weight=self.weight)

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        forwards = Forwards(self, model, batch)
        shown: list[Vectors] = []

        def clean(seen: Seen) -> Tensor:
            logits, vectors = forwards(seen, None, "clean")
            shown.append(vectors)
            return forwards.loss(logits)

        yield Loss(clean, update=False)
        r = forwards.perturber.steepest(last(shown).gradient, forwards.words, self.eps)
        yield Loss(lambda seen: self.weight * forwards.loss(forwards(seen, r)[0]))


@dataclass(eq=False)
class FGM(FromBackward):
    """CE + CE with the embedding *matrix* moved by eps · G / ‖G‖, G its gradient over the batch: the form that is passed around
    as "FGM".

    One vector is added to a token wherever it stands in the batch, special tokens included, and one length is shared by
    all texts: another object than `TextAdversarial`'s perturbation of each sequence. The matrix itself is never changed: its
    rows are moved where they are looked up, so a decoder that is tied to it is not moved (and of a normalised embedding
    what comes out is). eps: Frobenius norm. 2 passes a batch.
    """

    eps: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.name, eps=self.eps)

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        forwards = Forwards(self, model, batch)
        where = forwards.x.mask if isinstance(forwards.x, Encoded) else forwards.words
        shown: list[Vectors] = []

        def clean(seen: Seen) -> Tensor:
            logits, vectors = forwards(seen, None, "clean", where)
            shown.append(vectors)
            return forwards.loss(logits)

        yield Loss(clean, update=False)
        moved = self.rows(last(shown))
        yield Loss(lambda seen: forwards.loss(forwards(seen, moved, where=where)[0]))

    def rows(self, vectors: Vectors) -> Tensor:
        """(B, T, D): the row of the matrix's perturbation at each token."""
        assert vectors.ids is not None
        gradient = vectors.gradient
        known, places = torch.unique(vectors.ids, return_inverse=True)
        matrix = gradient.new_zeros(len(known), gradient.shape[-1])
        matrix.index_add_(0, places.flatten(), gradient.flatten(0, 1))
        largest = matrix.abs().amax()  # first, so that squares neither vanish nor overflow
        matrix = matrix / torch.where(largest > 0, largest, 1)
        length = matrix.norm()
        return (self.eps * matrix / torch.where(length > 0, length, 1))[places]


@dataclass(eq=False)
class FreeLB(FromBackward):
    """The mean of K losses at δ₀ … δ₋₁ on an ascent over the word vectors, each of which is learned from. Zhu et al. (2020).

    δ₀ is uniform, of L2 length about `start`; then δ ← δ + step_size · g / ‖g‖₂, projected onto the ball of radius `eps`
    (None: no ball), where g comes with the backward of the loss at δ. All forwards have the same dropout masks. Norms are
    over a whole text. steps: K passes a batch, no clean one.
    """

    eps: float | None = None
    steps: int = field(default=3, kw_only=True)
    step_size: float = field(default=0.1, kw_only=True)
    start: float = field(default=0.05, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.name, eps=self.eps, step_size=self.step_size)
        check_whole(self.name, steps=self.steps)
        if not 0 <= self.start < float("inf"):
            raise ValueError(f"{self.name}(start={self.start!r}): expected an L2 length, 0 or more")

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        forwards = Forwards(self, model, batch)
        perturber, words = forwards.perturber, forwards.words
        delta = self.begin(perturber, words, batch)
        for step in range(self.steps):
            delta = delta.detach().requires_grad_(True)
            shown: list[Vectors] = []

            def there(seen: Seen, delta: Tensor = delta, shown: list[Vectors] = shown) -> Tensor:
                logits, vectors = forwards(seen, delta)
                shown.append(vectors)
                return forwards.loss(logits) / self.steps

            loss = Loss(there, update=step + 1 == self.steps)
            loss.share = 1 / self.steps
            yield loss
            if step + 1 < self.steps:
                delta = delta.detach() + perturber.steepest(last(shown).gradient, words, self.step_size)
                if self.eps is not None:
                    delta = perturber.threat(words, self.eps).project(perturber.zeros(words), delta)

    def begin(self, perturber: EmbeddingPerturber, words: Tensor, batch: Batch) -> Tensor:
        """δ₀ (B, T, D): U(−1, 1) · start / √(numbers that may move)."""
        assert batch.indices is not None
        drawn = perturber.normal(Noise(self.draw_seed(batch), batch.indices), words, "start", low=-1.0)
        numbers = words.sum(1).clamp_min(1) * drawn.shape[-1]
        return self.start * drawn / numbers.to(drawn.dtype).sqrt()[:, None, None]


@dataclass(eq=False)
class TextVAT(VAT):
    """`VAT` with the size for texts: KL(p(e) ‖ p(e + r)), r of L2 length eps over all word vectors of a text.

    Miyato et al. (2017). Their ξ is 0.1; left out, it is √u · ‖e‖ here, which bf16 does not round away. Passes and settings are
    those of `VAT`.
    """

    eps: float = 5.0


def last(shown: list[Vectors]) -> Vectors:
    """Of the forward whose backward was the last."""
    if not shown:
        raise RuntimeError(
            "the loop asked for the next loss without loss.value.backward(): a strategy needs the gradients of each"
        )
    return shown[-1]
