"""What adversarial training costs and what it brings: every strategy, its best schedule, its verdict on all test images.

    python benchmarks/training.py search final verdict pace --data fashion-mnist --out training.jsonl
    python benchmarks/training.py table --out training.jsonl [--figure training.svg]
    python benchmarks/training.py race --data cifar10        # on a GPU: seconds to 50% robust accuracy
    python benchmarks/training.py steps                      # a step's cost beside its bare passes, and beside the peers'

`search` trains every method at the same schedules (epochs, learning rate, batch) and scores them by PGD-20 on held-out
training images. `final` trains more seeds of each method's best schedule (`--equal`: of the equal one, too). `verdict` runs
`sparring.evaluate` (adaptive) on all test images, for those and for the equal schedule. Every result is appended to the
file as it comes; what is there is not measured again. `pace` trains two epochs of each, one after the other, in three
turns: where it was run, the tables' seconds are the fastest turn's, else the mean of the trainings themselves.
Seconds are processor seconds of one thread (on a GPU, seconds), without validation. --part i/n: share the runs of one word
with other processes, or share by --methods (a method's schedule is chosen when its search is complete).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparring as sp
import training_tables
from machine import facts
from sparring import data, zoo
from training_tables import Schedule, chosen

Make = Callable[["Task"], Any]
Jobs = Iterator[tuple[dict[str, Any], Callable[[], None]]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, eq=False)
class Task:
    """Data, network, threat, and how much of it: what all methods share."""

    dataset: str
    network: str
    eps: float
    images: int
    test: int = 10_000
    held_out: int = 2_000
    args: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=lambda: {"optimizer": "adam"})
    trials: tuple[Schedule, ...] = ((3, 0.01, 64), (5, 0.01, 96), (10, 4e-3, 128))
    equal: Schedule = (10, 4e-3, 128)
    clean: int = (
        0  # epochs of ordinary training first, at 1e-3: where eps is large PGD training from scratch stays at chance
    )

    @property
    def threat(self) -> sp.Threat:
        return sp.Linf(self.eps)


TASKS = {
    "fashion-mnist": Task("fashion-mnist", "small-cnn", 0.1, 10_000),
    "mnist": Task("mnist", "small-cnn", 0.3, 10_000, clean=1, trials=((5, 0.01, 96), (10, 4e-3, 128))),
    "cifar10": Task(  # for a GPU
        "cifar10",
        "preact-resnet18",
        8 / 255,
        48_000,
        args={"in_channels": 3},
        trials=((10, 0.2, 128), (15, 0.2, 128), (30, 0.1, 128), (30, 0.2, 128)),
        equal=(30, 0.2, 128),
        fit={
            "optimizer": "sgd",
            "weight_decay": 5e-4,
            "augment": "mirror-shift",
            "precision": "bf16",
            "channels_last": True,
            "compile": True,
        },
    ),
    "cifar10-reduced": Task(
        "cifar10",
        "small-cnn",
        8 / 255,
        10_000,
        args={"in_channels": 3, "size": 32},
        trials=((5, 0.01, 96), (10, 4e-3, 128)),
    ),
}


@cache
def source(task: Task, seed: int) -> nn.Module:
    """A network that was trained on clean images only, on which `EnsembleTraining` finds examples, too."""
    model = zoo.build(task.network, seed=seed, **task.args)
    sp.fit(model, images(task)[0], sp.Standard(), epochs=3, lr=4e-3, batch_size=128, seed=seed, validation=False,
           device=DEVICE, **task.fit)  # fmt: skip
    return model.eval()


METHODS: dict[str, Make] = {
    "standard": lambda t: sp.Standard(),
    "mixed FGSM": lambda t: sp.Mixed(sp.FGSM(t.threat)),
    "FGSM": lambda t: sp.FGSMTraining(t.threat),
    "FGSM-RS": lambda t: sp.FastFGSM(t.threat),
    "N-FGSM": lambda t: sp.NFGSM(t.threat),
    "GradAlign": lambda t: sp.GradAlign(t.threat),
    "ensemble": lambda t: sp.EnsembleTraining(sp.FGSM(t.threat), [source(t, seed) for seed in (100, 101)]),
    "generator": lambda t: sp.GeneratorTraining(t.threat, channels=t.args.get("in_channels", 1)),
    "Free-4": lambda t: sp.Free(t.threat, 4),
    "PGD-10": lambda t: sp.PGDTraining(t.threat, 10),
    "PGD-10 + AWP": lambda t: sp.PGDTraining(t.threat, 10).with_(sp.AWP()),
    "TRADES": lambda t: sp.TRADES(t.threat),
    "TRADES-YOPO-5-3": lambda t: sp.TRADESYOPO(t.threat, 5, 3),
    "MART": lambda t: sp.MART(t.threat),
    "YOPO-5-3": lambda t: sp.YOPO(t.threat, 5, 3),
    "YOPO-5-3 gradient": lambda t: sp.YOPO(t.threat, 5, 3, form="gradient"),
    "YOPO-5-3 gradient, kept": lambda t: sp.YOPO(t.threat, 5, 3, form="gradient", keep=True),
    "Free-4 kept": lambda t: sp.Free(t.threat, 4, keep=True),
    "kept": lambda t: sp.PGDTraining(t.threat, 1, keep=True),
    "kept + EMA": lambda t: sp.PGDTraining(t.threat, 1, keep=True).with_(sp.EMA(0.998)),
    "kept, in haste": lambda t: sp.PGDTraining(sp.Linf(1.1 * t.eps), 1, step_size=0.9 * t.eps, keep=True),
    "PGD-10, in haste": lambda t: sp.PGDTraining(t.threat, 10),
}
# beside the equal search: what trying some ninety settings on held-out images found to be fastest, and PGD-10 with the same
# schedule and layout
FOUND: dict[str, Schedule] = {"kept, in haste": (3, 0.015, 48), "PGD-10, in haste": (3, 0.015, 48)}


class Book:
    """Results in a file of JSON lines, one a run, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if kind is None or row["kind"] == kind]

    def has(self, **key: Any) -> bool:
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows())

    def add(self, **row: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            " ".join(f"{k}={round(v, 4) if isinstance(v, float) else v}" for k, v in row.items() if k != "curve"),
            flush=True,
        )


def images(task: Task) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training samples, and held-out ones of the same training set."""
    x, y = data.open(task.dataset, split="train").tensors()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, used = order[: task.held_out], order[task.held_out : task.held_out + task.images]
    return (x[used], y[used]), (x[held], y[held])


def standing(model: nn.Module, held: tuple[Tensor, Tensor], threat: sp.Threat) -> tuple[float, float]:
    """Clean accuracy, and accuracy under PGD-20."""
    attack = sp.PGD(threat, steps=20, step_size=float(threat.eps) / 8, stop_when_fooled=True)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    right = stand = 0
    for x, y in zip(held[0].split(500), held[1].split(500)):
        x, y = x.to(DEVICE), y.to(DEVICE)
        with torch.no_grad():
            correct = model(x).argmax(1) == y
        right += int(correct.sum())
        stand += int((~attack(model, x[correct], y[correct]).success).sum())
    for module, mode in modes:
        module.training = mode
    return right / len(held[1]), stand / len(held[1])


def now() -> float:
    """Processor seconds, or seconds once the GPU has done what it was given."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Processor seconds of training, without what validation takes; robust accuracy on held-out images by then."""

    def __init__(self, held: tuple[Tensor, Tensor], threat: sp.Threat) -> None:
        self.held, self.threat = held, threat
        self.seconds, self.curve, self.mark = 0.0, [], now()

    def after_epoch(self, run: Any) -> None:
        self.seconds += now() - self.mark
        self.curve.append([self.seconds, *standing(evaluated(run.model, run.strategy), self.held, self.threat)])
        self.mark = now()


def evaluated(model: nn.Module, strategy: Any) -> nn.Module:
    """A copy of the network as it would be used: with the averaged weights, where there are such."""
    for part in getattr(strategy, "parts", ()):
        if isinstance(part, sp.EMA):
            with part.applied(model):
                return copy.deepcopy(model)
    return copy.deepcopy(model)


def how(task: Task, method: str) -> dict[str, Any]:
    """What `fit` is told beside the schedule. A kept perturbation wants its image where it was."""
    told = {**task.fit, "channels_last": True} if method in FOUND else dict(task.fit)
    if METHODS[method](task).needs_indices:
        told.pop("augment", None)
    return told


def first(task: Task, model: nn.Module, used: tuple[Tensor, Tensor], seed: int) -> None:
    """The epochs of ordinary training that all methods begin with."""
    sp.fit(
        model, used, sp.Standard(), epochs=task.clean, lr=1e-3, schedule="constant", batch_size=128, seed=seed,
        validation=False, device=DEVICE, **task.fit,
    )  # fmt: skip


def learn(task: Task, method: str, schedule: Schedule, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network and its figures."""
    used, held = images(task)
    threat = task.threat
    epochs, lr, batch = schedule
    model, strategy = zoo.build(task.network, seed=seed, **task.args), METHODS[method](task)
    strategy.seed = seed
    clock = Clock((held[0][:1000], held[1][:1000]), threat)
    if task.clean:
        first(task, model, used, seed)
    sp.fit(
        model, used, strategy, epochs=epochs, lr=lr, schedule="cyclic", batch_size=batch, seed=seed,
        validation=False, callbacks=[clock], device=DEVICE, **how(task, method),
    )  # fmt: skip
    best = evaluated(model, strategy)
    clean, robust = standing(best, held, threat)
    passes = strategy.passes
    return best, {
        "clean": clean, "robust": robust, "seconds": clock.seconds, "curve": clock.curve,
        "passes": (passes.forwards + passes.backwards) / 2 / task.images / epochs,
    }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One data set's runs, in one file of results and one folder of weights."""

    name: str
    book: Book
    folder: Path
    methods: list[str]
    seeds: int
    equal: bool

    @property
    def task(self) -> Task:
        return TASKS[self.name]

    def key(self, method: str, schedule: Schedule, seed: int) -> dict[str, Any]:
        names = ("epochs", "lr", "batch")
        return {"data": self.name, "method": method, **dict(zip(names, schedule, strict=True)), "seed": seed}

    def file(self, method: str, schedule: Schedule, seed: int) -> Path:
        return self.folder / f"{'-'.join(map(str, self.key(method, schedule, seed).values()))}.safetensors"

    def trained(self, method: str) -> list[Schedule]:
        """The schedules that go on: the best, and the equal one."""
        if method in FOUND:
            return [FOUND[method]]
        rows = [row for row in self.book.rows("run") if row["data"] == self.name]
        return list(dict.fromkeys((chosen(rows, method), self.task.equal)))

    def search(self) -> Jobs:
        for method in self.methods:
            for schedule in (FOUND[method],) if method in FOUND else self.task.trials:
                yield {"kind": "run", **self.key(method, schedule, 0)}, partial(self.train, method, schedule, 0)

    def final(self) -> Jobs:
        for seed, method in itertools.product(range(1, self.seeds), self.methods):
            for schedule in self.trained(method)[: None if self.equal else 1]:
                yield {"kind": "run", **self.key(method, schedule, seed)}, partial(self.train, method, schedule, seed)

    def verdict(self) -> Jobs:
        """Of the best schedules first, all seeds, then of the equal one."""
        for place, seed, method in itertools.product(range(2), range(self.seeds), self.methods):
            for schedule in self.trained(method)[place : place + 1]:
                key = {"kind": "verdict", **self.key(method, schedule, seed)}
                yield key, partial(self.judge, method, schedule, seed)

    def pace(self) -> Jobs:
        for turn, method in itertools.product(range(3), self.methods):
            for schedule in self.trained(method):
                key = {"kind": "pace", **self.key(method, schedule, 0), "turn": turn}
                yield key, partial(self.timed, method, schedule, turn)

    def race(self) -> Jobs:
        return (({"kind": "race", "data": self.name, "method": m}, partial(self.finish, m)) for m in self.methods)

    def train(self, method: str, schedule: Schedule, seed: int) -> None:
        model, figures = learn(self.task, method, schedule, seed)
        self.folder.mkdir(exist_ok=True, parents=True)
        weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, self.file(method, schedule, seed))
        self.book.add(kind="run", **self.key(method, schedule, seed), **figures)

    def timed(self, method: str, schedule: Schedule, turn: int) -> None:
        """Seconds of the whole training, from those of two epochs: where perturbations are kept, the first one is dearer."""
        task, (used, _) = self.task, images(self.task)
        model, strategy = zoo.build(task.network, seed=0, **task.args), METHODS[method](task)
        epochs, lr, batch = schedule
        start = now()
        if task.clean:
            first(task, model, used, seed=0)
        middle = now()
        sp.fit(
            model, used, strategy, epochs=2, lr=lr, batch_size=batch, validation=False, device=DEVICE, **how(task, method),
        )  # fmt: skip
        seconds = middle - start + (now() - middle) * epochs / 2
        self.book.add(kind="pace", **self.key(method, schedule, 0), turn=turn, seconds=seconds)

    def judge(self, method: str, schedule: Schedule, seed: int) -> None:
        if not self.file(method, schedule, seed).is_file():
            return  # not trained
        model = zoo.build(self.task.network, **self.task.args).eval()
        model.load_state_dict(load_file(self.file(method, schedule, seed)))
        x, y = data.open(self.task.dataset, split="test").tensors(self.task.test)
        result = sp.evaluate(model.to(DEVICE), (x, y), self.task.threat, batch_size=500)
        self.book.add(
            kind="verdict", **self.key(method, schedule, seed), test_clean=result.clean_accuracy.value,
            test_robust=result.robust_accuracy.value, warnings=[warning.code for warning in result.warnings],
            stands=packed(result.robust[result.index.argsort()]),
        )  # fmt: skip

    def finish(self, method: str) -> None:
        """Seconds of training to half of the test images, by AutoAttack."""
        task, (used, held) = self.task, images(self.task)
        model, strategy = zoo.build(task.network, **task.args), METHODS[method](task)
        clock = Finish((held[0][:1000], held[1][:1000]), task.threat)
        epochs, lr, batch = task.equal
        with suppress(Arrived):
            sp.fit(
                model, used, strategy, epochs=epochs, lr=lr, schedule="cyclic", batch_size=batch,
                validation=False, callbacks=[clock], device=DEVICE, **how(task, method),
            )  # fmt: skip
        test = data.open(task.dataset, split="test").tensors(task.test)
        model = evaluated(model, strategy).eval()
        result = sp.evaluate(model, test, task.threat, attacks="autoattack", batch_size=500)
        robust = result.robust_accuracy.value
        self.book.add(kind="race", data=self.name, method=method, seconds=clock.seconds, test_robust=robust)


class Arrived(Exception):
    """The goal is reached: no need to go on."""


class Finish(Clock):
    """Stops at the first epoch whose accuracy under PGD-20 on held-out images is `goal`."""

    goal = 0.52  # AutoAttack's is a point or two below

    def after_epoch(self, run: Any) -> None:
        super().after_epoch(run)
        print(f"{self.seconds:.0f} s: clean {self.curve[-1][1]:.3f}, PGD-20 {self.curve[-1][2]:.3f}", flush=True)
        if self.curve[-1][2] >= self.goal:
            raise Arrived


def warm(task: Task) -> None:
    """A short training that nobody times: what the first one loads is no method's time."""
    x, y = images(task)[0]
    model = zoo.build(task.network, **task.args)
    short = (x[:256], y[:256])
    sp.fit(model, short, sp.Standard(), epochs=1, batch_size=128, validation=False, device=DEVICE, **task.fit)


def packed(bits: Tensor) -> str:
    """(N,) bool as hexadecimal text."""
    return np.packbits(bits.numpy()).tobytes().hex()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["search", "final", "verdict", "pace", "table", "race", "steps"])
    parser.add_argument("--data", default="fashion-mnist", choices=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("training.jsonl"))
    parser.add_argument(
        "--weights", type=Path, default=Path(os.environ.get("SPARRING_CACHE", "~/.cache/sparring")).expanduser()
    )
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method at its best schedule")
    parser.add_argument("--equal", action="store_true", help="all seeds at the equal schedule, too (else: one)")
    parser.add_argument("--part", default="1/1")
    given = parser.parse_args()
    torch.set_num_threads(1)
    book = Book(given.out)
    bench = Bench(given.data, book, given.weights / "training", given.methods, given.seeds, given.equal)
    place, parts = map(int, given.part.split("/"))
    if parts > 1 and len(given.what) > 1:
        parser.error(
            f"--part {given.part} with {' '.join(given.what)}: one word a call, for each wants the one before complete"
        )
    for what in given.what:
        if what == "steps":
            import training_steps

            training_steps.main()
            continue
        if what == "table":
            training_tables.write(book.rows(), given.data, given.figure, bench.task.equal, list(METHODS))
            continue
        if place == 1:
            book.add(kind="machine", what=what, **facts(0))
        warm(bench.task)
        jobs: Jobs = getattr(bench, what)()
        for number, (key, job) in enumerate(jobs):
            if number % parts == place - 1 and not book.has(**key):
                job()


if __name__ == "__main__":
    main()
