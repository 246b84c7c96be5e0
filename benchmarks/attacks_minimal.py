"""The searches for the smallest perturbation, beside those of adv-lib, foolbox and torchattacks: a part of `attacks.py`.

Everybody attacks the first test images that the network gets right, with as many gradient steps. The value is the median norm
over them, counted by us: a peer's example that does not fool has the norm inf. Where the value hangs on a step size (FMN, C&W)
a peer is run with its default and with a second setting, and the better one counts.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from attack_rows import Contest, Row, median
from networks import NETWORKS
from peers import unused_modules
from sparring.attacks import Attack

NETS = ("mnist-pgd-trained", "mnist-undefended", "cifar10-resnet2b", "fashion-undefended")
ORDER = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}
SEARCHES, EACH = 6, 50  # of Carlini and Wagner's attack


class Counting(nn.Module):
    """The network, and how many samples have passed through it, forwards and backwards."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        logits: Tensor = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.passes += len(gradient)


Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


def adv_lib(name: str, **settings: Any) -> Run:
    with unused_modules("torchvision", "visdom"):
        attack = getattr(importlib.import_module("adv_lib.attacks"), name)
    return lambda net, x, y: attack(net, x, y, **settings)


def foolbox(name: str, **settings: Any) -> Run:
    lib = importlib.import_module("foolbox")
    attack = getattr(lib.attacks, name)(**settings)
    return lambda net, x, y: attack.run(lib.PyTorchModel(net, bounds=(0, 1)), x, lib.criteria.Misclassification(y))


def torchattacks(name: str, **settings: Any) -> Run:
    lib = importlib.import_module("torchattacks")
    return lambda net, x, y: getattr(lib, name)(net, **settings)(x, y)


def fmn(norm: str, steps: int) -> tuple[Attack, dict[str, list[Run]]]:
    name = {"linf": "LInf", "l2": "L2", "l1": "L1", "l0": "L0"}[norm] + "FMNAttack"
    peers = {
        "adv-lib": [adv_lib("fmn", norm=ORDER[norm], steps=steps, α_init=first) for first in (1.0, 10.0)],
        "foolbox": [foolbox(name, steps=steps, max_stepsize=first) for first in (1.0, 10.0)],
    }
    return sp.FMN(sp.Threat(norm, math.inf), steps=steps), peers


def ddn(norm: str, steps: int) -> tuple[Attack, dict[str, list[Run]]]:
    peers = {"adv-lib": [adv_lib("ddn", steps=steps, levels=None)], "foolbox": [foolbox("DDNAttack", steps=steps)]}
    return sp.DDN(sp.Threat(norm, math.inf), steps=steps), peers


def carlini_wagner(norm: str, steps: int) -> tuple[Attack, dict[str, list[Run]]]:
    ours = sp.CarliniWagner(sp.Threat(norm, math.inf), steps=steps, search_steps=SEARCHES)
    each = steps // SEARCHES
    peers = {
        "adv-lib": [
            adv_lib("carlini_wagner_l2", binary_search_steps=SEARCHES, max_iterations=each, **more)
            for more in ({}, {"learning_rate": ours.lr, "initial_const": ours.c})
        ],
        "foolbox": [
            foolbox("L2CarliniWagnerAttack", binary_search_steps=SEARCHES, steps=each, **more)
            for more in ({}, {"stepsize": ours.lr, "initial_const": ours.c})
        ],
        "torchattacks": [torchattacks("CW", steps=steps, c=ours.c, lr=lr) for lr in (0.01, ours.lr)],
    }
    return ours, peers


def deepfool(norm: str, steps: int) -> tuple[Attack, dict[str, list[Run]]]:
    peers = {
        "adv-lib": [adv_lib("df", steps=steps, norm=ORDER[norm])],
        "foolbox": [foolbox("L2DeepFoolAttack" if norm == "l2" else "LinfDeepFoolAttack", steps=steps)],
    }
    if norm == "l2":
        peers["torchattacks"] = [torchattacks("DeepFool", steps=steps)]
    return sp.DeepFool(sp.Threat(norm, math.inf), steps=steps), peers


MAKERS: dict[str, tuple[Any, tuple[str, ...], int]] = {
    "FMN": (fmn, ("linf", "l2", "l1", "l0"), 100),
    "DDN": (ddn, ("l2",), 100),
    "DeepFool": (deepfool, ("l2", "linf"), 50),
    "CarliniWagner": (carlini_wagner, ("l2",), SEARCHES * EACH),
}


def contests(samples: int, seed: int) -> Iterator[Contest]:
    for attack, (_, norms, steps) in MAKERS.items():
        for norm in norms:
            for name in NETS:
                key = f"{attack} {norm} {name} {steps} n={samples} seed={seed}"
                yield Contest(key, partial(measure, attack, norm, name, steps, samples, seed))


@lru_cache(maxsize=1)
def attacked(name: str, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network and the first `samples` test images that it gets right."""
    net = NETWORKS[name].load()
    x, y = NETWORKS[name].test_data(2 * samples)
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero().flatten()[:samples]
    return net, x[right], y[right]


def measure(attack: str, norm: str, name: str, steps: int, samples: int, seed: int) -> Row:
    net, x, y = attacked(name, samples)
    ours, rivals = MAKERS[attack][0](norm, steps)
    values: dict[str, float] = {}
    passes: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for library, runs in {"sparring": [partial(_call, ours, seed)], **rivals}.items():
        for run in runs:
            torch.manual_seed(seed)
            counted, start = Counting(net).eval(), time.perf_counter()
            z = run(counted, x, y)
            took, value = time.perf_counter() - start, median_norm(net, ours.threat, x, y, z)
            if value <= values.get(library, math.inf):
                values[library], passes[library], seconds[library] = value, counted.passes / len(x), took
    own = values.pop("sparring")
    return Row(attack, norm, name, "median norm", len(x), seed, own, values, passes, {"steps": steps}, seconds)


def _call(attack: Attack, seed: int, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return attack(net, x, y, seed=seed).x


def median_norm(net: nn.Module, threat: sp.Threat, x: Tensor, y: Tensor, z: Tensor) -> float:
    """inf where it does not fool, or leaves the box."""
    with torch.no_grad():
        fools = (net(z).argmax(1) != y) & ((z >= -1e-6) & (z <= 1 + 1e-6)).flatten(1).all(1)
    return median(torch.where(fools, threat.size(x, z).float(), torch.inf).tolist())
