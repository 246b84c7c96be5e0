"""Our attacks leave no more samples robust than the same attacks of torchattacks, foolbox and ART with the same budget."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring import data

LIBRARIES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}
ABSENT = [package for module, package in LIBRARIES.items() if importlib.util.find_spec(module) is None]

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(bool(ABSENT), reason=f"{', '.join(ABSENT)} not installed: `make bench` installs the peers"),
]

if not ABSENT:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import strength
    from networks import pgd, strided
    from peers import PEERS


@pytest.fixture(scope="module", params=["undefended", "adversarially trained"])
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained for a few seconds, and 200 test images with labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = strided(8, 50)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.004)
        x, y = data.open("fashion-mnist", split="train").tensors(4000)
        for _ in range(4):
            for rows in torch.randperm(len(x)).split(100):
                inputs = x[rows] if request.param == "undefended" else pgd(net, x[rows], y[rows], 0.05, 0.04, 2)
                optimizer.zero_grad()
                F.cross_entropy(net(inputs), y[rows]).backward()
                optimizer.step()
    return net.eval().requires_grad_(False), *data.open("fashion-mnist", split="test").tensors(200)


EPS = {"linf": 0.05, "l2": 0.75, "l1": 6.0}


@pytest.mark.parametrize("contest", strength.CONTESTS if not ABSENT else [], ids=lambda c: c.name)
def test_no_peer_is_stronger(contest, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    eps = EPS[contest.norm]
    found = strength.contest(contest, net, x, y, eps, eps / 4)
    clean = float((net(x).argmax(1) == y).float().mean())
    assert clean > 0.6, "the network learned nothing"
    assert found["sparring"] < clean, found
    assert len(found) > 1, f"no peer has {contest.name}"
    over = strength.excess({"robust": found})
    # 0.5 points are 1 of 200 samples
    assert over is not None
    assert over <= strength.TARGET + 1e-6, found


def test_every_library_is_called() -> None:
    assert {"torchattacks", "foolbox", "ART"} <= set(PEERS)
