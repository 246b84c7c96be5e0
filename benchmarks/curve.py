"""Accuracy against eps from one run, against a full evaluation at each smaller eps.

    python benchmarks/curve.py [NETWORK ...] [--samples 300]

`evaluate` gives the curve from the examples of its one run: ten minimal-norm steps go inwards from each. The truth is at most
what the same cascade finds when it is run at that eps; "difference" is how far the curve lies above it, in points.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import sparring as sp
from machine import facts, table
from networks import NETWORKS

PARTS = (0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "network",
        nargs="*",
        default=["mnist-undefended", "mnist-fgsm-trained", "cifar10-resnet4b", "fashion-pgd-trained"],
    )
    parser.add_argument("--samples", type=int, default=300)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in facts(0).items():
        print(f"{name}: {value}")
    rows = []
    for name in chosen.network:
        network = NETWORKS[name]
        net, (x, y) = network.load(), network.test_data(chosen.samples)
        one = sp.evaluate(net, (x, y), sp.Linf(network.eps))
        for part in PARTS:
            eps = network.eps * part
            curve = float((one.distance > eps * (1 + 1e-6)).float().mean())
            full = sp.evaluate(net, (x, y), sp.Linf(eps)).robust_accuracy.value
            difference = f"{100 * (curve - full):+.1f}"
            rows.append((name, f"{eps:.4g}", f"{100 * curve:.1f}", f"{100 * full:.1f}", difference))
    table("Accuracy at a smaller eps, %", ("network", "eps", "from one run", "evaluated there", "difference"), rows)


if __name__ == "__main__":
    main()
