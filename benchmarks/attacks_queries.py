"""Attacks without gradients beside those of torchattacks, foolbox and ART, at equal queries: a part of `attacks.py`.

Square: robust accuracy that each leaves, ours and torchattacks' and ART's given the same number of queries a sample.
HopSkipJump: median norm of the change. foolbox and ART are told how many steps to take, not how many queries, so each runs
first, its queries are counted, and ours gets as many (a row for each peer). A peer's failures count as norms of inf.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparring as sp
from attack_rows import Contest, Row, median
from networks import NETWORKS
from sparring.attacks.hopskipjump import HopSkipJump

L2 = {"mnist": 2.0, "fashion-mnist": 1.0, "cifar10": 0.3}
SQUARE = ("mnist-pgd-trained", "mnist-fgsm-trained", "mnist-certified", "cifar10-resnet2b", "cifar10-resnet4b")
BUDGETS = (500, 1000, 5000)
HOP = ("mnist-undefended", "mnist-pgd-trained", "mnist-certified", "cifar10-resnet2b")
ROUNDS = (3, 10)


class Counting(nn.Module):
    """The network, and how many samples have passed through it. It takes float64 too, which ART makes of some inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.queries = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        with torch.no_grad():
            return self.net(x.float())


def contests(samples: int, seed: int) -> Iterator[Contest]:
    for name in SQUARE:
        for norm in ("linf", "l2"):
            for queries in BUDGETS:
                key = f"Square {norm} {name} {queries} n={samples} seed={seed}"
                yield Contest(key, partial(square, name, norm, queries, samples, seed))
    for name in HOP:
        for norm in ("linf", "l2"):
            for library in HOP_PEERS:
                for rounds in ROUNDS:
                    key = f"HopSkipJump {norm} {name} {library} {rounds} rounds n={samples} seed={seed}"
                    yield Contest(key, partial(hop, name, norm, library, rounds, samples, seed))


def radius(name: str, norm: str) -> float:
    return NETWORKS[name].eps if norm == "linf" else L2[NETWORKS[name].dataset]


@lru_cache(maxsize=1)
def attacked(name: str, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network and the first test images that it gets right."""
    net = NETWORKS[name].load()
    x, y = NETWORKS[name].test_data(samples)
    with torch.no_grad():
        right = net(x).argmax(1) == y
    return net, x[right], y[right]


def square(name: str, norm: str, queries: int, samples: int, seed: int) -> Row:
    net, x, y = attacked(name, samples)
    eps = radius(name, norm)
    threat = sp.Linf(eps) if norm == "linf" else sp.L2(eps)

    def ours(counted: nn.Module) -> Tensor:
        return sp.Square(threat, queries=queries, stop_when_fooled=True)(counted, x, y, seed=seed).x

    runs: dict[str, Callable[[nn.Module], Tensor]] = {"sparring": ours}
    runs |= {library: partial(run, x, y, norm, eps, queries, seed) for library, run in SQUARE_PEERS.items()}
    robust, passes, seconds = {}, {}, {}
    for library, run in runs.items():
        counted, start = Counting(net), time.perf_counter()
        z = run(counted)
        seconds[library], passes[library] = time.perf_counter() - start, counted.queries / len(x)
        with torch.no_grad():
            held = (net(z).argmax(1) == y) | (threat.size(x, z) > 1.01 * eps)
        robust[library] = int(held.sum()) / samples
    return Row(
        "Square", norm, name, "robust accuracy", samples, seed, robust.pop("sparring"), robust, passes,
        {"queries": queries, "eps": eps}, seconds,
    )  # fmt: skip


def torchattacks_square(x: Tensor, y: Tensor, norm: str, eps: float, queries: int, seed: int, net: nn.Module) -> Tensor:
    attack = importlib.import_module("torchattacks").Square(
        net, norm=norm.capitalize(), eps=eps, n_queries=queries, seed=seed
    )
    return attack(x, y)


def art_square(x: Tensor, y: Tensor, norm: str, eps: float, queries: int, seed: int, net: nn.Module) -> Tensor:
    np.random.seed(seed)  # noqa: NPY002  # what the library draws from
    attack = importlib.import_module("art.attacks.evasion").SquareAttack(
        art_classifier(net, x), norm=np.inf if norm == "linf" else 2, eps=eps, max_iter=queries, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def art_classifier(net: nn.Module, x: Tensor) -> Any:
    make = importlib.import_module("art.estimators.classification").PyTorchClassifier
    return make(net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu")


SQUARE_PEERS = {"torchattacks": torchattacks_square, "ART": art_square}


def hop(name: str, norm: str, library: str, rounds: int, samples: int, seed: int) -> Row:
    net, x, y = attacked(name, samples)
    counted, start = Counting(net), time.perf_counter()
    z = HOP_PEERS[library](x, y, norm, rounds, seed, counted)
    seconds, passes = {library: time.perf_counter() - start}, {library: counted.queries / len(x)}
    threat = sp.Threat(norm, math.inf)  # type: ignore[arg-type]
    with torch.no_grad():
        fooled = net(z).argmax(1) != y
    theirs = torch.where(fooled, threat.size(x, z), torch.inf)
    counted, start = Counting(net), time.perf_counter()
    ours = HopSkipJump(threat, queries=int(passes[library]))(counted, x, y, seed=seed).norm
    seconds["sparring"], passes["sparring"] = time.perf_counter() - start, counted.queries / len(x)
    return Row(
        "HopSkipJump", norm, name, "median norm", len(x), seed, median(ours.tolist()), {library: median(theirs.tolist())},
        passes, {"queries": int(passes[library]), "rounds": rounds}, seconds,
    )  # fmt: skip


def foolbox_hop(x: Tensor, y: Tensor, norm: str, rounds: int, seed: int, net: nn.Module) -> Tensor:
    foolbox = importlib.import_module("foolbox")
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what the library draws from
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1))
    attack = foolbox.attacks.HopSkipJumpAttack(steps=rounds, constraint=norm)
    return attack.run(model, x, foolbox.criteria.Misclassification(y))


def art_hop(x: Tensor, y: Tensor, norm: str, rounds: int, seed: int, net: nn.Module) -> Tensor:
    np.random.seed(seed)  # noqa: NPY002  # what the library draws from
    attack = importlib.import_module("art.attacks.evasion").HopSkipJump(
        art_classifier(net, x), norm=np.inf if norm == "linf" else 2, max_iter=rounds, verbose=False, batch_size=128
    )
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


HOP_PEERS = {"foolbox": foolbox_hop, "ART": art_hop}
