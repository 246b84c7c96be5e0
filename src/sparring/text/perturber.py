"""Perturbing a text where it is continuous: at the output of the embedding layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparring.layout import is_compiled
from sparring.noise import Noise
from sparring.text.encoded import Encoded
from sparring.text.frequency import find_embedding
from sparring.threat import Threat

SILENT = "the embedding layer, {layer}, did not run in the model's forward: name the one that does by embedding=..."


class Vectors:
    """What a forward showed of the embedding layer.

    delta: (B, T, D) what was added, in float32 or better, a leaf: a backward leaves its gradient in `delta.grad`.
    vectors: (B, T, D) the layer's own output, detached. ids: (B, T) the token numbers that it was given.
    """

    def __init__(self, delta: Tensor | None) -> None:
        self._delta = delta
        self.vectors: Tensor | None = None
        self.ids: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        if self._delta is None:
            raise RuntimeError("no forward has run yet")
        return self._delta

    @property
    def gradient(self) -> Tensor:
        """(B, T, D) of the loss that went backward with respect to `delta`; zero where it is not finite (an overflow of
        half precision, after which the loop's scaler takes no step)."""
        if self.delta.grad is None:
            raise RuntimeError(
                "no gradient reached the embeddings: a loop must call loss.value.backward() on each loss, and the model must "
                "not detach them"
            )
        return self.delta.grad.nan_to_num(0.0, 0.0, 0.0)


class EmbeddingPerturber:
    """Adds to the vectors of a text's words, through a forward hook on the embedding layer, so that everything else the model
    does with its token numbers (positions, above all) stays as it is.

    model: a `TextClassifier`, or any module that takes token numbers (B, T) or an `Encoded`, or one of these in a wrapper such as
    DistributedDataParallel. embedding: its embedding layer, or that layer's name; left out, it is found. Padding and special
    tokens are never perturbed. Sizes are L2 norms over a whole sequence's vectors.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2))
    >>> ids = torch.tensor([[3, 5]])
    >>> perturber = EmbeddingPerturber(model)
    >>> with perturber.adding(torch.ones(1, 2, 4), ids):
    ...     moved = model(ids)
    >>> bool((moved == model(ids)).all())
    False
    """

    def __init__(self, model: nn.Module, embedding: nn.Embedding | str | None = None) -> None:
        self.model = model
        self.inner = unwrapped(model)
        if embedding is None:
            known = getattr(self.inner, "embedding", None)
            embedding = known if isinstance(known, nn.Embedding) else find_embedding(self.inner)
        elif isinstance(embedding, str):
            try:
                named: Any = self.inner.get_submodule(embedding)
            except AttributeError:
                raise ValueError(f"embedding={embedding!r}: the model has no such part") from None
            if not isinstance(named, nn.Embedding):
                raise ValueError(f"embedding={embedding!r} is {type(named).__name__}: expected an nn.Embedding")
            embedding = named
        self.embedding = embedding

    def prepared(self, x: Encoded | Tensor) -> tuple[Encoded | Tensor, Tensor]:
        """What the model is called with, and (B, T) bool where words are that may be perturbed."""
        encode = getattr(self.inner, "encoded", None)
        if callable(encode):
            x = encode(x)
        if isinstance(x, Encoded):
            return x, x.words
        return x, torch.ones_like(x, dtype=torch.bool) if self._padding is None else x != self._padding

    @property
    def _padding(self) -> int | None:
        return self.embedding.padding_idx

    def zeros(self, words: Tensor) -> Tensor:
        """(B, T, D) no perturbation, in float32 or better."""
        weight = self.embedding.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(*words.shape, self.embedding.embedding_dim, dtype=dtype, device=weight.device)

    def threat(self, words: Tensor, eps: float = 1.0, norm: str = "l2") -> Threat:
        """The set of perturbations (B, T, D) of these words: L2 length eps over each whole sequence."""
        return Threat(norm, eps, bounds=None, mask=words[:, :, None]).for_inputs(self.zeros(words))  # type: ignore[arg-type]

    def steepest(self, gradient: Tensor, words: Tensor, eps: float) -> Tensor:
        """eps · g / ‖g‖₂ (B, T, D), the norm over the words of each sequence; zero where the gradient is."""
        return eps * self.threat(words).steepest(gradient, gradient)

    def normal(self, noise: Noise, words: Tensor, *draw: str | int, low: float | None = None) -> Tensor:
        """(B, T, D) standard normal numbers at the words (with `low`, uniform from it to −low), zero elsewhere: a word has the
        same numbers whatever the padding."""
        place = (words.long().cumsum(1) - 1).clamp_min(0)
        shape, like = (
            (int(place.max()) + 1 if place.numel() else 1, self.embedding.embedding_dim),
            self.zeros(words[:, :1]),
        )
        drawn = (
            noise.normal(shape, *draw, like=like) if low is None else noise.uniform(shape, *draw, like=like, low=low)
        )
        spread = drawn.gather(1, place[:, :, None].expand(-1, -1, shape[1]))
        return torch.where(words[:, :, None], spread, 0)

    @contextmanager
    def adding(self, delta: Tensor | None, x: Encoded | Tensor, where: Tensor | None = None) -> Iterator[Vectors]:
        """Forwards of the model in here, on this x, see their words' vectors moved by delta (B, T, D); None: by a zero whose
        gradient a backward leaves. where: (B, T) bool, other places than the words.

        RuntimeError where the embedding layer did not run, ValueError where shapes differ, and for a compiled model."""
        if any(map(is_compiled, self.model.modules())):
            raise ValueError(
                "a compiled model does not see hooks, which embeddings are perturbed through: leave it uncompiled"
            )
        words = self.prepared(x)[1] if where is None else where
        seen = Vectors(delta)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if output.shape[:2] != words.shape or (delta is not None and delta.shape != output.shape):
                wanted = tuple(words.shape) if delta is None else tuple(delta.shape)
                raise ValueError(f"embeddings of shape {tuple(output.shape)}, and a perturbation for {wanted}")
            seen.vectors, seen.ids = output.detach(), inputs[0]
            if seen._delta is None:
                seen._delta = torch.zeros_like(output, dtype=torch.promote_types(output.dtype, torch.float32))
                seen._delta.requires_grad_(torch.is_grad_enabled())
            moved = output + torch.where(words[:, :, None], seen._delta, 0)
            return moved.to(output.dtype)

        handle = self.embedding.register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()
        if seen.vectors is None:
            raise RuntimeError(
                SILENT.format(layer=f"{type(self.embedding).__name__}{tuple(self.embedding.weight.shape)}")
            )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of one that does nothing but call it, as its `module`: in many processes, or on many devices."""
    while not callable(getattr(model, "encoded", None)) and list(model._modules) == ["module"]:
        model = model.get_submodule("module")
    return model


class Perturbed(nn.Module):
    """A text model as a function of what is added to its word vectors: delta (B, T, D) to logits (B, C).

    What works on inputs (power iteration, attacks) works on this one, at zero. lengths: (B,) of each text's word vectors as one,
    in the forward before.
    """

    lengths: Tensor

    def __init__(self, perturber: EmbeddingPerturber, x: Encoded | Tensor) -> None:
        super().__init__()
        self.model = perturber.model
        self.perturber = perturber
        self.x, self.words = perturber.prepared(x)

    def forward(self, delta: Tensor) -> Tensor:
        with self.perturber.adding(delta, self.x) as seen:
            logits: Tensor = self.model(self.x)
        assert seen.vectors is not None
        self.lengths = torch.where(self.words[:, :, None], seen.vectors, 0).to(delta.dtype).flatten(1).norm(dim=1)
        return logits
