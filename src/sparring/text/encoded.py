"""A batch of texts as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Texts as a model takes them.

    ids: (B, T) int64 token numbers. mask: (B, T) bool, True where there is a token, False where there is padding.
    special: (B, T) bool, True where the token is no part of the text ([CLS], [SEP], [EOS], padding).
    extras: other inputs of the model by name, each (B, T), such as token_type_ids.
    """

    ids: Tensor
    mask: Tensor
    special: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def pad(cls, rows: Sequence[Sequence[int]], pad_id: int, special_ids: Tensor, *, left: bool = False) -> Encoded:
        """Token lists of any lengths, padded on the right, or on the left, to the longest."""
        width = max(map(len, rows), default=0)
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row, dtype=torch.long)
            mask[i, where] = True
        return cls(ids, mask, torch.isin(ids, special_ids) | ~mask)

    @classmethod
    def of_ids(
        cls, ids: Tensor, pad_id: int, special_ids: Tensor, *, left: bool = False, fill: int | None = None
    ) -> Encoded:
        """Token numbers (B, T) padded with `fill`, left out `pad_id`, at one end, which the model sees as `pad_id`; columns that
        are padding in every row are cut off."""
        there = ids != (pad_id if fill is None else fill)
        ids = torch.where(there, ids, pad_id)
        real = there.flip(1).cummax(1).values.flip(1) if not left else there.cummax(1).values
        columns = real.any(0)
        columns[-1 if left else 0] = True  # a batch of nothing keeps a column
        ids, real = ids[:, columns], real[:, columns]
        return cls(ids, real, torch.isin(ids, special_ids.to(ids.device)) | ~real)

    @property
    def words(self) -> Tensor:
        """(B, T) bool: where there is text, which may be perturbed."""
        return self.mask & ~self.special

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def inputs(self) -> dict[str, Tensor]:
        """The model's arguments, by the names that Hugging Face gave them."""
        return {"input_ids": self.ids, "attention_mask": self.mask.long(), **self.extras}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Encoded:
        def move(part: Tensor) -> Tensor:
            return part.to(device, non_blocking=non_blocking)

        extras = {name: move(part) for name, part in self.extras.items()}
        return replace(self, ids=move(self.ids), mask=move(self.mask), special=move(self.special), extras=extras)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Encoded:
        """Some of the rows: a slice, or a tensor of numbers or of bools."""
        extras = {name: part[rows] for name, part in self.extras.items()}
        return Encoded(self.ids[rows], self.mask[rows], self.special[rows], extras)


def is_tokens(x: object) -> bool:
    """Whether these are texts: an `Encoded`, or token numbers (B, T) int64."""
    return isinstance(x, Encoded) or (isinstance(x, Tensor) and x.dtype == torch.int64 and x.ndim == 2)
