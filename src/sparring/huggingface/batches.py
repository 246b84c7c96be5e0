"""A Trainer's batches and model, as strategies take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparring.text.encoded import Encoded
from sparring.text.frequency import find_embedding
from sparring.text.tokens import Tokens

UNLABELLED = -100  # what Hugging Face's losses skip


class Inputs(nn.Module):
    """A model as the Trainer has wrapped it, called with an `Encoded`: logits (B, C)."""

    def __init__(self, wrapped: nn.Module, bare: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self._embedding = (find_embedding(bare),)  # a tuple, so that it is registered once

    @property
    def embedding(self) -> nn.Embedding:
        return self._embedding[0]

    def forward(self, x: Encoded) -> Tensor:
        answer = self.wrapped(**x.inputs())
        logits: Any = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(answer).__name__
            raise TypeError(f"the model answers with {given}: expected .logits (B, C) of a sequence classification")
        return logits


def encoded(inputs: Mapping[str, Any], tokenizer: Any, pad_id: int | None) -> Encoded:
    """A collator's inputs without the labels. Special tokens are those of `special_tokens_mask` where the collator gives it
    (`return_special_tokens_mask=True`), else the tokenizer's; without either, padding only.

    ValueError, in one line, for inputs without token numbers.
    """
    rest = dict(inputs)
    ids = rest.pop("input_ids", None)
    if not isinstance(ids, Tensor):
        raise ValueError(f"the batch has {', '.join(inputs)}: expected input_ids, whose vectors are perturbed")
    mask, special = rest.pop("attention_mask", None), rest.pop("special_tokens_mask", None)
    if mask is None:
        mask = torch.ones_like(ids) if pad_id is None else ids != pad_id
    if mask.ndim != 2:
        raise ValueError(f"attention_mask of shape {tuple(mask.shape)}: expected (B, T), one row a text")
    if special is None and tokenizer is not None:
        special = torch.isin(ids, Tokens(tokenizer).special_ids.to(ids.device))
    padding = ~mask.bool()
    return Encoded(ids, mask.bool(), padding if special is None else special.bool() | padding, rest)
