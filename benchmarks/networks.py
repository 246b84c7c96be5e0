"""The networks that the benchmarks attack: published ones, some trained here, and hard ones that mask their gradients.

    python benchmarks/networks.py [NAME ...]     trains what is missing and prints clean and PGD-20 accuracy

Trained networks are kept as safetensors in `$SPARRING_CACHE` (default `~/.cache/sparring`); `recipes.py` says how they
learn. The published ones are read from `$SPARRING_DATA/robust-weights`, MNIST and CIFAR-10 from `$SPARRING_DATA`.
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

import recipes
from architectures import LeNet, ResNet, batch_norm_resnet, strided, wide
from hard_networks import AddedNoise, Detector, KWinners, Rounding, Scaled
from recipes import pgd
from sparring import data

__all__ = ["NETWORKS", "Network", "ResNet", "pgd", "strided", "wide"]


@dataclass(frozen=True)
class Network:
    """A network with the data that it is tested on and the Linf radius that it is known for.

    It reads the published `weights`, or is trained by `recipe` for `epochs` on the first `images` training images (None:
    all of them), or is the network called `base` with something put round it by `build(base)`.
    `masking` says that its gradients mislead: ordinary PGD overestimates it. `random`: two forwards differ.
    """

    name: str
    build: Callable[..., nn.Module]
    dataset: str
    eps: float
    recipe: Callable[[Network], nn.Module] | None = None
    epochs: int = 0
    images: int | None = None
    weights: str = ""
    base: str = ""
    masking: bool = False
    random: bool = False

    @property
    def file(self) -> Path:
        """Where the weights lie, or will once they are trained."""
        if self.base:
            return NETWORKS[self.base].file
        if self.weights:
            return Path(os.environ.get("SPARRING_DATA", "")) / "robust-weights" / self.weights
        code = [inspect.getsource(each) for each in (self.recipe, recipes.fit, recipes.pgd)]
        text = f"{self.dataset} {self.eps} {self.epochs} {self.images} {self.build()} {code}"
        cache = Path(os.environ.get("SPARRING_CACHE", Path.home() / ".cache" / "sparring"))
        return cache / f"bench-{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"

    @property
    def missing(self) -> str:
        """Why it cannot be had on this machine, or an empty string."""
        if self.base:
            return NETWORKS[self.base].missing
        if self.weights and not ("SPARRING_DATA" in os.environ and self.file.is_file()):
            return f"{self.name} needs robust-weights/{self.weights} in $SPARRING_DATA"
        if self.dataset != "fashion-mnist" and "SPARRING_DATA" not in os.environ:
            return f"{self.name} needs {self.dataset} in $SPARRING_DATA"
        return ""

    def load(self) -> nn.Module:
        """The network in eval mode, its parameters frozen; trained first where it was not yet."""
        if self.base:
            return self.build(NETWORKS[self.base].load()).eval()
        net = self.build()
        if self.weights:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            net.load_state_dict(state.get("state_dict", state))
        elif self.file.is_file():
            net.load_state_dict(load_file(self.file))
        else:
            assert self.recipe is not None
            net = self.recipe(self)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(f".{os.getpid()}")
            save_file(net.state_dict(), partial)
            partial.replace(self.file)
        return net.eval().requires_grad_(False)

    def test_data(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n test images, (n, C, H, W) float32 in [0, 1], and labels (n,) int64."""
        return data.open(self.dataset, split="test").tensors(n)


def k_winners() -> nn.Module:
    return strided(activation=KWinners)


def noisy() -> nn.Module:
    return nn.Sequential(AddedNoise(0.5), strided())


def saturated(net: nn.Module) -> nn.Module:
    return nn.Sequential(net, Scaled(1000))


def quantised(net: nn.Module) -> nn.Module:
    return nn.Sequential(Rounding(8), net)


FASHION, MNIST, CIFAR = "fashion-mnist", "mnist", "cifar10"
NETWORKS = {
    n.name: n
    for n in (
        Network("fashion-undefended", wide, FASHION, 0.1, recipes.ordinary, 10),
        Network("fashion-pgd-trained", wide, FASHION, 0.1, recipes.adversarial, 8),
        Network("fashion-fgsm-trained", strided, FASHION, 0.1, recipes.fast, 6, 30000),
        Network("fashion-trades-trained", strided, FASHION, 0.1, recipes.trades, 5, 30000),
        Network("mnist-undefended", LeNet, MNIST, 0.3, weights="advertorch_mnist_lenet5_clntrained.pt"),
        Network("mnist-pgd-trained", LeNet, MNIST, 0.3, weights="advertorch_mnist_lenet5_advtrained.pt"),
        Network("mnist-fgsm-trained", strided, MNIST, 0.3, weights="fastadv_mnist_fgsm.pth", masking=True),
        Network("mnist-certified", strided, MNIST, 0.1, weights="convex_mnist.pth"),
        Network("mnist-small-pgd-trained", strided, MNIST, 0.3, recipes.adversarial, 6, 30000),
        Network("cifar10-resnet2b", partial(ResNet, 8, 2), CIFAR, 2 / 255, weights="abcrown_cifar_resnet2b.pth"),
        Network("cifar10-resnet4b", partial(ResNet, 16, 4), CIFAR, 2 / 255, weights="abcrown_cifar_resnet4b.pth"),
        Network("cifar10-undefended", batch_norm_resnet, CIFAR, 8 / 255, recipes.ordinary, 6, 20000),
        Network("cifar10-pgd-trained", batch_norm_resnet, CIFAR, 8 / 255, recipes.adversarial, 6, 20000),
        Network("fashion-noisy", noisy, FASHION, 0.1, recipes.ordinary, 8, random=True),
        # eps .05 where the plain network falls to 2 of 100 at .1: a verdict between 0 and the clean accuracy says more
        Network("fashion-distilled", strided, FASHION, 0.05, recipes.distilled, 6, masking=True),
        Network("fashion-quantised", quantised, FASHION, 0.05, base="fashion-undefended", masking=True),
        Network("fashion-k-winners", k_winners, FASHION, 0.05, recipes.ordinary, 5, masking=True),
        Network("fashion-detector", Detector, FASHION, 0.05, base="fashion-undefended", masking=True),
        Network("fashion-saturated", saturated, FASHION, 0.1, base="fashion-pgd-trained", masking=True),
        # noise alone takes PGD-20 but 5 points off the truth (its steps average over it); saturated, it takes 25
        Network("fashion-noisy-saturated", saturated, FASHION, 0.1, base="fashion-noisy", masking=True, random=True),
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
        print(f"{network.name:24s} eps {network.eps:.4f}  {accuracies}  loaded in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
