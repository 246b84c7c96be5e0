"""What a training step costs beside its bare passes, and an epoch beside the peers' trainers (`training.py steps`).

Bare passes are hand-written loops of the same kinds of passes (to the input on frozen weights; to the weights, for Free and
YOPO to the input as well, and a step of the optimiser) with nothing between them: no projection, no random start, no check.
Two networks: a small CNN on 28×28, where a pass takes 15 ms, and a small residual network on 3×32×32. Peers: ART's trainers,
and torchattacks' attacks in a plain loop, with the same network, batches, optimiser, eps, steps and step size. Runs take
turns within a repetition; a ratio is the median over the repetitions of the ratio within one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from machine import facts, table
from sparring import data, zoo

EPS, BATCH, REPETITIONS = 0.1, 128, 4
BATCHES = {"small-cnn": 12, "small-resnet": 2}
Learn = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]


def network(name: str = "small-cnn") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = zoo.build(name, **({} if name == "small-cnn" else {"in_channels": 3})).train()
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def to_input(model: nn.Module, x: Tensor, y: Tensor) -> None:
    point = x.detach().requires_grad_(True)
    torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)


def to_weights(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: bool = True) -> None:
    F.cross_entropy(model(x), y).backward()
    if step:
        optimizer.step()
        optimizer.zero_grad()


def bare(
    crafting: int, learning: int = 1, joint: bool = False, steps: bool = True, through: bool | None = None
) -> Learn:
    """So many passes to the input, then so many to the weights, with a step after each or after the last.

    through: those to the weights go on to the input (True; False: all but the last do).
    """

    def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for _ in range(crafting):
            to_input(model, x, y)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        z, labels = (torch.cat([x, x]), torch.cat([y, y])) if joint else (x, y)
        for i in range(learning):
            last = i + 1 == learning
            point = z.detach().requires_grad_(through is True or (through is False and not last))
            to_weights(model, optimizer, point, labels, step=steps or last)

    return learn


def ours(strategy: Any) -> Learn:
    def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        for loss in strategy(model, sp.Batch(x, y, torch.arange(len(x)))):
            loss.value.backward()
            if loss.update:
                optimizer.step()
                optimizer.zero_grad()

    return learn


def torchattacks(name: str, **settings: Any) -> Learn:
    import torchattacks as lib

    def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        made = getattr(lib, name)(model, eps=EPS, **settings)(x, y)
        to_weights(model.train(), optimizer, made, y)

    return learn


THREAT = sp.Linf(EPS)
STEPS: dict[str, tuple[Callable[[], Any], Learn]] = {
    "Standard": (sp.Standard, bare(0)),
    "FGSM": (lambda: sp.FGSMTraining(THREAT), bare(1)),
    "FGSM-RS": (lambda: sp.FastFGSM(THREAT), bare(1)),
    "N-FGSM": (lambda: sp.NFGSM(THREAT), bare(1)),
    "kept": (lambda: sp.PGDTraining(THREAT, 1, step_size=EPS / 2, keep=True), bare(1)),
    "Free-4": (lambda: sp.Free(THREAT, 4), bare(0, 4, through=True)),
    "PGD-10": (lambda: sp.PGDTraining(THREAT, 10), bare(10)),
    "TRADES-10": (lambda: sp.TRADES(THREAT, steps=10), bare(10, joint=True)),
    "MART-10": (lambda: sp.MART(THREAT, steps=10), bare(10, joint=True)),
    "YOPO-5-3 gradient": (lambda: sp.YOPO(THREAT, 5, 3, form="gradient"), bare(1, 5, steps=False, through=False)),
}


def times(runs: dict[str, Callable[[], None]], repetitions: int = REPETITIONS) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        names = list(runs)
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            start = time.process_time()
            runs[name]()
            if repetition:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    return statistics.median(x / y for x, y in zip(seconds[a], seconds[b]))


def epoch(learn: Learn, x: Tensor, y: Tensor, name: str = "small-cnn") -> Callable[[], None]:
    def run() -> None:
        model, optimizer = network(name)
        for i in range(0, len(x), BATCH):
            learn(model, optimizer, x[i : i + BATCH], y[i : i + BATCH])

    return run


class Whole(nn.Module):
    """The network as one module: of an `nn.Sequential` ART returns what every layer says, which its own trainer trips over."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def art(kind: str, x: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.defences import trainer
    from art.estimators.classification import PyTorchClassifier

    def run() -> None:
        model, optimizer = network()
        made = PyTorchClassifier(
            Whole(model),
            nn.CrossEntropyLoss(),
            (1, 28, 28),
            10,
            optimizer=optimizer,
            clip_values=(0, 1),
            device_type="cpu",
        )
        budget: dict[str, Any] = {"eps": EPS, "eps_step": EPS / 4, "max_iter": 10}
        if kind == "PGD-10":
            trainer.AdversarialTrainerMadryPGD(made, 1, BATCH, **budget).fit(x, y)
        elif kind == "FGSM-RS":
            one_hot = np.eye(10, dtype=np.float32)[y]
            made._reduce_labels = (
                True  # for its trainer counts right answers by class numbers, and its gradients want one-hot
            )
            trainer.AdversarialTrainerFBFPyTorch(made, eps=EPS).fit(x, one_hot, batch_size=BATCH, nb_epochs=1)
        else:
            attack = ProjectedGradientDescentPyTorch(made, **budget, num_random_init=1, verbose=False)
            trades = trainer.AdversarialTrainerTRADESPyTorch(made, attack, beta=6.0)
            trades.fit(x, np.eye(10, dtype=np.float32)[y], batch_size=BATCH, nb_epochs=1)

    return run


def main() -> None:
    torch.set_num_threads(1)
    print(facts(0))
    beside_bare_passes()
    beside_peers()


def beside_bare_passes() -> None:
    x, y = data.open("fashion-mnist:bundled", split="train").tensors(BATCH * BATCHES["small-cnn"])
    inputs = {
        "small-cnn": x,
        "small-resnet": F.pad(x[: BATCH * BATCHES["small-resnet"]], (2, 2, 2, 2)).repeat(1, 3, 1, 1),
    }
    lines = []
    for name, (make, passes) in STEPS.items():
        line = [name]
        for net, shown in inputs.items():
            found = times({"ours": epoch(ours(make()), shown, y, net), "bare": epoch(passes, shown, y, net)})
            per_batch = 1000 * statistics.median(found["bare"]) / BATCHES[net]
            line += [f"{per_batch:.0f}", f"{ratio(found, 'ours', 'bare'):.2f}"]
        lines.append(line)
        print(line, flush=True)
    head = ["strategy", *(part for net in inputs for part in (f"{net}: bare, ms a batch", "ours / bare"))]
    table(f"A strategy's steps beside its bare passes (batch {BATCH})", head, lines)


def beside_peers() -> None:
    x, y = data.open("fashion-mnist:bundled", split="train").tensors(BATCH * BATCHES["small-cnn"])
    array, labels = x.numpy(), y.numpy()
    loops = {"PGD-10": torchattacks("PGD", steps=10, alpha=EPS / 4), "FGSM-RS": torchattacks("FFGSM", alpha=1.25 * EPS)}
    lines = []
    for name in ("PGD-10", "FGSM-RS", "TRADES-10"):
        peers = {"ART": art(name, array, labels)}
        if name in loops:
            peers["torchattacks"] = epoch(loops[name], x, y)
        try:
            found = times({"ours": epoch(ours(STEPS[name][0]()), x, y), **peers}, 3)
        except ImportError as error:
            print(f"{name}: {error}; run in an environment with the [bench] extra")
            continue
        lines += [[name, peer, f"{ratio(found, peer, 'ours'):.2f}×"] for peer in peers]
    table("An epoch of the peers beside ours, at equal method", ["method", "peer", "its time / ours"], lines)


if __name__ == "__main__":
    main()
