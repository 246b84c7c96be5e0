"""How fast attacks are: overhead, against the peers, memory of `evaluate`, start of the command line; one thread.

    python benchmarks/attack_speed.py [--json FILE] [--repetitions 5] [--only overhead peers memory help]

Runs that are compared take turns within each repetition; a ratio is the median over the repetitions of the ratio within
one, so that a machine that is slow for a while slows both sides. A time includes what it takes to know who is fooled:
ours says so itself, the others' examples are shown to the network once more (1 forward beside 40 and 40 backwards).
A robust accuracy is the mean over the repetitions, each with a random start of its own; equal means less than one image
of the batch apart. Everybody steps by eps/4, our default and the proportion of torchattacks' (2/255 of 8/255).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from machine import facts, table
from networks import NETWORKS, ResNet, wide
from peers import PEERS, Budget, missing

STEPS = 40
Runs = dict[str, Callable[[int], Any]]


def interleaved(runs: Runs, repetitions: int) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds and results of each run (called with a seed) in each repetition, taking turns in changing order.

    A repetition that warms up goes first and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, list[Any]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        names = list(runs)
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            start = time.perf_counter()
            result = runs[name](repetition)
            if repetition:
                seconds[name].append(time.perf_counter() - start)
                results[name].append(result)
    return seconds, results


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    """How many times longer a takes than b."""
    return statistics.median(x / y for x, y in zip(seconds[a], seconds[b]))


def overhead(repetitions: int, seed: int) -> list[dict[str, Any]]:
    """PGD-40, nothing dropped, over 40 bare forwards and backwards with `torch.autograd.grad` on the same batch."""
    out = []
    cifar = ("residual CIFAR-10 network, 4 blocks", lambda: ResNet(16, 4), (3, 32, 32), 8 / 255)
    fashion = ("two convolutions, 28x28", wide, (1, 28, 28), 0.1)
    for (name, build, shape, eps), batch in ((cifar, 128), (cifar, 16), (fashion, 256), (fashion, 32)):
        torch.manual_seed(seed)
        net = build().eval().requires_grad_(False)
        x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
        attack = sp.PGD(sp.Linf(eps), steps=STEPS)

        def bare(seed: int, net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> None:
            for _ in range(STEPS):
                z = x.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(net(z), y), z)

        runs: Runs = {"bare": bare, "pgd": lambda seed, attack=attack, net=net, x=x, y=y: attack(net, x, y)}
        # short runs are noisy: as many as fill the time that the longest case takes
        seconds, _ = interleaved(runs, repetitions * (2 if batch > 100 else 6))
        times = {run: statistics.median(values) for run, values in seconds.items()}
        out.append(
            {"network": name, "batch": batch, **times, "ratio": ratio(seconds, "pgd", "bare"), "seconds": seconds}
        )
    head = ("network", "batch", "bare loop", "PGD-40", "ratio")
    rows = [
        (r["network"], str(r["batch"]), f"{r['bare']:.3f} s", f"{r['pgd']:.3f} s", f"{r['ratio']:.3f}") for r in out
    ]
    table("Overhead of PGD-40 over a bare forward/backward loop (nothing dropped)", head, rows)
    return out


def robust_accuracy(net: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor) -> float:
    """The part that is classified right before the attack and after it."""
    with torch.no_grad():
        return float(((net(x).argmax(1) == y) & (net(adversarial).argmax(1) == y)).float().mean())


def against_peers(name: str, repetitions: int, seed: int, batch: int) -> dict[str, Any]:
    """PGD-40 with ours stopping when fooled and taking all steps, and with each peer, on one batch of test images."""
    network = NETWORKS[name]
    net, (x, y) = network.load(), network.test_data(batch)
    threat, eps, step = sp.Linf(network.eps), network.eps, network.eps / 4
    budget = Budget(eps, STEPS, step)
    ours = {
        "sparring, stopping": sp.PGD(threat, steps=STEPS, step_size=step, stop_when_fooled=True),
        "sparring, all steps": sp.PGD(threat, steps=STEPS, step_size=step),
    }

    def theirs(library: str) -> Tensor:
        adversarial = PEERS[library]["pgd-linf"](net, x, y, budget)
        with torch.no_grad():
            net(adversarial).argmax(1)
        return adversarial

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (what ART draws from)
    runs: Runs = {label: lambda seed, attack=attack: attack(net, x, y, seed=seed).x for label, attack in ours.items()}
    runs |= {library: lambda seed, library=library: theirs(library) for library in PEERS}
    seconds, results = interleaved(runs, repetitions)
    rows = [
        {
            "name": run,
            "seconds": statistics.median(values),
            "robust": statistics.mean(robust_accuracy(net, x, y, z) for z in results[run]),
            "over_stopping": ratio(seconds, run, "sparring, stopping"),
            "over_all_steps": ratio(seconds, run, "sparring, all steps"),
            "all_seconds": values,
        }
        for run, values in seconds.items()
    ]
    head = ("attack", "seconds", "robust accuracy", "x ours, stopping", "x ours, all steps")
    cells = [
        (
            str(r["name"]),
            f"{r['seconds']:.3f}",
            f"{100 * r['robust']:.1f}%",
            f"{r['over_stopping']:.2f}",
            f"{r['over_all_steps']:.2f}",
        )
        for r in rows
    ]
    clean = robust_accuracy(net, x, y, x)
    table(f"PGD-40 on {name} (Linf eps {eps:g}, {batch} images, clean {100 * clean:.1f}%)", head, cells)
    return {"network": name, "eps": eps, "step_size": step, "batch": batch, "clean": clean, "rows": rows}


def memory() -> list[dict[str, Any]]:
    """Peak resident memory of `evaluate` in a fresh process each; see evaluate_memory.py."""
    out = []
    for samples in (0, 10_000, 100_000):
        script = Path(__file__).with_name("evaluate_memory.py")
        done = subprocess.run([sys.executable, str(script), str(samples)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"evaluate_memory.py {samples} failed:\n{done.stderr[-2000:]}")
        out.append(json.loads(done.stdout.splitlines()[-1]))
    base = out[1]["peak_mb"]
    rows = [
        (
            f"{r['samples']:,}" if r["samples"] else "none (imports only)",
            f"{r['seconds']:.1f}",
            f"{100 * r['robust']:.1f}%" if r["samples"] else "",
            f"{r['peak_mb']:.0f} MB",
            f"{r['peak_mb'] / base:.3f}" if r["samples"] else "",
        )
        for r in out
    ]
    head = ("samples", "seconds", "robust accuracy", "peak memory", "ratio")
    table("Peak memory of evaluate, streamed data, result folder written", head, rows)
    return out


def command_line(repetitions: int) -> dict[str, Any]:
    """Wall time of `sparring evaluate --help`, and whether it imports torch."""
    command = [str(Path(sys.executable).with_name("sparring")), "evaluate", "--help"]
    environment = {**os.environ, "COLUMNS": "100"}
    times = []
    for _ in range(2 * repetitions + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        times.append(time.perf_counter() - start)
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *command], check=True, capture_output=True, text=True, env=environment
    )
    imports = {
        line.rsplit("|", 1)[-1].strip() for line in traced.stderr.splitlines() if line.startswith("import time:")
    }
    out = {"seconds": statistics.median(times), "all_seconds": times, "imports_torch": "torch" in imports}
    rows = [(f"{out['seconds']:.3f} s", "yes" if out["imports_torch"] else "no", str(len(imports)))]
    table("sparring evaluate --help", ("wall time, median", "imports torch", "modules"), rows)
    return out


def verdicts(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What was asked for, what was measured, and whether it holds."""
    out: list[tuple[str, str, str, bool]] = []
    if "overhead" in found:
        for what, mine in (
            ("overhead, batches of 128 and 256", [r for r in found["overhead"] if r["batch"] >= 128]),
            ("overhead, batches of 16 and 32", [r for r in found["overhead"] if r["batch"] < 128]),
        ):
            worst = max(mine, key=lambda r: r["ratio"])
            out.append((what, "<= 1.05", f"{worst['ratio']:.3f} ({worst['network']})", worst["ratio"] <= 1.05))
    for result in found.get("peers", []):
        rows = {r["name"]: r for r in result["rows"]}
        ours = [rows.pop(f"sparring, {how}") for how in ("stopping", "all steps")]
        if not rows:
            continue
        fastest = min(rows.values(), key=lambda r: r["seconds"])
        for attack, key, least in (
            (ours[0], "over_stopping", 8.0 if "undefended" in result["network"] else 1.3),
            (ours[1], "over_all_steps", 1.0),
        ):
            measured = (
                f"{fastest[key]:.2f} x {fastest['name']}, {100 * attack['robust']:.1f}%/{100 * fastest['robust']:.1f}%"
            )
            holds = fastest[key] >= least and attack["robust"] < fastest["robust"] + 1 / result["batch"]
            out.append((f"{attack['name'].split(', ')[1]}, {result['network']}", f">= {least:g}", measured, holds))
    if "memory" in found:
        grown = found["memory"][2]["peak_mb"] / found["memory"][1]["peak_mb"]
        out.append(("memory at 100,000 / 10,000 samples", "<= 1.10", f"{grown:.3f}", grown <= 1.1))
    if "help" in found:
        help_ = found["help"]
        fast = help_["seconds"] < 0.3 and not help_["imports_torch"]
        out.append(("evaluate --help, without torch", "< 0.3 s", f"{help_['seconds']:.3f} s", fast))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("overhead", "peers", "memory", "help")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="turns that each run takes (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()

    found: dict[str, Any] = {"machine": facts(arguments.seed)}
    print("\n".join(f"{name}: {value}" for name, value in found["machine"].items()))
    for library, reason in missing().items():
        print(f"{library} left out: {reason}")
    if "overhead" in arguments.only:
        found["overhead"] = overhead(arguments.repetitions, arguments.seed)
    if "peers" in arguments.only:
        batches = {"fashion-undefended": 512, "fashion-pgd-trained": 256}
        found["peers"] = [against_peers(name, arguments.repetitions, arguments.seed, n) for name, n in batches.items()]
    if "help" in arguments.only:
        found["help"] = command_line(arguments.repetitions)
    if "memory" in arguments.only:
        found["memory"] = memory()
    found["seconds"] = time.perf_counter() - begun
    found["verdicts"] = verdicts(found)
    rows = [
        (what, target, measured, "holds" if holds else "MISSED") for what, target, measured, holds in found["verdicts"]
    ]
    table("Targets", ("what", "target", "measured", ""), rows)
    print(f"\n{found['seconds']:.0f} s in all")
    if arguments.json:
        partial = arguments.json.with_name(arguments.json.name + ".part")
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(arguments.json)
    return int(not all(holds for *_, holds in found["verdicts"]))


if __name__ == "__main__":
    sys.exit(main())
