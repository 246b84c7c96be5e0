"""The verdict and what it costs: our cascade, our AutoAttack, torchattacks' AutoAttack and PGD on every network.

    python benchmarks/verdict.py [--models NAME ...] [--methods NAME ...] [--images 200] [--out FILE] [--redo METHOD ...]

What is counted is counted from outside: passes by a module round the network, and a sample as fooled only where the
method's example lies in the ball and in the box and the network, asked again, is wrong on it. A random network is asked
201 times, whatever the method did to confirm its example, and counts as right where most answers are; how many samples
the method itself calls robust is told beside it. Its AutoAttack is the `rand` version (APGD on cross-entropy and DLR with 20
draws a gradient), which its authors made for such networks: the standard one takes a lucky draw for a success.

With --out every row is written as soon as it is there, and what is there is not run again, unless --redo names its
method. On a CPU the clock is the process's own (one thread), so that neighbours on the machine weigh less.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import sparring as sp
from machine import facts
from networks import NETWORKS, Network
from peers import PEERS, missing
from verdict_tables import report

DRAWS = 201
EOT = 20  # draws a gradient of the `rand` version
BATCH = 128


class Counted(nn.Module):
    """Counts the samples that go forward and backward through a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@dataclass
class Answer:
    """What a method says: an example for each sample (the image itself where it has none), and whom it claims to fool."""

    adversarial: Tensor
    claimed: Tensor
    warnings: list[str]
    passes: list[int] | None = None  # of each sample until it fell, where the method knows
    searched: int | None = None  # samples that fell to an attack without gradients, after those with


Method = Callable[[nn.Module, Tensor, Tensor, Network, int], Answer]


def evaluated(attacks: str) -> Method:
    """`sparring.evaluate` with its defaults."""

    def method(net: nn.Module, x: Tensor, y: Tensor, network: Network, seed: int) -> Answer:
        chosen = attacks
        if attacks == "autoattack" and network.random:
            chosen, net = "autoattack-rand", sp.expectation(net, EOT)
        result = sp.evaluate(net, (x, y), sp.Linf(network.eps), attacks=chosen, seed=seed)
        adversarial = x.clone()
        for index, _, example in result.examples:
            adversarial[index] = torch.as_tensor(example).to(x)
        claimed = torch.as_tensor(result.correct) & ~torch.as_tensor(result.robust)
        passes = [row["forwards"] + row["backwards"] for row in result.samples()]
        inwards = result.document["passes"]["distance"] + result.document["passes"]["distance_backwards"]
        passes = [n - round(inwards / max(1, int(claimed.sum()))) * fell for n, fell in zip(passes, claimed.tolist())]
        searched = sum(row["fooled"] for row in result.attacks if row["access"] == "scores")
        codes = [warning.code for warning in result.warnings]
        return Answer(adversarial, claimed.to(x.device), codes, passes, searched)

    return method


def pgd(steps: int) -> Method:
    """Plain PGD from one random start, on everything: what a paper's table calls PGD-20."""

    def method(net: nn.Module, x: Tensor, y: Tensor, network: Network, seed: int) -> Answer:
        attack = sp.PGD(sp.Linf(network.eps), steps=steps)
        indices = torch.arange(len(x))
        found = [
            attack(net, x[rows], y[rows], indices=indices[rows], seed=seed)
            for rows in (slice(first, first + BATCH) for first in range(0, len(x), BATCH))
        ]
        adversarial, success = (torch.cat([getattr(each, name) for each in found]) for name in ("x", "success"))
        return Answer(adversarial, success, [])

    return method


def torchattacks(net: nn.Module, x: Tensor, y: Tensor, network: Network, seed: int) -> Answer:
    """torchattacks' attacks, put together as the paper's ensemble: 100 steps each.

    Its own `AutoAttack` leaves every attack at that class's default of 10 steps, which is another, weaker ensemble.
    """
    lib = importlib.import_module("torchattacks")
    common = {"eps": network.eps, "steps": 100, "n_restarts": 1, "seed": seed}
    if network.random:
        stages = [lib.APGD(net, loss=loss, eot_iter=EOT, **common) for loss in ("ce", "dlr")]
    else:
        stages = [
            lib.APGD(net, loss="ce", **common),
            lib.APGDT(net, n_classes=10, **common),
            lib.FAB(net, multi_targeted=True, n_classes=10, **common),
            lib.Square(net, eps=network.eps, n_queries=5000, n_restarts=1, seed=seed),
        ]
    return asked(net, y, lib.MultiAttack(stages)(x, y).detach())


def torchattacks_10(net: nn.Module, x: Tensor, y: Tensor, network: Network, seed: int) -> Answer:
    """What `torchattacks.AutoAttack(net)` runs as it is: 10 steps."""
    version = "rand" if network.random else "standard"
    attack = importlib.import_module("torchattacks").AutoAttack
    found = attack(net, eps=network.eps, version=version, n_classes=10, seed=seed)(x, y)
    return asked(net, y, found.detach())


def asked(net: nn.Module, y: Tensor, adversarial: Tensor) -> Answer:
    """The answer of a method that claims nothing: it fools where the network is wrong now."""
    with torch.no_grad():
        return Answer(adversarial, net(adversarial).argmax(1) != y, [])


METHODS: dict[str, Method] = {
    "adaptive": evaluated("adaptive"),
    "autoattack": evaluated("autoattack"),
    "torchattacks": torchattacks,
    "torchattacks-10": torchattacks_10,
    "PGD-20": pgd(20),
    "PGD-100": pgd(100),
}
USUAL = [method for method in METHODS if method != "torchattacks-10"]


@torch.no_grad()
def right(net: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """(N,) bool: the network is right in most of its answers."""
    hits = torch.zeros(len(x), device=x.device)
    for _ in range(draws):
        hits += torch.cat([net(part) for part in x.split(BATCH)]).argmax(1) == y
    return hits > draws / 2


def allowed(adversarial: Tensor, x: Tensor, eps: float) -> Tensor:
    """(N,) bool: in the ball and in the box, but for float32's rounding."""
    change = (adversarial - x).flatten(1).abs().amax(1)
    outside = (adversarial - adversarial.clamp(0, 1)).flatten(1).ne(0).any(1)
    return (change <= eps + 1e-6) & ~outside & adversarial.flatten(1).isfinite().all(1)


def clock(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(network: Network, name: str, images: int, device: torch.device, seed: int) -> dict[str, Any]:
    """One row: a network under a method."""
    net, (x, y) = network.load().to(device), network.test_data(images)
    x, y = x.to(device), y.to(device)
    draws = DRAWS if network.random else 1
    counted = Counted(net).eval()
    torch.manual_seed(seed)
    start = clock(device)
    answer = METHODS[name](counted, x, y, network, seed)
    seconds = clock(device) - start
    torch.manual_seed(seed)
    clean = right(net, x, y, draws)
    fooled = allowed(answer.adversarial, x, network.eps) & ~right(net, answer.adversarial, y, draws)
    robust = clean & ~fooled
    row = {
        "eps": network.eps,
        "clean": int(clean.sum()),
        "robust": robust.nonzero().flatten().tolist(),
        "unshown": int((answer.claimed & clean & ~fooled).sum()),
        "claimed": int((clean & ~answer.claimed).sum()),
        "forwards": counted.forwards,
        "backwards": counted.backwards,
        "seconds": round(seconds, 3),
        "warnings": sorted(set(answer.warnings)),
    }
    if answer.passes is not None:
        row |= {"passes": answer.passes, "searched": answer.searched}
    return row


def kept(path: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run wrote, if it was the same measurement."""
    if path is None or not path.exists():
        return {"settings": settings, "machines": {}, "rows": {}}
    document: dict[str, Any] = json.loads(path.read_text())
    if document["settings"] != settings:
        raise SystemExit(f"{path} holds a run with {document['settings']}, not {settings}: choose another --out")
    return document


def write(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(document))
        partial.replace(path)


def absent(method: str) -> str:
    """Why a method can't run here, or an empty string."""
    if method.startswith("torchattacks") and "torchattacks" not in PEERS:
        return missing().get("torchattacks", "not installed")
    return ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=USUAL, metavar="NAME")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="the first N test images (default 200)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON: written after each row, and gone on from")
    parser.add_argument("--redo", nargs="+", choices=METHODS, default=[], metavar="METHOD", help="run these again")
    parser.add_argument("--curve", action="store_true", help="also the verdict against passes a sample")
    parser.add_argument("--table", action="store_true", help="only the tables of what --out holds")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    torch.set_num_threads(1)
    settings = {"images": chosen.images, "seed": chosen.seed, "device": chosen.device.type}
    document = kept(chosen.out, settings)
    if not chosen.table:
        run(chosen, document)
    return report(document, chosen.models, curve=chosen.curve)


def run(chosen: argparse.Namespace, document: dict[str, Any]) -> None:
    """Measure what is missing, network by network, so that the figures of a row are close in time."""
    machine = facts(chosen.seed)
    if chosen.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(chosen.device)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for method in (method for method in chosen.methods if absent(method)):
        print(f"{method} left out: {absent(method)}")
    for name in chosen.models:
        network, rows = NETWORKS[name], document["rows"].setdefault(name, {})
        if network.missing:
            print(f"{network.missing}: left out")
            continue
        for method in chosen.methods:
            if absent(method) or (method in rows and method not in chosen.redo):
                continue
            row = measure(network, method, chosen.images, chosen.device, chosen.seed)
            document["machines"][started] = machine
            rows[method] = row | {"run": started}
            write(chosen.out, document)
            line = f"robust {len(row['robust'])} of {chosen.images}, {row['forwards']} + {row['backwards']} passes"
            print(f"{name} {method}: {line}, {row['seconds']:.1f} s {' '.join(row['warnings'])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
