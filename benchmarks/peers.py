"""The peers, called alike: `PEERS[library][attack](net, x, y, budget)` gives adversarial examples (B, *S).

Every peer gets the network in eval mode with frozen parameters (gradients of parameters would only slow it), the whole
batch at once, progress bars off, and the leanest of its public calls. Only libraries that import are listed;
`missing()` says which do not, and why.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Budget:
    """What an attack may spend. step_size: in input units, or None for the library's own default."""

    eps: float
    steps: int = 1
    step_size: float | None = None

    def step(self, name: str) -> dict[str, float]:
        """The step size as that library's argument, or nothing, so that its default holds."""
        return {} if self.step_size is None else {name: self.step_size}


Peer = Callable[[nn.Module, Tensor, Tensor, Budget], Tensor]


def torchattacks_peers() -> dict[str, Peer]:
    lib = importlib.import_module("torchattacks")

    def iterated(name: str) -> Peer:
        return lambda net, x, y, b: getattr(lib, name)(net, eps=b.eps, steps=b.steps, **b.step("alpha"))(x, y)

    return {
        "fgsm": lambda net, x, y, b: lib.FGSM(net, eps=b.eps)(x, y),
        "rfgsm": lambda net, x, y, b: lib.RFGSM(net, eps=b.eps, alpha=b.eps / 2, steps=1)(x, y),
        "ifgsm": iterated("BIM"),
        "mifgsm": iterated("MIFGSM"),
        "pgd-linf": iterated("PGD"),
        "pgd-l2": iterated("PGDL2"),
    }


def foolbox_peers() -> dict[str, Peer]:
    lib = importlib.import_module("foolbox")

    def run(attack: Any, net: nn.Module, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        # `run` is what calling the attack comes down to; the call would look at clean and final predictions besides
        return attack.run(lib.PyTorchModel(net, bounds=(0, 1)), x, lib.Misclassification(y), epsilon=b.eps)

    def iterated(name: str, **settings: Any) -> Peer:
        make = getattr(lib.attacks, name)
        return lambda net, x, y, b: run(make(steps=b.steps, **settings, **b.step("abs_stepsize")), net, x, y, b)

    return {
        "fgsm": lambda net, x, y, b: run(lib.attacks.LinfFastGradientAttack(), net, x, y, b),
        "ifgsm": iterated("LinfBasicIterativeAttack"),
        "mifgsm": iterated("LinfMomentumIterativeFastGradientMethod"),
        "pgd-linf": iterated("LinfProjectedGradientDescentAttack"),
        "pgd-l2": iterated("L2ProjectedGradientDescentAttack"),
        "pgd-l1": iterated("L1ProjectedGradientDescentAttack"),
        "slide-l1": iterated("SparseL1DescentAttack", random_start=True),
        "adam-linf": iterated("LinfAdamProjectedGradientDescentAttack"),
        "adam-l2": iterated("L2AdamProjectedGradientDescentAttack"),
    }


def art_peers() -> dict[str, Peer]:
    evasion = importlib.import_module("art.attacks.evasion")
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier

    def run(name: str, net: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
        wrapped = classifier(net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu")
        attack = getattr(evasion, name)(wrapped, batch_size=len(x), **settings)
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    def iterated(name: str, **fixed: Any) -> Peer:
        def peer(net: nn.Module, x: Tensor, y: Tensor, b: Budget) -> Tensor:
            return run(name, net, x, y, eps=b.eps, max_iter=b.steps, verbose=False, **b.step("eps_step"), **fixed)

        return peer

    return {
        "fgsm": lambda net, x, y, b: run("FastGradientMethod", net, x, y, eps=b.eps),
        "ifgsm": iterated("BasicIterativeMethod"),
        "mifgsm": iterated("MomentumIterativeMethod"),
        "pgd-linf": iterated("ProjectedGradientDescentPyTorch", num_random_init=1),
        "pgd-l2": iterated("ProjectedGradientDescentPyTorch", norm=2, num_random_init=1),
        "pgd-l1": iterated("ProjectedGradientDescentPyTorch", norm=1, num_random_init=1),
    }


def cleverhans_peers() -> dict[str, Peer]:
    gradient = importlib.import_module("cleverhans.torch.attacks.projected_gradient_descent").projected_gradient_descent
    fast = importlib.import_module("cleverhans.torch.attacks.fast_gradient_method").fast_gradient_method

    def iterated(norm: float) -> Peer:
        def peer(net: nn.Module, x: Tensor, y: Tensor, b: Budget) -> Tensor:
            if b.step_size is None:
                raise ValueError("cleverhans has no default step size")
            return gradient(net, x, b.eps, b.step_size, b.steps, norm, 0.0, 1.0, y=y, sanity_checks=False).detach()

        return peer

    return {
        "fgsm": lambda net, x, y, b: fast(net, x, b.eps, np.inf, clip_min=0.0, clip_max=1.0, y=y).detach(),
        "pgd-linf": iterated(math.inf),
        "pgd-l2": iterated(2),
    }


@contextmanager
def unused_modules(*names: str) -> Iterator[None]:
    """Empty modules in the place of those that do not import here, while the block runs.

    adv-lib imports torchvision (for a perceptual distance) and visdom (for plots) with its attacks; PGD needs neither.
    """
    absent = []
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):  # RuntimeError: a torchvision built for another torch
            absent.append(name)
            module: Any = types.ModuleType(name)
            module.models = None
            sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def adv_lib_peers() -> dict[str, Peer]:
    with unused_modules("torchvision", "visdom"):
        pgd = importlib.import_module("adv_lib.attacks").pgd_linf

    def peer(net: nn.Module, x: Tensor, y: Tensor, b: Budget) -> Tensor:
        return pgd(net, x, y, b.eps, steps=b.steps, **b.step("absolute_step_size"))

    return {"pgd-linf": peer}


LIBRARIES: dict[str, tuple[str, Callable[[], dict[str, Peer]]]] = {
    "torchattacks": ("torchattacks", torchattacks_peers),
    "foolbox": ("foolbox", foolbox_peers),
    "ART": ("adversarial-robustness-toolbox", art_peers),
    "cleverhans": ("cleverhans", cleverhans_peers),
    "adv-lib": ("adv-lib", adv_lib_peers),
}
PEERS: dict[str, dict[str, Peer]] = {}
_MISSING: dict[str, str] = {}
for _name, (_package, _make) in LIBRARIES.items():
    try:
        PEERS[_name] = _make()
    except ImportError as _error:
        _MISSING[_name] = str(_error)


def versions() -> dict[str, str]:
    """The version of each library that is listed."""
    return {name: version(LIBRARIES[name][0]) for name in PEERS}


def missing() -> dict[str, str]:
    """Library to why it is not listed."""
    return dict(_MISSING)


def installed(package: str) -> str:
    """A package's version, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
