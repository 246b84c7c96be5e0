"""Adversarial training that sticks at 5%: what BatchNorm has to do with it, on German traffic signs.

    python benchmarks/gtsrb_batchnorm.py run [--out FILE] [--seeds 0 1] [--samples 3840] [CELL ...]
    python benchmarks/gtsrb_batchnorm.py table|figure [--out FILE]

The recipe that failed: an ImageNet network with BatchNorm under Flatten, Dense(1024, sigmoid), Dense(43); Nesterov SGD, batch 32,
loss ½·CE(x) + ½·CE(x + FGSM), eps .01, BatchNorm momentum .99 in Keras, .01 here; images in [0, 1] fed to a network that was
pretrained at another scale. Here on EfficientNet-Lite0, whose weights can be had as a package (`sparring[imagenet]`).

A cell is SCALE/MOMENTUM/MODE, with options, as in 64th/0.01/inference or 64th/0.01/inference/batch=16:
SCALE     right: (x − .498)/.502 as in pretraining; 4th, 16th, 64th, 128th: x/4, …; or lenet, alexnet, vgg: no BatchNorm at all.
MODE      clean: no adversarial term. inference: the attack and the adversarial forward use running statistics, the clean forward
          batch ones (the recipe that failed). eval: only the attack uses running statistics. batch: none does. auto: the default.
Options   batch=16, lr=0.001, recalibrated (statistics are taken from the training mixture before the first batch), keras (the
          same network and weights as a Keras 3 model, `sparring[keras]`).

Needs `$SPARRING_DATA/gtsrb32`: 5,000 + 5,000 signs. One line of JSON a few hundred samples; a run that was stopped goes on at
the first cell that is not complete.
"""  # fmt: skip

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from gtsrb_tables import draw, show
from machine import facts
from sparring import zoo
from sparring.training.batchnorm import batch_statistics, layers
from sparring.training.crafting import craft
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy
from sparring.training.supervised import Mixed, Standard
from sparring.zoo.efficientnet import MEAN, STD

SIDE, EPS, CLASSES, HELD_OUT, EVERY, RECALIBRATED = 48, 0.01, 43, 320, 480, 640
SCALES = {"4th": 1 / 4, "16th": 1 / 16, "64th": 1 / 64, "128th": 1 / 128}
MAIN = [
    f"{s}/{m}/{mode}"
    for mode in ("inference", "batch", "clean", "eval")
    for s in ("64th", "right")
    for m in (0.01, 0.1)
]
CURES = [
    "64th/0.01/auto",
    "64th/0.01/inference/recalibrated",
    "64th/0.5/inference",
    "64th/0.01/inference/batch=16",
    "right/0.01/auto",
    "64th/0.01/clean/lr=0.001",
    "64th/0.01/inference/lr=0.001",
    "64th/0.01/auto/lr=0.001",
    "16th/0.01/inference",
    "4th/0.01/inference",
    "128th/0.01/inference",
]
CONTROLS = [f"{net}/0.01/{mode}" for net in ("lenet", "alexnet", "vgg") for mode in ("clean", "inference", "auto")]


class Signs(nn.Module):
    """x (B, 3, H, W) in [0, 1] to logits (B, 43): the pretrained body at some scale of its inputs, and the recipe's head."""

    def __init__(self, scale: float | None, momentum: float, seed: int) -> None:
        super().__init__()
        self.scale = scale
        self.body = zoo.build("efficientnet-lite0")
        self.body.classifier = nn.Identity()
        for layer in self.body.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = momentum
        torch.manual_seed(seed)
        features = self.features(torch.zeros(1, 3, SIDE, SIDE)).numel()
        self.top = nn.Sequential(nn.Flatten(), nn.Linear(features, 1024), nn.Sigmoid(), nn.Linear(1024, CLASSES))

    def features(self, x: Tensor) -> Tensor:
        x = (x - MEAN) / STD if self.scale is None else x * self.scale
        return self.body.head(self.body.blocks(self.body.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.features(x))


def alexnet() -> nn.Sequential:
    """AlexNet's plan (Krizhevsky et al., 2012) for 32×32: five convolutions, three poolings, dropout, no normalisation."""
    layers: list[nn.Module] = []
    for fan_in, fan_out, pool in ((3, 32, True), (32, 64, True), (64, 96, False), (96, 96, False), (96, 64, True)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    dense = [nn.Flatten(), nn.Dropout(), nn.Linear(64 * 16, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*layers, *dense)


def vgg() -> nn.Sequential:
    """VGG's plan (Simonyan and Zisserman, 2015) for 32×32: pairs of 3×3 convolutions between poolings, no normalisation."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(fan_out, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)  # torch's own shrinks the signal too much for six layers
    return net


class InferenceMode(Mixed):
    """The recipe that failed: the attack and the adversarial forward in inference mode, only the clean forward in train mode."""

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        with self.crafting(model, batch) as borrowed:
            examples = craft(self.attack, borrowed, batch.x, batch.y, indices=batch.indices, seed=self.draw_seed(batch))

        def mixture(seen: Seen) -> Tensor:
            clean = self.forward(model, batch.x, batch.y, "clean")
            model.eval()
            adversarial = self.forward(model, examples, batch.y)
            model.train()
            seen.add("clean", clean, batch.y)
            seen.add("adversarial", adversarial, batch.y)
            return self.alpha * F.cross_entropy(clean, batch.y) + (1 - self.alpha) * F.cross_entropy(
                adversarial, batch.y
            )

        yield Loss(mixture)


@dataclass(frozen=True)
class Cell:
    """One run: what is written before its first `/` … (see above), and a seed."""

    name: str
    seed: int

    @property
    def option(self) -> dict[str, str]:
        return dict(part.partition("=")[::2] for part in self.name.split("/")[3:])

    @property
    def mode(self) -> str:
        return self.name.split("/")[2]

    @property
    def side(self) -> int:
        return SIDE if self.name.split("/")[0] in (*SCALES, "right") else 32

    def model(self) -> nn.Module:
        what, momentum, *_ = self.name.split("/")
        torch.manual_seed(self.seed)
        if what in (*SCALES, "right"):
            signs = Signs(SCALES.get(what), float(momentum), self.seed)
            if "keras" not in self.option:
                return signs
            from keras_signs import build

            return build(signs, SIDE, float(momentum))
        return {"lenet": lambda: zoo.build("lenet5", self.seed, in_channels=3, size=32, classes=CLASSES),
                "alexnet": alexnet, "vgg": vgg}[what]()  # fmt: skip

    def strategy(self) -> Strategy:
        if self.mode == "clean":
            return Standard(seed=self.seed)
        kind, bn = (InferenceMode, "eval") if self.mode == "inference" else (Mixed, self.mode)
        return kind(sp.FGSM(sp.Linf(EPS)), alpha=0.5, bn=bn, seed=self.seed)


def signs(split: str, side: int) -> tuple[Tensor, Tensor]:
    """(x (5000, 3, side, side) float32 in [0, 1], y (5000,)) of $SPARRING_DATA/gtsrb32."""
    place = Path(os.environ["SPARRING_DATA"]) / "gtsrb32"
    columns = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(place.glob(f"{split}_*.webp"))]
    x = torch.from_numpy(np.concatenate(columns).reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).float() / 255
    if side != 32:
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)
    return x, torch.from_numpy(np.load(place / "labels.npz")[f"{split}_label"][: len(x)]).long()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_statistic: bool) -> float:
    """In eval mode, or with the statistics of each batch of 64; nothing in the model moves."""
    model.train()
    chosen = layers(model) if batch_statistic else []
    model.eval()
    with batch_statistics(chosen):
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(64), y.split(64), strict=True))
    model.train()
    return right / len(x)


def train(cell: Cell, samples: int) -> Iterator[dict[str, Any]]:
    """A record every EVERY samples."""
    (x, y), (held_x, held_y) = signs("train", cell.side), signs("test", cell.side)
    generator = torch.Generator().manual_seed(cell.seed)
    chosen = torch.randperm(len(held_x), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    held_x, held_y = held_x[chosen], held_y[chosen]
    model, strategy = cell.model().train(), cell.strategy()
    optimizer = torch.optim.SGD(model.parameters(), lr=float(cell.option.get("lr", 0.01)), momentum=0.9, nesterov=True)
    size = int(cell.option.get("batch", 32))
    epochs = -(-samples // len(x))
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(epochs)])[:samples]
    if "recalibrated" in cell.option:
        sp.recalibrate(model, [(x[i], y[i]) for i in order[:RECALIBRATED].split(32)], strategy)
    right: dict[str, list[float]] = {"clean": [], "adversarial": []}
    started = time.perf_counter()
    for step, chosen in enumerate(order.split(size)):
        for loss in strategy(model, Batch(x[chosen], y[chosen], chosen, step)):
            loss.value.backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, (answers, n) in loss.seen.right.items():
                right[name].append(int(answers) / n)
        if (done := step * size + len(chosen)) % EVERY == 0:
            seconds = time.perf_counter() - started
            record = {
                "cell": cell.name, "seed": cell.seed, "samples": done, "seconds": round(seconds, 1),
                **{name: round(float(np.mean(values)), 4) for name, values in right.items() if values},
                "eval": accuracy(model, held_x, held_y, False), "batch": accuracy(model, held_x, held_y, True),
                "mode": strategy.statistics.mode, "last": done + EVERY > samples,
            }  # fmt: skip
            if record["last"]:
                sp.recalibrate(model, [(x[i], y[i]) for i in order[:RECALIBRATED].split(32)], strategy)
                record["recalibrated"] = accuracy(model, held_x, held_y, False)
            yield record
            right = {name: [] for name in right}


def read(out: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The records by cell and seed; of a cell that was begun twice, the last time."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in out.read_text().splitlines() if out.exists() else ():
        record = json.loads(line)
        if "cell" not in record:
            continue
        before = found.setdefault((record["cell"], record["seed"]), [])
        if before and record["samples"] <= before[-1]["samples"]:
            before.clear()
        before.append(record)
    return found


def write(record: dict[str, Any], out: Path) -> None:
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(record, flush=True)


def run(names: list[str], seeds: list[int], samples: int, out: Path) -> None:
    write({"kind": "machine", **facts(seeds[0])}, out)
    for seed in seeds:
        for name in names:
            known = read(out).get((name, seed), [])
            if known and known[-1]["samples"] + EVERY > samples:
                continue
            for record in train(Cell(name, seed), samples):
                write(record, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "figure"])
    parser.add_argument("cells", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("gtsrb-batchnorm.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=3840)
    arguments = parser.parse_intermixed_args()  # cells may stand behind options
    torch.set_num_threads(1)
    if arguments.what == "run":
        run(arguments.cells or [*MAIN, *CURES, *CONTROLS], arguments.seeds, arguments.samples, arguments.out)
    elif arguments.what == "table":
        show(read(arguments.out))
    else:
        draw(read(arguments.out), Path(__file__).parent.parent / "docs" / "figures" / "gtsrb-batchnorm.png")


if __name__ == "__main__":
    main()
