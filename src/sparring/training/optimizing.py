"""Optimisers, learning rates and their schedules, by name or as the user's own objects."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparring.training.first import with_parameters
from sparring.training.own_norms import may_be_norm

RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
SCHEDULES = ("cosine", "cyclic", "triangle", "steps", "constant")
SET = "scheduled_lr"  # in a parameter group: the rate that `Rates` has set last
Schedule = str | Callable[[float], float] | torch.optim.lr_scheduler.LRScheduler
Optimizer = str | torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer]


def make(
    optimizer: Optimizer, groups: Any, lr: float | None, momentum: float, weight_decay: float, summed: int = 1
) -> Any:
    """The optimiser of these parameter groups. ValueError for a name that there is not.

    summed: how many passes' gradients a step adds up; sgd's own rate is divided by it, Adam's steps are as long either way.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return _stepping(optimizer)
    if callable(optimizer):
        made = optimizer(groups)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"optimizer(parameters) gave a {type(made).__name__}: expected a torch.optim.Optimizer")
        return _stepping(made)
    if optimizer not in RATES:
        raise ValueError(
            f"optimizer={optimizer!r}: expected {', '.join(RATES)}, an optimizer, or a function that makes one"
        )
    own = RATES[optimizer] / (summed if optimizer == "sgd" else 1)
    rate = own if lr is None else lr
    if optimizer == "sgd":
        nesterov = momentum > 0
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    groups = list(groups)
    parameters = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    # on a CPU torch's own choice is a loop over parameters, four times as slow; elsewhere its choice is the fast one
    fused = all(p.device.type == "cpu" and p.is_floating_point() for p in parameters)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, weight_decay=weight_decay, fused=fused or None)


def _stepping(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """ValueError for one whose step wants the loss anew."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}, whose step calls for the loss again and again, which a batch "
            "gives once: expected an optimiser that steps by itself, such as 'sgd', 'adam' or 'adamw'"
        )
    return optimizer


def factor(schedule: str | Callable[[float], float], done: float) -> float:
    """What the learning rate is multiplied with when the fraction `done` of all batches has been learned from.

    >>> [round(factor(name, 0.75), 3) for name in ("constant", "cosine", "cyclic", "steps")]
    [1.0, 0.146, 0.417, 0.01]
    """
    if not isinstance(schedule, str):
        return float(schedule(done))
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule == "steps":
        return 0.1 ** ((done >= 0.5) + (done >= 0.75))
    if schedule in ("cyclic", "triangle"):
        return done / 0.4 if done < 0.4 else (1 - done) / 0.6
    raise ValueError(
        f"schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}, or a function of the fraction done"
    )


class Rates:
    """Sets the learning rates of every batch: schedule × linear warm-up × what each parameter group began with."""

    def __init__(self, schedule: Schedule, optimizers: Sequence[torch.optim.Optimizer], warmup: float) -> None:
        """warmup: the fraction of all batches over which rates rise from nothing."""
        self.schedule, self.optimizers, self.warmup = schedule, optimizers, warmup
        if not isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
            factor(schedule, 0.0)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                changed = SET in group and group["lr"] != group[SET]  # by the user, since an earlier training
                group["initial_lr"] = group["lr"] if changed else group.get("initial_lr", group["lr"])

    def set(self, done: float) -> None:
        """Before a batch: `done` is the fraction of all batches in whose middle it lies."""
        if isinstance(self.schedule, torch.optim.lr_scheduler.LRScheduler):
            return
        times = factor(self.schedule, done) * min(1.0, done / self.warmup if self.warmup else 1.0)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group[SET] = group["initial_lr"] * times

    def stepped(self) -> None:
        """After a batch: a scheduler of the user's own goes on."""
        if isinstance(self.schedule, torch.optim.lr_scheduler.LRScheduler):
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        own = isinstance(self.schedule, torch.optim.lr_scheduler.LRScheduler)
        return self.schedule.state_dict() if own else {}  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.schedule, torch.optim.lr_scheduler.LRScheduler):
            self.schedule.load_state_dict(state)


class Tuning:
    """Fine-tuning: what is frozen for good, what is until the head has learned, and at which rate the body learns then.

    freeze: names of submodules or parameters, with * and ?, that never learn. head: the submodule that is new; default: the
    last with parameters of its own. head_epochs: epochs in which nothing but the head learns; the rest is frozen, its
    BatchNorm statistics too. body_lr: the learning rate of everything but the head.
    """

    def __init__(
        self, model: nn.Module, freeze: str | Sequence[str], head: str | None, head_epochs: int, body_lr: float | None
    ) -> None:
        self.model, self.head_epochs, self.body_lr = model, head_epochs, body_lr
        freeze = [freeze] if isinstance(freeze, str) else freeze
        names = [*(name for name, _ in model.named_modules()), *(name for name, _ in model.named_parameters())]
        for pattern in freeze:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"freeze={pattern!r}: the model has no part of this name; it has {_some(model)}")
        self.frozen = {
            id(p) for name, p in model.named_parameters() if any(_under(name, pattern) for pattern in freeze)
        }
        self.still = [m for n, m in model.named_modules() if any(_under(n, pattern) for pattern in freeze)]
        self.head = self._find(head) if head_epochs or body_lr is not None or head is not None else None
        held = set() if self.head is None else {id(p) for p in self.head.parameters()}
        self.body = [p for p in model.parameters() if self.head is not None and id(p) not in held]
        if self.head is not None and all(id(p) in held for p in model.parameters()):
            raise ValueError(
                "head: everything that learns is in it, so there is no body: leave head_epochs and body_lr out"
            )
        if not any(p.requires_grad and id(p) not in self.frozen for p in model.parameters()):
            raise ValueError("every parameter of the model is frozen (requires_grad=False): nothing to train")

    def groups(self) -> list[dict[str, Any]]:
        """The head's parameters first, then the body's."""
        learn = [p for p in self.model.parameters() if p.requires_grad and id(p) not in self.frozen]
        slow = {id(p) for p in self.body} if self.body_lr is not None else set()
        groups: list[dict[str, Any]] = [{"params": [p for p in learn if id(p) not in slow]}]
        if slow:
            groups.append({"params": [p for p in learn if id(p) in slow], "lr": self.body_lr})
        return groups

    @contextmanager
    def applied(self, epoch: int) -> Iterator[None]:
        """What is frozen in this epoch (from 0) is; afterwards as before."""
        early = epoch < self.head_epochs
        held = self.frozen | ({id(p) for p in self.body} if early else set())
        parameters = [p for p in self.model.parameters() if id(p) in held and p.requires_grad]
        inside = set(self.head.modules()) if self.head is not None else set()
        still = [m for m in self.model.modules() if m in self.still or (early and m not in inside)]
        norms = [m for m in still if (isinstance(m, _BatchNorm) or may_be_norm(m)) and m.training]
        try:
            for p in parameters:
                p.requires_grad_(False)
            for norm in norms:
                norm.training = False
            yield
        finally:
            for p in parameters:
                p.requires_grad_(True)
            for norm in norms:
                norm.training = True

    def _find(self, head: str | None) -> nn.Module:
        if head is not None:
            try:
                return self.model.get_submodule(head)
            except AttributeError:
                raise ValueError(
                    f"head={head!r}: no submodule of this name; the model has {_some(self.model)}"
                ) from None
        return with_parameters(self.model)[-1]


def _under(name: str, pattern: str) -> bool:
    """Whether a part is what the pattern names, or inside of it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def _some(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
