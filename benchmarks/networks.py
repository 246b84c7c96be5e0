"""The networks that the benchmarks attack: two trained here on the bundled Fashion-MNIST images, six published ones.

    python benchmarks/networks.py [NAME ...]     trains what is missing and prints clean and PGD-20 accuracy

Trained networks are kept as safetensors in `$SPARRING_CACHE` (default `~/.cache/sparring`). Their training uses nothing
of sparring but its data reader: what is measured should not depend on the code that it measures. The published ones
are read from `$SPARRING_DATA/robust-weights`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparring import data


class LeNet(nn.Module):
    """Two 3x3 convolutions (32, 64), pooled, and 200 hidden units: (B, 1, 28, 28) to (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())


def strided(width: int = 16, hidden: int = 100) -> nn.Sequential:
    """Two 4x4 convolutions of stride 2 (width, 2 width) and a hidden layer: (B, 1, 28, 28) to (B, 10)."""
    convolutions = nn.Conv2d(1, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(98 * width, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Residual(nn.Module):
    """relu(x + two 3x3 convolutions); a 1x1 convolution on the shortcut where the stride is not 1."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(channels, out, 1, stride)] if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """alpha-beta-CROWN's networks of 2 and 4 blocks, normalising inside: (B, 3, 32, 32) to (B, 10)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        out, deep = 2 * width, blocks == 4
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        self.layer1 = nn.Sequential(Residual(width, out, 2), Residual(out, out, 1))
        self.layer2 = nn.Sequential(*([Residual(out, out, 2), Residual(out, out, 1)] if deep else []))
        self.linear1, self.linear2 = nn.Linear(out * (16 if deep else 64), 100), nn.Linear(100, 10)
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1((x - self.mean) / self.std).relu()))
        return self.linear2(self.linear1(x.flatten(1)).relu())


@dataclass(frozen=True)
class Network:
    """A network with the data that it is tested on and the Linf radius that it is known for.

    `steps` > 0 trains adversarially with that many PGD steps, 0 ordinarily; None reads the published `weights`.
    """

    name: str
    build: Callable[[], nn.Module]
    dataset: str
    eps: float
    steps: int | None = None
    epochs: int = 0
    weights: str = ""

    @property
    def file(self) -> Path:
        """Where the weights lie, or will once they are trained."""
        if self.weights:
            return Path(os.environ.get("SPARRING_DATA", "")) / "robust-weights" / self.weights
        settings = (self.dataset, self.eps, self.steps, self.epochs)
        recipe = f"{settings} {self.build()} {inspect.getsource(train)} {inspect.getsource(pgd)}"
        cache = Path(os.environ.get("SPARRING_CACHE", Path.home() / ".cache" / "sparring"))
        return cache / f"bench-{self.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.safetensors"

    @property
    def missing(self) -> str:
        """Why it cannot be had on this machine, or an empty string."""
        if not self.weights or ("SPARRING_DATA" in os.environ and self.file.is_file()):
            return ""
        return f"{self.name} needs robust-weights/{self.weights} in $SPARRING_DATA"

    def load(self) -> nn.Module:
        """The network in eval mode, its parameters frozen; trained first where it was not yet."""
        net = self.build()
        if self.weights:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            net.load_state_dict(state.get("state_dict", state))
        elif self.file.is_file():
            net.load_state_dict(load_file(self.file))
        else:
            net = train(self)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(f".{os.getpid()}")
            save_file(net.state_dict(), partial)
            partial.replace(self.file)
        return net.eval().requires_grad_(False)

    def test_data(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n test images, (n, C, H, W) float32 in [0, 1], and labels (n,) int64."""
        return data.open(self.dataset, split="test").tensors(n)


def pgd(net: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    """Plain Linf PGD from a uniform random start (Madry 2018); the last iterate."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    z = torch.lerp(low, high, torch.rand_like(x))
    for _ in range(steps):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(z), y), z)
        z = torch.clamp(z.detach() + alpha * grad.sign(), low, high)
    return z.detach()


def train(network: Network, seed: int = 0, batch: int = 100) -> nn.Module:
    """Adam on a one-cycle rate; an adversarial run lets eps grow over its first two epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network.build().train()
        x, y = data.open(network.dataset, split="train").tensors()
        batches, rate = len(x) // batch, 0.004 if network.steps else 0.002
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=network.epochs * batches)
        for epoch in range(network.epochs):
            for i, rows in enumerate(torch.randperm(len(x)).split(batch)[:batches]):
                inputs, labels = x[rows], y[rows]
                if network.steps:
                    eps = network.eps * min(1.0, (epoch + i / batches) / 2)
                    inputs = pgd(net, inputs, labels, eps, 2.5 * eps / network.steps, network.steps)
                optimizer.zero_grad()
                F.cross_entropy(net(inputs), labels).backward()
                optimizer.step()
                schedule.step()
    return net


def wide() -> nn.Sequential:
    """The network trained here: `strided` with 32 and 64 channels and 200 hidden units."""
    return strided(32, 200)


NETWORKS = {
    n.name: n
    for n in (
        Network("fashion-undefended", wide, "fashion-mnist", 0.1, steps=0, epochs=10),
        Network("fashion-pgd-trained", wide, "fashion-mnist", 0.1, steps=5, epochs=8),
        Network("mnist-undefended", LeNet, "mnist", 0.3, weights="advertorch_mnist_lenet5_clntrained.pt"),
        Network("mnist-pgd-trained", LeNet, "mnist", 0.3, weights="advertorch_mnist_lenet5_advtrained.pt"),
        Network("mnist-fgsm-trained", strided, "mnist", 0.3, weights="fastadv_mnist_fgsm.pth"),
        Network("mnist-certified", strided, "mnist", 0.1, weights="convex_mnist.pth"),
        Network("cifar10-resnet2b", partial(ResNet, 8, 2), "cifar10", 2 / 255, weights="abcrown_cifar_resnet2b.pth"),
        Network("cifar10-resnet4b", partial(ResNet, 16, 4), "cifar10", 2 / 255, weights="abcrown_cifar_resnet4b.pth"),
    )
}


def main(names: list[str]) -> None:
    for network in (NETWORKS[name] for name in names or NETWORKS):
        if network.missing:
            print(network.missing)
            continue
        start = time.perf_counter()
        net, (x, y) = network.load(), network.test_data(500)
        seconds = time.perf_counter() - start
        torch.manual_seed(0)
        z = pgd(net, x, y, network.eps, network.eps / 8, 20)
        clean, robust = ((net(v).argmax(1) == y).float().mean() for v in (x, z))
        accuracies = f"clean {clean:.3f}  PGD-20 {robust:.3f}"
        print(f"{network.name:20s} eps {network.eps:.4f}  {accuracies}  loaded in {seconds:.1f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
