"""What is wrong with model, data or device shows in the estimate as in the evaluation: in one line."""

import pytest
import torch
from torch import nn

import sparring as sp
from sparring.evaluation import estimate

X, Y = torch.rand(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])


def test_labels_that_the_model_does_not_have() -> None:
    for ask in (estimate, sp.evaluate):
        with pytest.raises(ValueError, match=r"y holds classes from 0 to 2, the model has 2"):
            ask(nn.Linear(5, 2), (X, Y), sp.Linf(0.1))  # type: ignore[operator]


def test_no_labels() -> None:
    with pytest.raises(TypeError, match="y is NoneType: expected class numbers"):
        sp.PGD(sp.Linf(0.1))(nn.Linear(5, 3), X, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there() -> None:
    net = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="device='cuda' can't be used here"):
        sp.evaluate(net, (X, Y), sp.Linf(0.1), device="cuda")
    assert next(net.parameters()).device.type == "cpu"


def test_dir_is_the_public_face() -> None:
    assert dir(sp) == sorted(sp.__all__)
