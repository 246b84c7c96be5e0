"""The embedding layer: found, and normalised so that it can't be grown out of a perturbation's reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrequencyNormalizedEmbedding(nn.Embedding):
    """(e − E[e]) / √Var[e], with the words' frequencies in the training texts as probabilities. Miyato et al. (2017).

    Recomputed from the weights at every forward: each number of a vector has mean 0 and variance 1 over the corpus whatever
    the weights are, so a perturbation of L2 length eps can't be made small by growing them. Multiplying all weights by a
    number, or adding one vector to all, changes nothing. `padding_idx` stays zero.

    counts: (num_embeddings,) how often each token stands in the training texts; ValueError where fewer than two do.
    """

    counts: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, counts: Tensor, padding_idx: int | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.register_buffer("counts", torch.zeros(num_embeddings))
        self.count(counts)

    def count(self, counts: Tensor) -> None:
        """Take other counts (num_embeddings,)."""
        counts = counts.detach().to(self.weight.device, torch.float64).clone()
        if counts.shape != (self.num_embeddings,) or not bool((counts >= 0).all()):
            raise ValueError(
                f"counts of shape {tuple(counts.shape)}: expected ({self.num_embeddings},) numbers, none negative"
            )
        if self.padding_idx is not None:
            counts[self.padding_idx] = 0
        if int((counts > 0).sum()) < 2:
            raise ValueError("counts: fewer than two tokens occur, so their vectors have no variance")
        self.counts = counts.to(torch.promote_types(self.weight.dtype, torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrequencyNormalizedEmbedding:
        """As for every module, but that counts stay out of half precision, which ends at 65,504."""
        before = self.counts
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.counts.dtype.itemsize < torch.float32.itemsize:
            self.counts = before.to(self.counts.device)
        return self

    @classmethod
    def of(cls, embedding: nn.Embedding, counts: Tensor) -> FrequencyNormalizedEmbedding:
        """One with the weights of an ordinary layer. (Its vectors are others: a network trained on those must learn anew.)"""
        made = cls(embedding.num_embeddings, embedding.embedding_dim, counts, embedding.padding_idx)
        made.to(embedding.weight.device, embedding.weight.dtype).load_state_dict(
            {"weight": embedding.weight, "counts": made.counts}
        )
        return made

    def moments(self) -> tuple[Tensor, Tensor]:
        """E[e] and √Var[e], (D,) each, of the weights as they are; in float32 or better."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        share = (self.counts / self.counts.sum()).to(weight.dtype)
        mean = share @ weight
        spread = share @ (weight - mean).square()
        return mean, spread.clamp_min(torch.finfo(spread.dtype).tiny).sqrt()

    def forward(self, input: Tensor) -> Tensor:
        mean, deviation = self.moments()
        found = ((F.embedding(input, self.weight) - mean) / deviation).to(self.weight.dtype)
        return found if self.padding_idx is None else torch.where((input == self.padding_idx)[..., None], 0, found)


def install(model: nn.Module, counts: Tensor, old: nn.Embedding | None = None) -> FrequencyNormalizedEmbedding:
    """Puts one in the place of the model's embedding layer, with its weights. old: that layer; left out, it is found."""
    old = find_embedding(model) if old is None else old
    new = FrequencyNormalizedEmbedding.of(old, counts)
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return new


def find_embedding(model: nn.Module) -> nn.Embedding:
    """The layer that turns token numbers into vectors: what `get_input_embeddings()` says, or the one `nn.Embedding`.

    ValueError where there is none, or where several could be meant.
    """
    says = getattr(model, "get_input_embeddings", None)
    found = says() if callable(says) else None
    if isinstance(found, nn.Embedding):
        return found
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    if len(layers) != 1:
        several = f"has several, {', '.join(layers)}" if layers else "has none"
        raise ValueError(
            f"the embedding layer of {type(model).__name__} is not to be found (it {several}): give embedding="
        )
    return next(iter(layers.values()))


def count_tokens(rows: Iterable[Sequence[int]], size: int) -> Tensor:
    """(size,) how often each token number occurs."""
    parts = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.bincount(torch.cat(parts), minlength=size) if parts else torch.zeros(size)
