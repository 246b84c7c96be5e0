"""Auto-PGD and FAB beside those of adv-lib, torchattacks and ART: a part of `attacks.py`.

Everybody attacks the first test images that the network gets right, with as many steps, restarts and target classes. Auto-PGD
is measured by the robust accuracy that it leaves at one radius (a peer's example may be 1% outside the ball), FAB by the
median norm, and where a peer stops at eps by robust accuracy too. Random starts differ between the libraries.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from attack_rows import Contest, Row
from attacks_minimal import Counting, Run, adv_lib, attacked, median_norm, torchattacks
from networks import NETWORKS
from sparring.attacks import Attack

NETS = ("cifar10-resnet2b", "mnist-pgd-trained", "mnist-fgsm-trained")
RADII = {
    "l2": {"mnist": 2.0, "fashion-mnist": 1.0, "cifar10": 0.3},
    "l1": {"mnist": 10.0, "fashion-mnist": 6.0, "cifar10": 2.5},
}
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
TORCHATTACKS = {"linf": "Linf", "l2": "L2"}
RIVALS = 9
UNCOUNTED = 3  # with shrinking balls: adv-lib takes the first gradient of each of the three beside its steps

Made = tuple[Attack, dict[str, Run]]


def art(norm: str, eps: float, steps: int, loss: str) -> Run:
    evasion = importlib.import_module("art.attacks.evasion")
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = classifier(net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu")
        attack = evasion.AutoProjectedGradientDescent(
            wrapped, norm=ORDER[norm], eps=eps, eps_step=2 * eps, max_iter=steps, nb_random_init=1, batch_size=len(x),
            loss_type=loss, verbose=False,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return run


def apgd(norm: str, eps: float, steps: int, loss: str) -> Made:
    short = {"cross-entropy": "ce", "dlr": "dlr"}[loss]
    peers = {"adv-lib": adv_lib("apgd", eps=eps, norm=ORDER[norm], n_iter=steps, loss_function=short)}
    if norm in TORCHATTACKS:
        peers["torchattacks"] = torchattacks("APGD", norm=TORCHATTACKS[norm], eps=eps, steps=steps, loss=short)
    if loss == "cross-entropy":
        peers["ART"] = art(norm, eps, steps, "cross_entropy")
    return sp.APGD(sp.Threat(norm, eps), steps=steps, objective=loss, stop_when_fooled=True), peers


def apgd_targeted(norm: str, eps: float, steps: int) -> Made:
    large = norm == "l1"
    peers = {
        "adv-lib": adv_lib(
            "apgd_targeted", eps=eps, norm=ORDER[norm], n_iter=steps, num_targets=RIVALS, use_large_reps=large
        )
    }
    if norm in TORCHATTACKS:
        peers["torchattacks"] = torchattacks(
            "APGDT", norm=TORCHATTACKS[norm], eps=eps, steps=steps, n_classes=RIVALS + 1
        )
    settings: dict[str, Any] = {"objective": "dlr", "rivals": RIVALS, "shrinking": large}
    steps += UNCOUNTED if large else 0
    return sp.APGD(sp.Threat(norm, eps), steps=steps, stop_when_fooled=True, **settings), peers


def apgd_shrinking(norm: str, eps: float, steps: int) -> Made:
    peers = {
        "adv-lib": adv_lib("apgd", eps=eps, norm=ORDER[norm], n_iter=steps, loss_function="ce", use_large_reps=True)
    }
    return sp.APGD(sp.Threat(norm, eps), steps=steps + UNCOUNTED, shrinking=True, stop_when_fooled=True), peers


def fab(norm: str, eps: float, steps: int) -> Made:
    """The search to its end."""
    peers = {"adv-lib": adv_lib("fab", norm=ORDER[norm], n_iter=steps, targeted_restarts=True, restarts=RIVALS)}
    return sp.FAB(sp.Threat(norm, math.inf), steps=steps, rivals=RIVALS), peers


def fab_within(norm: str, eps: float, steps: int) -> Made:
    """The search that stops at eps."""
    settings = {"multi_targeted": True, "n_classes": RIVALS + 1, "n_restarts": 1}
    peers = {"torchattacks": torchattacks("FAB", norm=TORCHATTACKS[norm], eps=eps, steps=steps, **settings)}
    return sp.FAB(sp.Threat(norm, eps), steps=steps, rivals=RIVALS, stop_when_fooled=True), peers


MAKERS: dict[str, tuple[Callable[[str, float, int], Made], tuple[str, ...], int]] = {
    "APGD cross-entropy": (partial(apgd, loss="cross-entropy"), ("linf", "l2", "l1"), 100),
    "APGD dlr": (partial(apgd, loss="dlr"), ("linf", "l2", "l1"), 100),
    "APGD shrinking": (apgd_shrinking, ("l1",), 100),
    "APGD dlr 9 rivals": (apgd_targeted, ("linf", "l2", "l1"), 20),
    "FAB 9 rivals": (fab, ("linf", "l2", "l1"), 20),
    "FAB 9 rivals, to eps": (fab_within, ("linf", "l2"), 20),
}


def contests(samples: int, seed: int) -> Iterator[Contest]:
    for attack, (_, norms, steps) in MAKERS.items():
        for norm in norms:
            for name in NETS:
                key = f"{attack} {norm} {name} {steps} n={samples} seed={seed}"
                yield Contest(key, partial(measure, attack, norm, name, steps, samples, seed))


def measure(attack: str, norm: str, name: str, steps: int, samples: int, seed: int) -> Row:
    net, x, y = attacked(name, samples)
    network = NETWORKS[name]
    eps = network.eps if norm == "linf" else RADII[norm][network.dataset]
    ours, peers = MAKERS[attack][0](norm, eps, steps)
    norms = math.isinf(float(ours.threat.eps))
    values: dict[str, float] = {}
    passes: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for library, run in {"sparring": lambda net, x, y: ours(net, x, y, seed=seed).x, **peers}.items():
        torch.manual_seed(seed)
        counted, start = Counting(net).eval(), time.perf_counter()
        z = run(counted, x, y).detach()
        seconds[library], passes[library] = time.perf_counter() - start, counted.passes / len(x)
        slack = 1e-5 if library == "sparring" else 0.01
        values[library] = median_norm(net, ours.threat, x, y, z) if norms else robust(net, ours.threat, x, y, z, slack)
    own, what = values.pop("sparring"), "median norm" if norms else "robust accuracy"
    settings = {"steps": steps} if norms else {"steps": steps, "eps": eps}
    return Row(attack, norm, name, what, len(x), seed, own, values, passes, settings, seconds)


def robust(net: nn.Module, threat: sp.Threat, x: Tensor, y: Tensor, z: Tensor, slack: float) -> float:
    """The part whose example does not fool, or is outside the ball or the box."""
    with torch.no_grad():
        held = net(z).argmax(1) == y
    inside = (threat.size(x, z) <= threat.eps * (1 + slack)) & ((z >= -1e-6) & (z <= 1 + 1e-6)).flatten(1).all(1)
    return float((held | ~inside).double().mean())
