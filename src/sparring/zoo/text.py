"""A small recurrent network for texts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LSTMClassifier(nn.Module):
    """Embedding, one LSTM, one hidden layer, as in Miyato, Dai & Goodfellow (2017).

    input_ids: (B, T) int64, padded on the right with 0. attention_mask: (B, T), 0 where there is padding, which changes
    nothing. Dropout falls on the embeddings, with one mask for all of a text's tokens, and on the hidden layer.
    """

    settings: dict[str, Any]

    def __init__(
        self, vocabulary: int, classes: int, embedding: int, hidden: int, dense: int, dropout: float, pooling: str
    ) -> None:
        super().__init__()
        if pooling not in ("last", "mean"):
            raise ValueError(
                f"pooling={pooling!r}: expected 'last' (state after the last token) or 'mean' (of all states)"
            )
        self.classes, self.pooling, self.dropout = classes, pooling, dropout
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, dense)
        self.out = nn.Linear(dense, classes)

    def states(self, input_ids: Tensor) -> Tensor:
        """The LSTM's state (B, T, hidden) behind each token: what a language model predicts the next one from."""
        e = self.embedding(input_ids)
        shared = F.dropout(torch.ones_like(e[:, :1]), self.dropout, self.training)
        # oneDNN has no half-precision LSTM that trains on every CPU, so there autocast leaves this layer alone
        with torch.autocast("cpu", enabled=False) if e.device.type == "cpu" else nullcontext():
            states: Tensor = self.lstm((e * shared).to(self.lstm.weight_ih_l0.dtype))[0]
        return states

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, mask = self.states(input_ids), attention_mask.bool()
        if self.pooling == "mean":
            total = states.masked_fill(~mask[:, :, None], 0).sum(1)
            pooled = total / mask.sum(1, keepdim=True).clamp(min=1)
        else:  # padding comes behind, so no state up to the last token has seen it
            last = (mask.sum(1) - 1).clamp(min=0)
            pooled = states[torch.arange(len(states), device=states.device), last]
        logits: Tensor = self.out(F.dropout(F.relu(self.dense(pooled)), self.dropout, self.training))
        return logits


def lstm(
    vocabulary: int = 20_000, classes: int = 2, embedding: int = 256, hidden: int = 256, dense: int = 30,
    dropout: float = 0.5, pooling: str = "last",
) -> LSTMClassifier:  # fmt: skip
    """`LSTMClassifier`: token numbers below `vocabulary` to logits (B, classes); pooling: "last" or "mean"."""
    args = dict(locals())
    network = LSTMClassifier(vocabulary, classes, embedding, hidden, dense, dropout, pooling)
    network.settings = {"name": "lstm", **args}
    return network
