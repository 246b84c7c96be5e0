"""Attacks made to transfer beside those of torchattacks, foolbox and ART, at equal steps: a part of `attacks.py`.

Examples are made on one network and shown to another: the value is the part of the samples, both networks' right answers,
that the other still gets right. Each peer runs with our step size and with the paper's eps / steps, and its better one
counts. Values of DI-FGSM are means over eight seeds, with an interval, because one seed's varies by several points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib import import_module
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from attack_rows import Clock, Contest, Row, half_width
from networks import NETWORKS
from peers import Budget, Peer, art_peers, foolbox_peers, torchattacks_peers

STEPS = 10
DRAWS = 8
PAIRS = (
    ("cifar10-resnet2b", "cifar10-resnet4b", 8 / 255),
    ("cifar10-resnet4b", "cifar10-resnet2b", 8 / 255),
    ("mnist-undefended", "mnist-certified", 0.2),
    ("mnist-certified", "mnist-undefended", 0.2),
    ("mnist-pgd-trained", "mnist-undefended", 0.3),
    ("mnist-fgsm-trained", "mnist-certified", 0.3),
    ("fashion-pgd-trained", "fashion-undefended", 0.1),
    ("fashion-undefended", "fashion-fgsm-trained", 0.1),
)


def torchattacks_diverse(decay: float) -> Peer:
    attack = import_module("torchattacks").DIFGSM
    return lambda net, x, y, b: attack(net, eps=b.eps, steps=b.steps, decay=decay, **b.step("alpha"))(x, y)


def momentum_peers() -> dict[str, Peer]:
    libraries = {"torchattacks": torchattacks_peers, "foolbox": foolbox_peers, "art": art_peers}
    return {library: make()["mifgsm"] for library, make in libraries.items()}


ATTACKS: dict[str, tuple[Callable[[sp.Threat], Any], Callable[[], dict[str, Peer]]]] = {
    "MIFGSM": (lambda t: sp.MIFGSM(t, STEPS), momentum_peers),
    "DIFGSM": (lambda t: sp.DIFGSM(t, STEPS), lambda: {"torchattacks": torchattacks_diverse(1.0)}),
    "DIFGSM, no momentum": (
        lambda t: sp.DIFGSM(t, STEPS, decay=0.0),
        lambda: {"torchattacks": torchattacks_diverse(0.0)},
    ),
}


def contests(samples: int, seed: int) -> Iterator[Contest]:
    for source, target, eps in PAIRS:
        if NETWORKS[source].missing or NETWORKS[target].missing:
            continue
        for attack in ATTACKS:
            key = f"transfer {attack} {source} > {target} {eps:.3f} n={samples} seed={seed}"
            yield Contest(key, partial(measure, attack, source, target, eps, samples, seed))


@lru_cache(maxsize=4)
def network(name: str) -> nn.Module:
    return NETWORKS[name].load()


def measure(attack: str, source: str, target: str, eps: float, samples: int, seed: int) -> Row:
    net, other = network(source), network(target)
    x, y = NETWORKS[source].test_data(samples)
    both = (net(x).argmax(1) == y) & (other(x).argmax(1) == y)
    x, y = x[both], y[both]
    ours, peers = ATTACKS[attack]
    seeds = [seed + i for i in range(DRAWS if attack.startswith("DIFGSM") else 1)]
    with Clock() as clock:
        made = [ours(sp.Linf(eps))(net, x, y, seed=draw) for draw in seeds]
    seconds = {"sparring": clock.seconds / len(seeds)}
    values: dict[str, list[float]] = {}
    for library, peer in peers().items():
        with Clock() as clock:
            runs = [
                [standing(other, crafted(peer, net, x, y, Budget(eps, STEPS, step), draw), y) for draw in seeds]
                for step in (eps / 4, eps / STEPS)
            ]
        seconds[library] = clock.seconds / len(runs) / len(seeds)
        values[library] = min(runs, key=fmean)
    values = {"sparring": [standing(other, each.x, y) for each in made], **values}
    means = {library: fmean(each) for library, each in values.items()}
    return Row(
        attack=f"{attack} (transfer)",
        norm="linf",
        network=f"{source} → {target}",
        measure="robust accuracy",
        samples=len(y),
        seed=seed,
        ours=means.pop("sparring"),
        peers=means,
        passes={"sparring": (made[0].forwards + made[0].backwards) / len(y)},
        settings={"steps": STEPS, "eps": eps},
        seconds=seconds,
        seeds=len(seeds),
        spread={library: half_width(each) for library, each in values.items()} if len(seeds) > 1 else {},
    )


def crafted(peer: Peer, net: nn.Module, x: Tensor, y: Tensor, budget: Budget, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return peer(net, x, y, budget)


def standing(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())
