"""Attacks that are learned once: a universal perturbation, a patch and a generator, on images that they did not learn from.

    python benchmarks/universal.py [NETWORK ...] [--learn 500] [--test 500] [--steps 200] [--json FILE]

Each figure is the share of held-out images, right before, that is fooled. The universal perturbation stands beside a random
sign perturbation of the same eps and ART's (DeepFool inside, one round), against which ours runs twice: with no more passes
than ART's took, and with `--steps`. The patch is targeted (class 3) and stands beside random noise and ART's, all at the same
placements, learned with the same passes, ART's at the best of three rates. The generator stands beside FGSM and PGD-40,
which see the network's gradient at each image; what it costs is its own pass, in forwards of the network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

import sparring as sp
from machine import facts, table
from networks import NETWORKS, Network
from sparring.noise import Noise

TARGET = 3
BATCH = 64
EPS = {"mnist": 0.2, "fashion-mnist": 0.05, "cifar10": 16 / 255}  # undefended networks still get many images right here


class Counted(nn.Module):
    """Counts the samples that pass through a network in each direction, whoever sends them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.passes += len(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, gradient: Tensor) -> None:
        self.passes += len(gradient)


def art_classifier(net: nn.Module, x: Tensor) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"
    )  # fmt: skip


def art_universal(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, int]:
    """ART's perturbation and the passes that it took."""
    from art.attacks.evasion import UniversalPerturbation

    counted = Counted(net)
    attack = UniversalPerturbation(
        art_classifier(counted, x), "deepfool", {"max_iter": 10, "verbose": False}, delta=0.0, max_iter=1, eps=eps,
        norm=np.inf, batch_size=128, verbose=False,
    )  # fmt: skip
    attack.generate(x.numpy(), y.numpy())
    return torch.from_numpy(attack.noise[0]), counted.passes


def art_patches(net: nn.Module, x: Tensor, attack: sp.AdversarialPatch, passes: int) -> list[Tensor]:
    """ART's patch for each learning rate, with these passes: it has the image's size and is scaled down to ours."""
    from art.attacks.evasion.adversarial_patch.adversarial_patch_numpy import AdversarialPatchNumpy

    low, high = (attack.shape[1] * scale / x.shape[2] for scale in attack.scale)
    found = []
    for rate in (0.01, 0.1, 1.0):
        classifier = art_classifier(net, x)
        classifier._clip_values = (0.0, 1.0)  # its own float32 numbers are none that its patch starts from
        theirs = AdversarialPatchNumpy(
            classifier, TARGET, attack.rotation, low, high, rate, max(1, passes // (2 * len(x))),
            batch_size=len(x), verbose=False,
        )  # fmt: skip
        labels = np.eye(10, dtype=np.float32)[np.full(len(x), TARGET)]
        found.append(torch.from_numpy(theirs.generate(x.numpy(), labels)[0]).float())
    return found


def universal(net: nn.Module, eps: float, learn: Any, test: Any, steps: int, seed: int, peers: bool) -> dict[str, Any]:
    attack = sp.UniversalPerturbation(sp.Linf(eps))
    sign = Noise(seed, torch.arange(5)).sign(learn[0].shape[1:])
    found: dict[str, Any] = {"random sign": max(_rate(replace(attack, delta=eps * s), net, test) for s in sign)}
    if peers:
        delta, passes = art_universal(net, *learn, eps)
        found |= {"ART": _rate(replace(attack, delta=delta.float()), net, test), "ART passes": passes}
        overhead = len(learn[0]) + 2 * len(learn[0])  # the first look, and ten at a fifth of the images
        equal = max(1, (passes - overhead) // (2 * BATCH))
        short = attack.fit(net, learn, steps=equal, batch_size=BATCH, seed=seed)
        found |= {"ours, ART's passes": _rate(short, net, test), "passes": _passes(short)}
    fitted = attack.fit(net, learn, steps=steps, batch_size=BATCH, seed=seed)
    return found | {"ours": _rate(fitted, net, test), "ours passes": _passes(fitted)}


def patch(net: nn.Module, learn: Any, test: Any, steps: int, seed: int, peers: bool) -> dict[str, Any]:
    channels, side = learn[0].shape[1], learn[0].shape[2]
    size = round(0.36 * side)
    attack = sp.AdversarialPatch((channels, size, size), rotation=22.5, target=TARGET)
    fitted = attack.fit(net, learn, steps=steps, batch_size=BATCH, seed=seed)

    def score(pattern: Tensor) -> float:
        low, high = (size * scale / pattern.shape[1] for scale in attack.scale)
        same = replace(attack, shape=tuple(pattern.shape), scale=(low, high), pattern=pattern)
        return same.over_placements(net, test, placements=5, seed=seed).mean

    noise = Noise(seed, torch.arange(5)).uniform(attack.shape)
    found: dict[str, Any] = {"random noise": max(score(pattern) for pattern in noise)}
    if peers:
        found["ART"] = max(score(p) for p in art_patches(net, learn[0], attack, _passes(fitted)))
    assert fitted.pattern is not None
    return found | {"ours": score(fitted.pattern), "passes": _passes(fitted), "pixels": size}


def generator(net: nn.Module, eps: float, learn: Any, test: Any, steps: int, seed: int) -> dict[str, Any]:
    threat, (x, y) = sp.Linf(eps), test
    fitted = sp.AdvGAN(threat).fit(net, learn, steps=steps, batch_size=BATCH, seed=seed)
    with torch.no_grad():
        right = net(x).argmax(1) == y
    rates = {}
    for name, attack in (("FGSM", sp.FGSM(threat)), ("PGD-40", sp.PGD(threat))):
        rates[name] = float(attack(net, x[right], y[right], seed=seed).success.float().mean())
    forward = _seconds(lambda: net(x))
    spent = {"AdvGAN": _seconds(lambda: fitted(net, x, y)), "FGSM": _seconds(lambda: sp.FGSM(threat)(net, x, y))}
    costs = {f"{name} cost": seconds / forward for name, seconds in spent.items()}
    return {"AdvGAN": _rate(fitted, net, test), **rates, "passes": _passes(fitted), **costs}


def _rate(attack: Any, net: nn.Module, test: Any) -> float:
    return float(attack.fooling_rate(net, test).value)


def _passes(attack: Any) -> int:
    return int(attack.record.forwards + attack.record.backwards)


def _seconds(call: Callable[[], Any]) -> float:
    """The least of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure(network: Network, arguments: argparse.Namespace, peers: bool) -> dict[str, Any]:
    net = network.load()
    x, y = network.test_data(arguments.learn + arguments.test)
    learn, test = (x[: arguments.learn], y[: arguments.learn]), (x[arguments.learn :], y[arguments.learn :])
    eps, steps, seed = EPS[network.dataset], arguments.steps, arguments.seed
    return {
        "network": network.name,
        "eps": eps,
        "universal": universal(net, eps, learn, test, steps, seed, peers),
        "patch": patch(net, learn, test, steps, seed, peers),
        "generator": generator(net, eps, learn, test, steps, seed),
    }


def show(rows: list[dict[str, Any]]) -> None:
    for part, title in (
        ("universal", "Universal perturbation, linf"),
        ("patch", f"Patch to class {TARGET}, mean over placements"),
        ("generator", "Generator, linf; cost in forwards of the network"),
    ):
        names = list(rows[0][part])
        cells = []
        for row in rows:
            values = [row[part][name] for name in names]
            texts = [
                str(v) if isinstance(v, int) else f"{v:.1f}" if "cost" in name else f"{100 * v:.1f}"
                for name, v in zip(names, values)
            ]
            cells.append((row["network"], f"{row['eps']:.3g}", *texts))
        table(title, ("network", "eps", *names), cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--learn", type=int, default=500, metavar="N", help="images to learn from (default 500)")
    parser.add_argument("--test", type=int, default=500, metavar="N", help="images to be fooled (default 500)")
    parser.add_argument("--steps", type=int, default=200, metavar="K", help=f"of {BATCH} images each (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = facts(arguments.seed)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    peers = "ART" in machine
    rows = []
    for name in arguments.networks or NETWORKS:
        if NETWORKS[name].missing:
            print(f"\n{NETWORKS[name].missing}: left out")
            continue
        rows.append(measure(NETWORKS[name], arguments, peers))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    show(rows)
    if arguments.json:
        partial = arguments.json.with_name(arguments.json.name + ".part")
        partial.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
        partial.replace(arguments.json)


if __name__ == "__main__":
    main()
