"""The image gradient through first convolutions of known networks: torch's own beside sparring's; one thread of a CPU.

    python benchmarks/stems.py

A layer's image gradient from its output's gradient, float32. The two take turns within each repetition; a ratio is the median
over the repetitions of the ratio within one. "Differs": the largest difference, in parts of the largest entry.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from machine import facts, table
from sparring.stem import input_gradient

REPETITIONS, CALLS = 9, 10
STEMS: dict[str, tuple[int, int, int, int, int, int, int]] = {  # channels in, out, kernel, stride, padding, side, batch
    "small CNN (Wong and Kolter, 2018), 28×28": (1, 16, 4, 2, 1, 28, 128),
    "CleverHans's tutorial network, 28×28": (1, 64, 8, 2, 3, 28, 128),
    "small CNN, 3×32×32": (3, 16, 4, 2, 1, 32, 128),
    "LeNet-5, 28×28": (1, 6, 5, 1, 2, 28, 128),
    "TRADES's MNIST network, 28×28": (1, 32, 3, 1, 0, 28, 128),
    "residual CIFAR-10 network, 16 channels": (3, 16, 3, 1, 1, 32, 128),
    "PreAct-ResNet-18, 3×32×32": (3, 64, 3, 1, 1, 32, 128),
    "VGG, 224×224": (3, 64, 3, 1, 1, 224, 4),
    "EfficientNet-Lite, MobileNet, 224×224": (3, 32, 3, 2, 1, 224, 4),
    "ResNet, 224×224": (3, 64, 7, 2, 3, 224, 4),
    "AlexNet, 224×224": (3, 64, 11, 4, 2, 224, 4),
    "ConvNeXt, 224×224": (3, 96, 4, 4, 0, 224, 4),
    "ViT-B/16, 224×224": (3, 768, 16, 16, 0, 224, 4),
}


def seconds(run: Callable[[], Tensor]) -> float:
    start = time.process_time()
    for _ in range(CALLS):
        run()
    return (time.process_time() - start) / CALLS


def row(name: str, order: torch.memory_format) -> list[str]:
    channels, outputs, kernel, stride, padding, side, batch = STEMS[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding).requires_grad_(False).to(memory_format=order)
    x = torch.rand(batch, channels, side, side).to(memory_format=order).requires_grad_()
    out = layer(x)
    gradient = torch.randn_like(out)

    def torchs() -> Tensor:
        return torch.autograd.grad(out, x, gradient, retain_graph=True)[0]

    def ours() -> Tensor:
        return input_gradient(gradient, layer.weight, (side, side), stride, (padding, padding))

    differs = float((torchs() - ours()).abs().max() / torchs().abs().max())
    found = [(seconds(torchs), seconds(ours)) for _ in range(REPETITIONS)]
    forward = min(seconds(lambda: layer(x.detach())) for _ in range(3))
    theirs, mine = (statistics.median(column) for column in zip(*found))
    ratio = statistics.median(a / b for a, b in found)
    return [name, *(f"{1000 * value:.1f}" for value in (forward, theirs, mine)), f"{ratio:.1f}", f"{differs:.0e}"]


def main() -> None:
    torch.set_num_threads(1)
    print(facts(0))
    head = ["first convolution of", "forward, ms", "torch's way back, ms", "ours, ms", "torch's / ours", "differs"]
    for order, said in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels_last")):
        table(f"Image gradient of a first convolution, {said}", head, [row(name, order) for name in STEMS])


if __name__ == "__main__":
    main()
