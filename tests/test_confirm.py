"""Votes of a random model: few looks where they agree, more where they leave it open."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparring.borrow import borrow
from sparring.evaluation.confirm import ROUNDS, vote
from sparring.evaluation.pilot import LOOKS


class Coin(nn.Module):
    """Says class 1 with the probability that stands in the input, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return nn.functional.one_hot((torch.rand(len(x)) < x[:, 0]).long(), 2).float()


def voted(chance: float, rounds: int, count: int = 400) -> tuple[Tensor, Tensor, Tensor, int]:
    torch.manual_seed(0)
    model, x, y = Coin(), torch.full((count, 1), chance), torch.zeros(count, dtype=torch.long)
    with borrow(model) as borrowed:
        logits, wrong, asked = vote(borrowed, x, y, {}, LOOKS, rounds)
    return logits, wrong, asked, model.asked


def test_what_25_looks_leave_open_is_not_decided_by_luck() -> None:
    """Of examples that fool in two of five draws a vote of 25 takes one in seven for good."""
    _, few, _, _ = voted(0.4, 1)
    _, more, _, _ = voted(0.4, ROUNDS)
    assert 0.10 < float(few.float().mean()) < 0.21
    assert float(more.float().mean()) < 0.05


def test_only_what_is_open_is_asked_again_and_all_looks_are_told() -> None:
    for chance in (0.0, 0.05, 0.95, 1.0):
        logits, wrong, asked, passes = voted(chance, ROUNDS)
        assert bool((wrong == (chance > 0.5)).all())
        assert torch.equal(logits.argmax(1) != 0, wrong)
        assert asked.float().mean() < 1.02 * LOOKS
        assert int(asked.sum()) == passes
    logits, wrong, asked, passes = voted(0.5, ROUNDS)
    assert torch.equal(logits.argmax(1) != 0, wrong)
    assert int(asked.sum()) == passes
    assert set(asked.tolist()) <= {LOOKS * n for n in range(1, ROUNDS + 1)}
    assert int((asked == LOOKS * ROUNDS).sum()) > 200


def test_one_look_is_one_forward() -> None:
    model, x = Coin(), torch.tensor([[0.0], [1.0]])
    with borrow(model) as borrowed:
        _, wrong, asked = vote(borrowed, x, torch.zeros(2, dtype=torch.long), {})
    assert (wrong.tolist(), asked.tolist(), model.asked) == ([False, True], [1, 1], 2)
