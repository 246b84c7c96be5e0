"""Few labels: what virtual adversarial training makes of them, beside supervised training on the same labels.

    python benchmarks/vat.py run --out vat.jsonl [--tasks mnist-100 mnist-1000] [--seeds 5] [--part 1/2] [--minutes 15]
    python benchmarks/vat.py table --out vat.jsonl [--figure vat.svg]
    python benchmarks/vat.py run --tasks cifar10-4000 --out vat.jsonl      # on a GPU

The labels are as many of each class, drawn anew for every seed; all other training images are learned from without theirs.
What a setting is good for was decided on validation images, which are taken from the training images before the labels are
drawn; every training is judged on the test images once, at its end, by its averaged last weights. An epoch's row is written
as it comes, and a run that was stopped goes on (its state lies in the folder FILE.state). Minutes are of one processor's
time (on a GPU, by the clock), without validation. --minutes stops each training there; its row then says unfinished.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import sparring as sp
from machine import facts
from sparring import data
from sparring.data import few_labels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PUBLISHED = {
    "mnist-100": 1.36,
    "mnist-1000": 1.27,
    "cifar10-4000": 10.55,
}  # Miyato et al. (2018); CIFAR: augmented, EntMin


def strided() -> nn.Module:
    """Three convolutions (16, 32 and 32 maps, the first two with stride 2) and 128 hidden units, each with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def conv_large() -> nn.Module:
    """Conv-Large of Miyato et al. (2018), for images of 32×32 in [0, 1]."""

    def block(*widths: int, size: int = 3, padding: int = 1) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, size, padding=padding, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.1),
            ]
        return layers

    network = nn.Sequential(
        *block(3, 128, 128, 128), nn.MaxPool2d(2), nn.Dropout(0.5),
        *block(128, 256, 256, 256), nn.MaxPool2d(2), nn.Dropout(0.5),
        *block(256, 512, padding=0), *block(512, 256, 128, size=1, padding=0),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return sp.normalized(network, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def late(done: float) -> float:
    """The rate stays for half of the training, then falls linearly to zero."""
    return min(1.0, 2 * (1 - done))


@dataclass(frozen=True)
class Task:
    """Data, labels, network and how long it learns: epochs over the unlabelled images, and (supervised) over the labelled."""

    dataset: str
    labels: int
    network: Callable[[], nn.Module] = strided
    eps: float = 2.0
    entropy: bool = True
    epochs: int = 6
    supervised_epochs: int = 500
    validation: int = 5_000
    batch: int = 50
    unlabelled_batch: int = 128
    lr: float = 2e-3
    average: float = 0.99
    fit: dict[str, Any] = field(default_factory=lambda: {"augment": "shift"})


CIFAR = {"augment": "mirror-shift", "channels_last": True, "precision": "bf16" if DEVICE == "cuda" else None}
TASKS = {
    "mnist-100": Task("mnist", 100),
    "mnist-1000": Task("mnist", 1000, supervised_epochs=60),
    "fashion-100": Task("fashion-mnist", 100),
    "fashion-1000": Task("fashion-mnist", 1000, supervised_epochs=60),
    "cifar10-4000": Task(
        "cifar10", 4000, conv_large, eps=2.0, epochs=300, supervised_epochs=400, batch=32, lr=1e-3,
        average=0.999, fit=CIFAR,
    ),
}  # fmt: skip
METHODS: dict[str, Callable[[Task, int], Any]] = {
    "labels only": lambda task, seed: sp.Standard(seed=seed),
    "VAT": lambda task, seed: sp.VAT(task.eps, entropy_minimisation=task.entropy, seed=seed),
}


class Clock:
    """A callback that writes each epoch down, with the minutes so far, also those before a stop."""

    def __init__(self, book: Book, key: dict[str, Any]) -> None:
        self.book, self.key, self.minutes = book, key, 0.0
        self.since = self.now()

    @staticmethod
    def now() -> float:
        return (time.process_time() if DEVICE == "cpu" else time.monotonic()) / 60

    def after_step(self, run: Any) -> None:
        now = self.now()
        self.minutes, self.since = self.minutes + now - self.since, now

    def after_epoch(self, run: Any) -> None:
        row = run.history[-1]
        accuracy = row.validation_accuracy
        self.since = self.now()  # validation does not count
        if accuracy is not None:
            error = 100 * (1 - accuracy)
            self.book.add(
                "epoch", **self.key, epoch=row.epoch, minutes=self.minutes, loss=row.loss, validation_error=error
            )

    def state_dict(self) -> dict[str, Any]:
        return {"minutes": self.minutes}

    def load_state_dict(self, state: dict[str, Any], run: Any) -> None:
        self.minutes, self.since = state["minutes"], self.now()


class Book:
    """Rows in a file of JSON lines, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, kind: str) -> list[dict[str, Any]]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    def add(self, kind: str, **row: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **row}) + "\n")
        told = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        print(" ".join(f"{name}={value}" for name, value in told.items() if name != "machine"), flush=True)


def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of wrong answers."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a.to(DEVICE)).argmax(1).cpu() == b).sum()) for a, b in zip(x.split(500), y.split(500)))
    return 100 * (1 - right / len(y))


def train(name: str, method: str, seed: int, book: Book, minutes: float | None) -> None:
    task = TASKS[name]
    x, y = data.open(task.dataset, split="train").tensors()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, pool = order[: task.validation], order[task.validation :]
    chosen = pool[torch.from_numpy(few_labels(y[pool].numpy(), task.labels, seed))]
    torch.manual_seed(seed)
    model = task.network().to(DEVICE, memory_format=torch.channels_last)
    strategy = METHODS[method](task, seed).with_(sp.EMA(task.average))
    others = x[pool] if strategy.takes_unlabelled else None
    epochs = task.epochs if others is not None else task.supervised_epochs
    clock = Clock(book, {"task": name, "method": method, "seed": seed})
    state = Path(f"{book.path}.state") / f"{name}-{method.replace(' ', '-')}-{seed}"
    result = sp.fit(
        model, (x[chosen], y[chosen]), strategy, unlabelled=others, epochs=epochs, batch_size=task.batch,
        unlabelled_batch_size=None if others is None else task.unlabelled_batch, optimizer="adam", lr=task.lr, schedule=late,
        validation=(x[held], y[held]), validation_samples=None, evaluate_every=max(1, epochs // 40), health=False, seed=seed,
        callbacks=[clock], out=state, loggers=["csv"], time_limit=None if minutes is None else 60 * minutes,
        **{"channels_last": True, **task.fit},
    )  # fmt: skip
    if not result.finished:
        with torch.no_grad():
            model.load_state_dict(result.strategy.parts[-1].averaged(model).state_dict())
    test = data.open(task.dataset, split="test").tensors()
    book.add(
        "final", **clock.key, test_error=error(model, *test), minutes=clock.minutes, finished=result.finished,
        epochs=len(result.history), forwards=strategy.passes.forwards, backwards=strategy.passes.backwards,
        device=DEVICE, machine=facts(seed),
    )  # fmt: skip


def run(names: list[str], seeds: int, book: Book, part: tuple[int, int], minutes: float | None) -> None:
    jobs = [(name, method, seed) for seed in range(seeds) for name in names for method in METHODS]
    for name, method, seed in jobs[part[0] - 1 :: part[1]]:
        key = {"task": name, "method": method, "seed": seed}
        if not any(key.items() <= row.items() for row in book.rows("final")):
            train(name, method, seed, book, minutes)


def table(book: Book, figure: Path | None) -> None:
    print("| task | labels only, test error % | VAT, test error % | published | seeds | minutes a VAT seed |")
    print("|---|---|---|---|---|---|")
    final = book.rows("final")
    for name in TASKS:
        found = {m: [row for row in final if row["task"] == name and row["method"] == m] for m in METHODS}
        if not any(found.values()):
            continue
        cells = [spread([row["test_error"] for row in rows]) for rows in found.values()]
        time_taken = [row["minutes"] for row in found["VAT"]]
        minutes = f"{statistics.mean(time_taken):.1f}" if time_taken else "–"
        late_ones = sum(not row["finished"] for rows in found.values() for row in rows)
        counts = "/".join(str(len(rows)) for rows in found.values()) + (
            f" ({late_ones} unfinished)" if late_ones else ""
        )
        print(f"| {name} | {cells[0]} | {cells[1]} | {PUBLISHED.get(name, '–')} | {counts} | {minutes} |")
    curves = book.rows("epoch")
    print("\nValidation error % against minutes, mean of the seeds (VAT):")
    for name in TASKS:
        rows = [row for row in curves if row["task"] == name and row["method"] == "VAT"]
        for epoch in sorted({row["epoch"] for row in rows}):
            those = [row for row in rows if row["epoch"] == epoch]
            at = statistics.mean(row["minutes"] for row in those)
            errors = spread([row["validation_error"] for row in those])
            print(f"  {name} epoch {epoch}: {at:.1f} minutes, {errors} ({len(those)} seeds)")
    if figure is not None:
        draw(curves, figure)


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    from sparring.inspection import style

    names = [name for name in TASKS if any(row["task"] == name for row in rows)]
    wide, high = min(2, len(names)), math.ceil(len(names) / 2)
    made = style.new_figure(5.2 * wide, 4.2 * high)
    places = list(made.subplots(high, wide, squeeze=False).flat)
    for axes in places[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(places, names):
        style.dress(axes)
        for number, method in enumerate(METHODS):
            mine = [row for row in rows if row["task"] == name and row["method"] == method]
            for seed in sorted({row["seed"] for row in mine}):
                points = [(row["minutes"], row["validation_error"]) for row in mine if row["seed"] == seed]
                label = method if seed == 0 else None
                axes.plot(
                    *zip(*points), color=style.SERIES[number], linestyle=style.DASHES[number], alpha=0.7, label=label
                )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("minutes")
        axes.set_ylabel("validation error, %")
        style.title(axes, name)
        style.legend(axes)
    style.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), default=[name for name in TASKS if name != "cifar10-4000"]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", default="1/1", help="i/n: every n-th training, from the i-th")
    parser.add_argument("--minutes", type=float, help="by the clock, a training at most")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    book = Book(given.out)
    if given.action == "run":
        i, n = (int(number) for number in given.part.split("/"))
        run(given.tasks, given.seeds, book, (i, n), given.minutes)
    else:
        table(book, given.figure)


if __name__ == "__main__":
    main()
