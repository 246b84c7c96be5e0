"""`GradientNorms`: how large the gradients are, those that the weights learn from and those that an attacker climbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparring.borrow import borrow
from sparring.checks import check_whole
from sparring.lightning.callbacks.boards import note
from sparring.lightning.callbacks.watching import EpochWatcher, Get
from sparring.lightning.measuring import precision, undisturbed
from sparring.objective import cross_entropy


class GradientNorms(EpochWatcher):
    """Norms of the gradients of the weights, and of the loss at the input.

    Logged in training, every `interval` optimiser steps: gradient_norm, L2 over all parameters that the optimiser holds,
    before clipping (of scaled gradients unscaled); with layers=True also gradient_norm/NAME of each parameter.
    Logged once an epoch, of the first few samples of the validation (train where nothing is validated; test):
    val_input_gradient_l1, the mean L1 norm of d loss/dx: what an L∞ perturbation raises the loss by to first order, per unit of
    eps (Goodfellow et al., 2015); and val_input_gradient_zero, the share of samples whose gradient is exactly zero, which
    hides a network from attackers without making it robust.

    interval: optimiser steps. samples: a forward and a backward each. every: epochs. network, get: as for every callback here.
    """

    def __init__(
        self,
        *,
        interval: int = 20,
        layers: bool = False,
        samples: int = 64,
        every: int = 1,
        network: str | None = None,
        get: Get | None = None,
    ) -> None:
        super().__init__(samples, every, network, get)
        check_whole(type(self).__name__, interval=interval)
        self.interval, self.layers = interval, layers

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step % self.interval:
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        norms = {
            name: p.grad.detach().double().norm()
            for name, p in pl_module.named_parameters()
            if id(p) in held and p.grad is not None
        }
        if not norms:
            return
        numbers = {"gradient_norm": torch.stack([norm.cpu() for norm in norms.values()]).norm()}
        if self.layers:
            numbers |= {f"gradient_norm/{name}": norm for name, norm in norms.items()}
        note(trainer, {name: float(value) for name, value in numbers.items()})

    def look(self, stage: str, trainer: Any, pl_module: Any, x: Tensor, y: Tensor) -> Mapping[str, float]:
        with undisturbed(x), borrow(self.logits(pl_module), precision(trainer)) as borrowed:
            gradient = borrowed.probe(x, lambda logits: cross_entropy(logits, y))[2].flatten(1).double()
        sizes = gradient.abs().sum(1)
        return {
            f"{stage}_input_gradient_l1": float(sizes.mean()),
            f"{stage}_input_gradient_zero": float((sizes == 0).double().mean()),
        }
