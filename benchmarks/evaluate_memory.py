"""Peak resident memory of one `sparring.evaluate` over N samples that are made when asked for: prints one line of JSON.

python benchmarks/evaluate_memory.py 100000
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import sparring as sp

SHAPE = (1, 28, 28)


class Streamed(Dataset[tuple[Tensor, int]]):
    """N random images, labelled with what `net` says, so that every one of them is attacked; nothing is kept."""

    def __init__(self, net: nn.Module, samples: int) -> None:
        self.net, self.samples = net, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.samples:
            raise IndexError(index)
        x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            return x, int(self.net(x[None]).argmax())


def peak_mb() -> float:
    """Of this process alone: on Linux ru_maxrss starts from the peak of whoever started it, VmHWM does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def main(samples: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    start = time.perf_counter()
    robust = 0.0
    sp.evaluate, sp.Linf, sp.PGD  # noqa: B018  (lazy names: the imports belong to the base, too)
    if samples:
        threat = sp.Linf(0.012)
        with tempfile.TemporaryDirectory() as folder:
            attacks = [sp.PGD(threat, steps=10)]
            result = sp.evaluate(net, Streamed(net, samples), threat, attacks=attacks, batch_size=256, out=folder)
            robust = result.robust_accuracy.value
    peak = peak_mb()
    seconds = time.perf_counter() - start
    print(json.dumps({"samples": samples, "seconds": seconds, "robust": robust, "peak_mb": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
