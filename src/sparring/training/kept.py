"""Perturbations kept from one epoch to the next, one for each sample of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparring.threat import per_sample


class Kept:
    """A table (N, *S) of perturbations in float16, on the inputs' device; it grows with the largest index that it meets.

    Zheng et al. (2020). It takes 2 bytes an entry: 92 MB for MNIST, 307 MB for CIFAR-10.
    """

    def __init__(self) -> None:
        self.table: Tensor | None = None
        self.known = torch.zeros(0, dtype=torch.bool)

    def knows(self, indices: Tensor) -> Tensor:
        """(B,) bool: for which of the samples `indices` (B,) something is kept."""
        inside = indices < len(self.known)
        return inside.clone() if not bool(inside.any()) else inside & self.known[indices.clamp_max(len(self.known) - 1)]

    def start(self, x: Tensor, indices: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
        """x (B, *S) moved by what is kept for each of these samples; where nothing is, what `fresh` (B, *S) gives."""
        known = self.knows(indices)
        if self.table is None or not bool(known.any()):
            return fresh()
        if self.table.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"inputs of shape {tuple(x.shape[1:])}, but perturbations of shape {tuple(self.table.shape[1:])} were kept: "
                "keep=True needs inputs of one size"
            )
        self.table = self.table.to(x.device)
        moved = x + self.table[indices.clamp_max(len(self.table) - 1).to(x.device)].to(x.dtype)
        return moved if bool(known.all()) else torch.where(per_sample(known.to(x.device), moved), moved, fresh())

    def put(self, indices: Tensor, change: Tensor, crew: Any = None) -> None:
        """Keep these (B, *S). crew: processes that train together, of which another may meet these samples in the next epoch:
        all of them keep what each has made."""
        if crew is None:
            self._write(indices, change)
            return
        for theirs, made in crew.gather((indices, change.to(torch.float16).cpu())):
            self._write(theirs, made.to(change.device))

    def _write(self, indices: Tensor, change: Tensor) -> None:
        need = int(indices.max()) + 1
        if self.table is None:
            self.table = torch.zeros((need, *change.shape[1:]), dtype=torch.float16, device=change.device)
        if need > len(self.table):  # by more than what is needed, so that a first epoch doesn't copy at each batch
            more = max(need - len(self.table), len(self.table) // 8)
            self.table = torch.cat([self.table, self.table.new_zeros((more, *self.table.shape[1:]))])
        if len(self.known) < len(self.table):
            self.known = torch.cat([self.known, torch.zeros(len(self.table) - len(self.known), dtype=torch.bool)])
        self.table[indices.to(self.table.device)] = change.to(torch.float16)
        self.known[indices] = True

    def state_dict(self) -> dict[str, Any]:
        if self.table is None:
            return {}
        count = int(self.known.nonzero().max()) + 1
        return {"table": self.table[:count].clone(), "known": self.known[:count].clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.table = state["table"].clone() if state else None
        self.known = state["known"].cpu().clone() if state else torch.zeros(0, dtype=torch.bool)
