"""Attacks that go for several target classes, one after the other: for each sample its likeliest wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparring.ascent import Pool
from sparring.attacks.base import Attack
from sparring.borrow import Borrowed
from sparring.rows import Rows


@dataclass(frozen=True)
class RivalAttack(Attack):
    """rivals: how many of the other classes to go for, in the order of the clean logits, each with all the restarts; any
    wrong prediction is a success. A model with fewer classes has fewer rivals. A direct call asks for the clean logits
    first, one forward a sample. None: no targets but those that the call gives.
    """

    rivals: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rivals is None:
            return
        if not isinstance(self.rivals, int) or self.rivals < 1:
            raise ValueError(f"{self.name}(rivals={self.rivals!r}): expected a whole number, at least 1, or None")
        if self.targets is not None:
            raise ValueError(f"{self.name}(rivals={self.rivals}, targets={self.targets!r}): expected one of the two")

    @property
    def rounds(self) -> int:
        return self.restarts * (self.rivals or 1)

    @property
    def needs_reference(self) -> bool:
        return self.rivals is not None or super().needs_reference

    def aim(self, rows: Rows) -> None:
        """Set the targets of the round that begins."""
        if self.rivals is None:
            return
        if rows.targets is not None and not bool(rows.restart.any()):
            raise ValueError(
                f"{self.name}(rivals={self.rivals}) chooses its targets itself: to give them set rivals=None"
            )
        assert rows.reference is not None
        rows.targets = rival(rows.reference, rows.y, rows.restart // self.restarts)

    def again(self, rows: Rows) -> Tensor:
        """(N,) bool on the CPU: the samples at the end of a round that begin another."""
        if self.rivals is None:
            return rows.restart < self.restarts
        assert rows.reference is not None
        return rows.restart < self.restarts * min(self.rivals, rows.reference.shape[1] - 1)

    def aiming(self, make: type[Pool], model: Borrowed, *, goal: bool = True, **settings: Any) -> Pool:
        """A loop in which whoever goes for a rival has success with any wrong class."""
        goal = goal and self.rivals is None
        return make(model, self, self.climbs(), goal=goal, rounds=self.rounds, **settings)  # type: ignore[arg-type]

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        return self.aiming(Pool, model, **settings)


def rival(logits: Tensor, y: Tensor, rank: Tensor) -> Tensor:
    """(B,) int64: the class of that rank (B,), from 0, among the classes other than y, in the order of the logits (B, C)."""
    others = logits.detach().float().scatter(1, y[:, None], -torch.inf)
    order = others.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, rank.to(order.device)[:, None]).squeeze(1)
