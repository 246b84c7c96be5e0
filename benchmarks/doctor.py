"""False and missed alarms of `diagnose`, on networks of which it is known what is wrong with them.

    python benchmarks/doctor.py [--set tuned|other] [--out FILE] [NAME ...]

The limits in sparring/training/findings.py were set while looking at the networks of the set `tuned`, and at those alone;
`other` (another data set, other networks, eps, momenta, seeds) tells how good they are. What is wrong with a network is known
from how it was made, or, for overfitting, from an independent measurement on 500 held-out images with 50 steps and restarts.
Every network is made in seconds, on one core. An alarm that a network does not call for is false; one that it calls for and
that does not come is missed.
"""  # fmt: skip

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from machine import table
from sparring import data, zoo
from sparring.training.losses import Batch
from sparring.training.strategy import Strategy

CODES = ["divergence", "input-scale", "few-updates", "running-statistics", "mode-gradients", "constant-predictions",
         "catastrophic-overfitting", "label-leaking", "robust-overfitting"]  # fmt: skip


@dataclass(frozen=True)
class Heart:
    """What is learned by heart: so many images, some of them labelled wrongly, until robust accuracy on others falls."""

    norm: bool  # by the network with BatchNorm, or by the plain one
    images: int
    wrong: float  # share of the labels
    eps: float
    lr: float
    epochs: int
    stopped: int  # epochs after which it still rises


@dataclass(frozen=True)
class Setting:
    """Where the networks of a set live."""

    images: str
    build: Callable[..., nn.Module]
    plain: str
    eps: float
    large: float  # eps at which one-step training overfits catastrophically
    momentum: float
    seed: int
    heart: Heart


def plain_norm(momentum: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(fan_in, fan_out, 4, 2, 1), nn.BatchNorm2d(fan_out, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 49, 100), nn.BatchNorm1d(100, momentum=momentum), nn.ReLU(),
                         nn.Linear(100, 10))  # fmt: skip


def residual(momentum: float, seed: int) -> nn.Module:
    net = zoo.build("small-resnet", seed, in_channels=1, width=8)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    return net


SETS = {
    "tuned": Setting(
        "fashion-mnist", plain_norm, "small-cnn", 0.1, 0.3, 0.1, 0, Heart(True, 400, 0.0, 0.1, 0.02, 24, 6)
    ),
    "other": Setting("mnist", residual, "lenet5", 0.15, 0.3, 0.05, 7, Heart(False, 600, 0.2, 0.1, 0.02, 60, 34)),
}


class Scaled(nn.Module):
    """The network behind inputs of another scale."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.factor)


def learn(
    net: nn.Module, strategy: Strategy, x: Tensor, y: Tensor, steps: int, lr: float = 0.05, size: int = 64
) -> list[float]:
    """Nesterov SGD, rates up and down; the mean loss of each tenth."""
    generator = torch.Generator().manual_seed(strategy.seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    losses: list[float] = []
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, 5 * (step + 1) / steps, 1.25 * (1 - step / steps))
        chosen = torch.randint(len(x), (size,), generator=generator)
        for loss in strategy(net, Batch(x[chosen], y[chosen], chosen, step)):
            loss.value.backward()
            losses.append(loss.value.item())
            optimizer.step()
            optimizer.zero_grad()
    return [
        sum(part) / len(part)
        for i in range(10)
        if (part := losses[i * len(losses) // 10 : (i + 1) * len(losses) // 10])
    ]


class Case:
    """Makes a network, its history, and what it calls for. may: what may come, beside."""

    def __init__(self, at: Setting, name: str) -> None:
        self.at, self.name = at, name
        images, held = data.open(at.images, split="train"), data.open(at.images, split="test")
        self.x, self.y = images.tensors(6000)
        self.held_x, self.held_y = held.tensors(500)
        self.small, self.large = sp.Linf(at.eps), sp.Linf(at.large)

    def net(self, momentum: float | None = None) -> nn.Module:
        return self.at.build(self.at.momentum if momentum is None else momentum, self.at.seed)

    def fit(self, net: nn.Module, strategy: Strategy, steps: int = 300, **settings: Any) -> list[dict[str, float]]:
        return [{"loss": loss} for loss in learn(net, strategy, self.x, self.y, steps, **settings)]

    def make(self) -> tuple[nn.Module, sp.Threat, list[dict[str, Any]], set[str], set[str]]:
        """(network, threat, history, must, may)."""
        seed, name = self.at.seed, self.name
        if name in ("clean", "clean-small-eps"):
            net = self.net()
            threat = self.small if name == "clean" else sp.Linf(self.at.eps / 4)
            return net, threat, self.fit(net, sp.Standard(seed=seed)), set(), set()
        if name == "clean-no-norm":
            net = zoo.build(self.at.plain, seed, in_channels=1)
            return net, self.small, self.fit(net, sp.Standard(seed=seed)), set(), set()
        if name in ("pgd", "nfgsm", "yopo", "trades"):
            net = self.net()
            made = {
                "pgd": sp.PGDTraining(self.small, 3, seed=seed),
                "nfgsm": sp.NFGSM(self.small, seed=seed),
                "yopo": sp.YOPO(self.small, m=2, n=2, seed=seed),
                "trades": sp.TRADES(self.small, steps=2, seed=seed),
            }
            return net, self.small, self.fit(net, made[name], 400, lr=0.02 if name == "yopo" else 0.05), set(), set()
        if name == "pgd-no-norm":
            net = zoo.build(self.at.plain, seed, in_channels=1)
            return net, self.small, self.fit(net, sp.PGDTraining(self.small, 3, seed=seed), 400), set(), set()
        if name in ("fgsm", "fgsm-no-norm", "fast-large-step", "fgsm-small-eps"):
            net = self.net() if "no-norm" not in name else zoo.build(self.at.plain, seed, in_channels=1)
            threat = self.small if name == "fgsm-small-eps" else self.large
            made = (
                sp.FastFGSM(threat, step_size=2 * threat.eps, seed=seed)
                if "fast" in name
                else sp.FGSMTraining(threat, seed=seed)
            )
            history = self.fit(net, made, 600)
            must, may = self.overfitted(net, threat)
            return net, threat, history, must, may
        if name in ("input-scale", "input-scale-large", "input-scale-learning", "input-scale-recalibrated"):
            net = self.net()
            self.fit(net, sp.Standard(seed=seed))
            net = Scaled(net, 30.0 if name == "input-scale-large" else 1 / 30)
            history = []
            must = {"input-scale", "running-statistics"}
            if name == "input-scale-learning":
                for layer in net.modules():
                    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                        layer.momentum = 0.01
                history = self.fit(net, sp.Standard(seed=seed), 10, lr=0.01)
            if name == "input-scale-recalibrated":
                sp.recalibrate(net, list(zip(self.x[:2048].split(128), self.y[:2048].split(128))))
                must = set()
            may = {"mode-gradients", "constant-predictions", "few-updates"} if must else set()
            return net, self.small, history, must, may
        if name in ("slow-momentum", "slow-recalibrated", "few-steps"):
            net = self.net(0.1 if name == "few-steps" else 0.002)
            history = self.fit(net, sp.Standard(seed=seed), 15 if name == "few-steps" else 300)
            must = {"few-updates"} if name == "few-steps" else {"few-updates", "running-statistics"}
            if name == "slow-recalibrated":
                sp.recalibrate(net, list(zip(self.x[:2048].split(128), self.y[:2048].split(128))))
                must = set()
            may = {"mode-gradients", "constant-predictions", "running-statistics"} if must else set()
            return net, self.small, history, must, may
        if name == "dead":
            net = zoo.build(self.at.plain, seed, in_channels=1)
            with torch.no_grad():
                for layer in net.modules():
                    if isinstance(layer, nn.Conv2d):
                        layer.bias.fill_(-100.0)
            return net, self.small, self.fit(net, sp.Standard(seed=seed), 50), {"constant-predictions"}, set()
        if name == "not-finite":
            net = self.net()
            self.fit(net, sp.Standard(seed=seed), 5)
            list(net.parameters())[-1].data[0] = math.nan
            return net, self.small, [], {"divergence"}, set()
        if name == "rate-too-high":
            net = zoo.build(self.at.plain, seed, in_channels=1)
            self.fit(net, sp.Standard(seed=seed), 100)
            history = self.fit(net, sp.Standard(seed=seed), 60, lr=0.02) + self.fit(
                net, sp.Standard(seed=seed), 60, lr=3.0
            )
            return net, self.small, history, {"divergence"}, {"constant-predictions"}
        assert name in ("robust-overfitting", "early-stopped")
        return self.long_training(name)

    def overfitted(self, net: nn.Module, threat: sp.Threat) -> tuple[set[str], set[str]]:
        """What strong attack on held-out images says: catastrophic overfitting is one-step training that many steps break."""
        clean, one, many = (
            self.robust(net, threat, attack) for attack in (None, sp.FGSM(threat), sp.PGD(threat, 50, restarts=2))
        )
        print(f"    {self.name}: held out clean {clean:.3f}, FGSM {one:.3f}, PGD-50 {many:.3f}", flush=True)
        must = {"catastrophic-overfitting"} if one > 0.5 * clean and many < 0.35 * one else set()
        may = {"label-leaking"} | ({"catastrophic-overfitting"} if one > 0.4 * clean and many < 0.6 * one else set())
        return must | ({"label-leaking"} if one > clean + 0.04 else set()), may

    def robust(self, net: nn.Module, threat: sp.Threat, attack: Any) -> float:
        net.eval()
        x = self.held_x if attack is None else attack(net, self.held_x, self.held_y).x
        with torch.no_grad():
            return float((net(x).argmax(1) == self.held_y).double().mean())

    def long_training(self, name: str) -> tuple[nn.Module, sp.Threat, list[dict[str, Any]], set[str], set[str]]:
        """A few images, learned by heart: robust accuracy on others falls. early-stopped: as long as it does not."""
        heart, seed = self.at.heart, self.at.seed
        net = self.net() if heart.norm else zoo.build(self.at.plain, seed, in_channels=1)
        x, y, history = self.x[: heart.images], self.y[: heart.images].clone(), []
        wrong = round(heart.wrong * heart.images)
        y[:wrong] = (y[:wrong] + 1) % 10
        threat = sp.Linf(heart.eps)
        strategy = sp.PGDTraining(threat, 3, seed=seed)
        optimizer = torch.optim.SGD(net.parameters(), lr=heart.lr, momentum=0.9)
        for epoch in range(heart.epochs if name == "robust-overfitting" else heart.stopped):
            net.train()
            total, right = 0.0, 0
            parts = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(50)
            for part in parts:
                for loss in strategy(net, Batch(x[part], y[part], part)):
                    loss.value.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    total, right = (
                        total + loss.value.item() / len(parts),
                        right + int(loss.seen.right["adversarial"][0]),
                    )
            held = self.robust(copy.deepcopy(net), threat, sp.PGD(threat, 10))
            history.append({"loss": total, "robust_accuracy": right / len(x), "validation_robust_accuracy": held})
        print(f"    {name}: " + " ".join(f"{row['validation_robust_accuracy']:.3f}" for row in history), flush=True)
        values = [row["validation_robust_accuracy"] for row in history]
        means = [
            sum(three) / 3 for three in zip(values, values[1:], values[2:])
        ]  # 500 images: two points of noise in each
        falls = max(means) - means[-1]
        return net, threat, history, {"robust-overfitting"} if falls > 0.06 else set(), (
            {"robust-overfitting"} if falls > 0.02 else set())  # fmt: skip


NAMES = [
    "clean", "clean-small-eps", "clean-no-norm", "pgd", "nfgsm", "yopo", "trades", "pgd-no-norm", "fgsm", "fgsm-no-norm",
    "fast-large-step", "fgsm-small-eps", "input-scale", "input-scale-large", "input-scale-learning", "input-scale-recalibrated",
    "slow-momentum", "slow-recalibrated", "few-steps", "dead", "not-finite", "rate-too-high", "robust-overfitting",
    "early-stopped",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="tuned")
    parser.add_argument("--out", type=Path, help="a line of JSON for each network: everything that was measured")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, false, missed, due = [], Counter[str](), Counter[str](), Counter[str]()
    for name in arguments.names or NAMES:
        start = time.perf_counter()
        case = Case(SETS[arguments.set], name)
        net, threat, history, must, may = case.make()
        found = sp.diagnose(net.train(), (case.x[:2000], case.y[:2000]), threat, history=history)
        codes = set(found.codes)
        wrong, absent = codes - must - may, must - codes
        false.update(wrong)
        missed.update(absent)
        due.update(must)
        rows.append(
            [name, ", ".join(sorted(codes)) or "–", ", ".join(sorted(wrong)) or "–", ", ".join(sorted(absent)) or "–"]
        )
        print(f"{name} ({time.perf_counter() - start:.0f} s): {rows[-1][1:]}", flush=True)
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                line = {"set": arguments.set, "name": name, "must": sorted(must), "may": sorted(may), **found.to_json()}
                file.write(json.dumps(line) + "\n")
    table(f"Doctor on the set {arguments.set}", ["network", "alarms", "false", "missed"], rows)
    table("By code", ["code", "due", "missed", "false"],
          [[code, str(due[code]), str(missed[code]), str(false[code])] for code in CODES])  # fmt: skip


if __name__ == "__main__":
    main()
