"""False and missed alarms: which warnings come on networks that call for them, and on networks that don't.

    python benchmarks/alarms.py [--set tuned|other] [--samples 100] [NAME ...]

Thresholds were set while looking at the networks of `TUNED`, and at those alone; `OTHER` tells how good they are. Every
network is evaluated by the default cascade. What a network calls for is known from how it was made. On networks of `BROKEN`
a wrapper then breaks each thing that a code is about. An alarm that the network does not call for is false; one that it
calls for and that does not come is missed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from networks import NETWORKS, Network

TUNED = [
    "fashion-undefended", "mnist-pgd-trained", "mnist-fgsm-trained", "fashion-noisy", "fashion-quantised",
    "fashion-k-winners", "fashion-detector",
]  # fmt: skip
OTHER = [name for name in NETWORKS if name not in TUNED]
BROKEN = {"tuned": ["fashion-undefended"], "other": ["cifar10-resnet2b", "fashion-pgd-trained"]}

HARD = {"zero-gradient", "loss-not-increasing", "masking", "one-step-beats-many", "step-size", "weak-attacks"}
# what a network calls for: one of these must come, and any of them may; nothing else
CALLED = {
    "mnist-fgsm-trained": {"masking", "restarts-find-more"},
    "fashion-noisy": {"random-model"},
    "fashion-noisy-saturated": {"random-model"},
    "fashion-quantised": {"zero-gradient", "loss-not-increasing"},
    "fashion-k-winners": {"loss-not-increasing", "masking"},
    "fashion-detector": {"zero-gradient", "loss-not-increasing", "one-step-beats-many", "step-size"},
    "fashion-distilled": set(),  # margins and the form of cross-entropy here see through saturation:
    "fashion-saturated": set(),  # the verdict can be trusted
}
ALLOWED = {
    "fashion-noisy": {"not-reproducible", "zero-gradient", "masking", "restarts-find-more"},
    "fashion-quantised": {"masking", "eps-no-effect"},  # rounding does hide gradients, whatever shows it
    "fashion-k-winners": {"restarts-find-more"},
}
ALLOWED["fashion-noisy-saturated"] = ALLOWED["fashion-noisy"]


class Backwards(torch.autograd.Function):
    """The identity, with its gradient turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Broken(nn.Module):
    def __init__(self, model: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.model, x)


def in_batch(model: nn.Module, x: Tensor) -> Tensor:
    """Logits normalised over the batch by a tenth."""
    logits: Tensor = model(x)
    return logits - 0.1 * logits.mean(0)


# code: how a model is broken for it, and which other codes that explains
WRAPPERS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], set[str]]] = {
    "probabilities": (lambda model, x: model(x).softmax(1), {"zero-gradient"}),
    "nan-gradient": (lambda model, x: model(x + 0 * (x - x.detach()).sqrt()), HARD | {"eps-no-effect"}),
    "random-model": (lambda model, x: model(x + 0.1 * torch.randn_like(x)), {"not-reproducible"}),
    "batch-statistics": (in_batch, {"not-reproducible"}),
    "low-clean-accuracy": (lambda model, x: model(x).roll(1, 1), set()),
    "zero-gradient": (lambda model, x: model(x.round() + 0 * x), HARD | {"eps-no-effect"}),
    "loss-not-increasing": (lambda model, x: model(x + 0.002 * (9000 * x).sin()), HARD | {"eps-no-effect"}),
    "eps-no-effect": (lambda model, x: model(Backwards.apply(x)), HARD),
}


def attack_lists(threat: sp.Threat) -> dict[str, tuple[list[Any], set[str]]]:
    """code: attacks too weak in the way that it is about, and which other codes that explains."""
    weak = {"weak-attacks", "one-step-beats-many", "step-size", "restarts-find-more"}
    timid = sp.PGD(threat, steps=5, step_size=float(threat.eps) / 100, random_start=False)
    return {
        "weak-attacks": ([timid], weak),
        "one-step-beats-many": ([timid], weak),
        "restarts-find-more": ([sp.FGSM(threat)], weak),
    }


def codes(network: Network, net: nn.Module, threat: sp.Threat, samples: int, **settings: Any) -> set[str]:
    x, y = network.test_data(samples)
    torch.manual_seed(0)
    return {warning.code for warning in sp.evaluate(net, (x, y), threat, **settings).warnings}


class Tally:
    """By code: runs that call for it and those where it did not come; runs that don't and those where it came."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def see(self, what: str, came: set[str], one_of: set[str], allowed: set[str], watched: set[str]) -> None:
        """one_of: at least one of these is called for. allowed: no false alarms. watched: codes that could have come."""
        missed = bool(one_of) and not came & one_of
        name = next(iter(one_of)) if len(one_of) == 1 else "any of " + ", ".join(sorted(one_of)) if one_of else ""
        if name:
            self.of(name)["called"] += 1
            self.of(name)["missed"] += missed
        for code in watched - one_of - allowed:
            self.of(code)["quiet"] += 1
            self.of(code)["false"] += code in came
        wrong = came - one_of - allowed
        print(f"{what:48s} {', '.join(sorted(came)) or '-'}{'  MISSED ' + name if missed else ''}"
              f"{'  FALSE ' + ', '.join(sorted(wrong)) if wrong else ''}", flush=True)  # fmt: skip

    def of(self, code: str) -> Counter[str]:
        return self.counts.setdefault(code, Counter())

    def table(self) -> str:
        lines = ["| code | false alarms | missed alarms |", "| --- | --- | --- |"]
        for code, count in sorted(self.counts.items()):
            false = f"{count['false']} of {count['quiet']}" if count["quiet"] else ""
            missed = f"{count['missed']} of {count['called']}" if count["called"] else ""
            lines.append(f"| {code} | {false} | {missed} |")
        return "\n".join(lines)


EVERY = {
    "zero-gradient", "nan-gradient", "probabilities", "low-clean-accuracy", "not-reproducible", "masking",
    "one-step-beats-many", "eps-no-effect", "restarts-find-more", "random-model", "loss-not-increasing", "step-size",
    "weak-attacks", "rounding", "batch-statistics",
}  # fmt: skip


def run(names: list[str], broken: list[str], samples: int) -> str:
    tally = Tally()
    for name in names:
        network, start = NETWORKS[name], time.perf_counter()
        if network.missing:
            print(network.missing)
            continue
        net, threat = network.load(), sp.Linf(network.eps)
        came = codes(network, net, threat, samples)
        one_of = CALLED.get(name, set())
        tally.see(f"{name} ({time.perf_counter() - start:.0f} s)", came, one_of, ALLOWED.get(name, set()), EVERY)
    for name in broken:
        network = NETWORKS[name]
        if network.missing:
            continue
        net, threat = network.load(), sp.Linf(network.eps)
        quick = {"attacks": [sp.PGD(threat, steps=10, objective="margin", schedule="cosine")]}
        for code, (how, explained) in WRAPPERS.items():
            came = codes(network, Broken(net, how), threat, samples, **quick)
            tally.see(f"{name}, broken: {code}", came, {code}, explained, EVERY)
        for code, (attacks, explained) in attack_lists(threat).items():
            came = codes(network, net, threat, samples, attacks=attacks)
            tally.see(f"{name}, attacked for {code}", came, {code}, explained, EVERY)
    return tally.table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("tuned", "other"), default="other")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    names = given.names or (TUNED if given.set == "tuned" else OTHER)
    print(run(names, [] if given.names else BROKEN[given.set], given.samples))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
