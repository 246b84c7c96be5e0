"""How strong attacks are: robust accuracy that each leaves, against the same attack of the peers with the same budget.

    python benchmarks/strength.py [NETWORK ...] [--samples 500] [--json FILE]

"same step" gives everybody one step size, eps/4; "own step" leaves each library its default. A sample counts as
robust where the network is right on it before and after the attack. A peer's examples may be the least bit outside the ball
(1%), as some projections leave them; ours are held to float rounding. The target, for every row: at most 0.5 points above
the best peer. Random starts differ between libraries, so a difference of a few samples either way is chance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import sparring as sp
from machine import facts, table
from networks import NETWORKS, Network
from peers import PEERS, Budget, missing

TARGET = 0.005
# a network's radii besides its Linf one: l2 and l1 balls of eps that leave a part of the samples robust
RADII = {"fashion-mnist": {"l2": 1.5, "l1": 12.0}, "mnist": {"l2": 2.0, "l1": 12.0}, "cifar10": {"l2": 0.25, "l1": 6.0}}


@dataclass(frozen=True)
class Contest:
    """One attack of ours and the peers' attacks (keys of `PEERS[library]`) that are the same."""

    name: str
    norm: str
    rivals: tuple[str, ...]
    steps: int = 1

    def ours(self, threat: sp.Threat, step_size: float | None) -> Any:
        settings: dict[str, Any] = {"stop_when_fooled": True}
        if self.name in ("FGSM", "RFGSM"):
            return getattr(sp, self.name)(threat, **settings)
        settings["steps"] = self.steps
        if self.name.startswith("Adam"):
            lr = {} if step_size is None else {"lr": step_size}
            return sp.OptimizerAttack(threat, torch.optim.Adam, random_start=True, **lr, **settings)
        return getattr(sp, self.name.split()[0])(threat, step_size=step_size, **settings)


CONTESTS = (
    Contest("FGSM", "linf", ("fgsm",)),
    Contest("RFGSM", "linf", ("rfgsm",)),
    Contest("IFGSM", "linf", ("ifgsm",), 10),
    Contest("MIFGSM", "linf", ("mifgsm",), 10),
    Contest("PGD linf", "linf", ("pgd-linf",), 40),
    Contest("PGD l2", "l2", ("pgd-l2",), 40),
    Contest("PGD l1", "l1", ("pgd-l1", "slide-l1"), 40),
    Contest("Adam linf", "linf", ("adam-linf",), 40),
    Contest("Adam l2", "l2", ("adam-l2",), 40),
)


def robust_accuracy(
    net: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor, threat: sp.Threat, slack: float
) -> float:
    """The part that is right before the attack and either right after it, or "fooled" from outside the ball or box."""
    with torch.no_grad():
        right, held = net(x).argmax(1) == y, net(adversarial).argmax(1) == y
    outside = (threat.size(x, adversarial) > threat.eps * (1 + slack)) | (
        adversarial - adversarial.clamp(0, 1)
    ).flatten(1).any(1)
    return float((right & (held | outside)).float().mean())


def contest(
    contest: Contest, net: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float | None, seed: int = 0
) -> dict[str, Any]:
    """Robust accuracy of ours and of every library that has the attack."""
    threat = sp.Threat(contest.norm, eps)
    ours = contest.ours(threat, step_size)(net, x, y, seed=seed)
    found = {"sparring": robust_accuracy(net, x, y, ours.x, threat, 1e-5)}
    for library, attacks in PEERS.items():
        left = []
        for rival in contest.rivals:
            if rival not in attacks or (library == "cleverhans" and step_size is None):
                continue
            torch.manual_seed(seed)
            theirs = attacks[rival](net, x, y, Budget(eps, contest.steps, step_size))
            left.append(robust_accuracy(net, x, y, theirs, threat, 0.01))
        if left:
            found[library] = min(left)
    return found


def compare(network: Network, samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row a contest and step size."""
    net, (x, y) = network.load(), network.test_data(samples)
    for each in CONTESTS:
        eps = network.eps if each.norm == "linf" else RADII[network.dataset][each.norm]
        for label, step_size in (("same step", eps / 4), ("own step", None)):
            if each.steps == 1 and label == "own step":
                continue  # one step of eps: there is nothing to choose
            start = time.perf_counter()
            torch.manual_seed(seed)
            found = contest(each, net, x, y, eps, step_size, seed)
            seconds = time.perf_counter() - start
            yield {"network": network.name, "attack": each.name, "eps": eps, "steps": each.steps, "step": label,
                   "robust": found, "seconds": seconds}  # fmt: skip


def excess(row: dict[str, Any]) -> float | None:
    """How far ours is above the best of torchattacks, foolbox and ART (negative: below), or None without them."""
    rivals = [value for name, value in row["robust"].items() if name in ("torchattacks", "foolbox", "ART")]
    return row["robust"]["sparring"] - min(rivals) if rivals else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default: all there are)"
    )
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="the first N test images (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = facts(arguments.seed)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    for library, reason in missing().items():
        print(f"{library} left out: {reason}")
    rows: list[dict[str, Any]] = []
    for name in arguments.networks or NETWORKS:
        if NETWORKS[name].missing:
            print(f"\n{NETWORKS[name].missing}: left out")
            continue
        mine = list(compare(NETWORKS[name], arguments.samples, arguments.seed))
        rows += mine
        libraries = [library for library in ("sparring", *PEERS) if any(library in row["robust"] for row in mine)]
        cells = []
        for row in mine:
            over = excess(row)
            values = [
                f"{100 * row['robust'][library]:.1f}" if library in row["robust"] else "" for library in libraries
            ]
            verdict = "" if over is None else f"{100 * over:+.1f}{' MISSED' if over > TARGET + 1e-9 else ''}"
            cells.append((f"{row['attack']}-{row['steps']}, {row['step']}", f"{row['eps']:.3g}", *values, verdict))
        table(
            f"Robust accuracy, {name}, {arguments.samples} images", ("attack", "eps", *libraries, "ours - best"), cells
        )
    if arguments.json:
        partial = arguments.json.with_name(arguments.json.name + ".part")
        partial.write_text(json.dumps({"machine": machine, "samples": arguments.samples, "rows": rows}, indent=1))
        partial.replace(arguments.json)
    missed = [row for row in rows if (excess(row) or 0) > TARGET + 1e-9]
    print(
        f"\n{len(rows) - len(missed)} of {len(rows)} rows within 0.5 points of the best of torchattacks, foolbox and ART"
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
