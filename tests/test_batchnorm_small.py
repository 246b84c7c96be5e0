"""Parts of batches that are too small for statistics of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparring as sp

THREAT = sp.Linf(0.1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)
    )


def pair() -> tuple[Tensor, Tensor]:
    return torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(2)


@pytest.mark.parametrize("bn", ["auto", "train", "batch", "eval"])
def test_a_part_of_one_is_crafted_beside_its_neighbour(bn: str) -> None:
    x, y = pair()
    shown: list[Tensor] = []
    for strategy in (
        sp.Mixed(sp.FGSM(THREAT), alpha=0.5, fraction=0.5, bn=bn),
        sp.Mixed(sp.FGSM(THREAT), alpha=0.0, bn=bn),
    ):
        model = network()
        for loss in strategy(model, (x, y)):
            model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
            loss.value.backward()
    part, whole = shown
    assert len(part) == len(whole) == 2
    torch.testing.assert_close(part[1], whole[0])  # as it is crafted in the whole batch
    assert torch.equal(part[0], x[1])


def test_a_branch_of_one_is_refused_with_the_reason() -> None:
    strategy = sp.Mixed(sp.FGSM(THREAT), fraction=0.5, bn="split")
    (loss,) = strategy(network(), pair())
    with pytest.raises(ValueError, match=r"Mixed\(bn='split', fraction=0.5\): a branch has one sample of a batch of 2"):
        loss.value  # noqa: B018
