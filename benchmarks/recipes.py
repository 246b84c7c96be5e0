"""How the benchmarks' networks are trained: plain loops that use nothing of sparring but its data reader.

What is measured should not depend on the code that it measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring import data

if TYPE_CHECKING:
    from networks import Network

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def pgd(net: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    """Plain Linf PGD from a uniform random start (Madry 2018); the last iterate."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    z = torch.lerp(low, high, torch.rand_like(x))
    for _ in range(steps):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(z), y), z)
        z = torch.clamp(z.detach() + alpha * grad.sign(), low, high)
    return z.detach()


def fit(network: Network, loss: Loss, rate: float = 0.004, seed: int = 0, batch: int = 100) -> nn.Module:
    """Adam on a one-cycle rate; eps grows over the first two epochs, so that adversarial training gets off the ground."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network.build().train()
        x, y = data.open(network.dataset, split="train").tensors(network.images)
        batches = len(x) // batch
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=network.epochs * batches)
        for epoch in range(network.epochs):
            for i, rows in enumerate(torch.randperm(len(x)).split(batch)[:batches]):
                value = loss(net, x[rows], y[rows], network.eps * min(1.0, (epoch + i / batches) / 2))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
    return net


def ordinary(network: Network) -> nn.Module:
    """Cross-entropy on the images as they are."""
    return fit(network, lambda net, x, y, eps: F.cross_entropy(net(x), y), rate=0.002)


def adversarial(network: Network, steps: int = 5) -> nn.Module:
    """Cross-entropy on the examples of PGD (Madry 2018)."""

    def loss(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return F.cross_entropy(net(pgd(net, x, y, eps, 2.5 * eps / steps, steps)), y)

    return fit(network, loss)


def fast(network: Network) -> nn.Module:
    """Cross-entropy on the examples of one step of 1.25 eps from a random start (FGSM-RS, Wong 2020)."""
    return fit(network, lambda net, x, y, eps: F.cross_entropy(net(pgd(net, x, y, eps, 1.25 * eps, 1)), y))


def trades(network: Network, beta: float = 6.0, steps: int = 5) -> nn.Module:
    """Cross-entropy on the images plus beta times the divergence that 5 steps of ascent find around them (Zhang 2019)."""

    def loss(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        logits = net(x)
        clean = logits.detach().log_softmax(1)
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        z = torch.clamp(x + 0.001 * torch.randn_like(x), low, high)
        for _ in range(steps):
            z.requires_grad_()
            divergence = F.kl_div(net(z).log_softmax(1), clean, reduction="sum", log_target=True)
            (grad,) = torch.autograd.grad(divergence, z)
            z = torch.clamp(z.detach() + eps / 2 * grad.sign(), low, high)
        far = F.kl_div(net(z.detach()).log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True)
        return F.cross_entropy(logits, y) + beta * far

    return fit(network, loss)


def distilled(network: Network, temperature: float = 100.0) -> nn.Module:
    """Defensive distillation (Papernot 2016): teacher and student learn at a temperature that deployment leaves out."""
    teacher = fit(network, lambda net, x, y, eps: F.cross_entropy(net(x) / temperature, y), rate=0.002).eval()

    def loss(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / temperature).softmax(1)
        return F.cross_entropy(net(x) / temperature, soft)

    return fit(network, loss, rate=0.002, seed=1)
