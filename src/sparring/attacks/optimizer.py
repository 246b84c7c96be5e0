"""Attacks in which the image is the parameter and any `torch.optim` class takes the steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparring.ascent import Probe
from sparring.attacks.base import GradientAttack
from sparring.attacks.sign import need_finite
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import Threat

# Classes whose update of an entry looks at nothing but that entry's own history (and a step count): one update serves
# the batch. Any other class may couple samples, and gets one optimiser a sample.
_ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD", "Rprop")


def optimizer_class(optimizer: type[torch.optim.Optimizer] | str) -> type[torch.optim.Optimizer]:
    """The class, or the one of torch.optim with that name, whatever its capitals. ValueError with the names there are."""
    if isinstance(optimizer, str):
        named = {
            name.lower(): cls
            for name, cls in vars(torch.optim).items()
            if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
        }
        if optimizer.lower() not in named:
            raise ValueError(f"optimizer={optimizer!r}: expected one of {', '.join(sorted(named))}")
        return named[optimizer.lower()]
    if not (inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer)):
        raise TypeError(f"optimizer={optimizer!r}: expected a torch.optim class, as in torch.optim.Adam, or its name")
    return optimizer


@dataclass(frozen=True)
class OptimizerAttack(GradientAttack):
    """Gradient ascent on the attacker's objective by any `torch.optim` class, with the image as its parameter.

    threat: the ball and box that every step is projected onto; None leaves the box `bounds` alone as the limit (and
    `bounds=None` nothing at all: how an image is optimised in normalised space); norms are then reported in l2.
    optimizer: a torch.optim class, or its name. lr: in input units a step for Adam and its like; for SGD it multiplies the
    gradient. options: further arguments of the class, as in ``{"momentum": 0.9}``.
    The state of the optimiser is each sample's own. Classes that need a closure (LBFGS) call the model as often as they
    like within a step, and those passes are counted.
    """

    threat: Threat | None = None  # type: ignore[assignment]  # __post_init__ puts the box in its place
    optimizer: type[torch.optim.Optimizer] | str = torch.optim.Adam
    lr: float = 0.01
    steps: int = 100
    options: Mapping[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] | None = (0.0, 1.0)
    random_start: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.threat is None:
            object.__setattr__(self, "threat", Threat("l2", math.inf, self.bounds))
        super().__post_init__()
        if self.random_start:
            need_finite(self)
        object.__setattr__(self, "optimizer", optimizer_class(self.optimizer))
        if not self.lr > 0:
            raise ValueError(f"OptimizerAttack(lr={self.lr!r}): expected a number above 0")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"OptimizerAttack(restarts={self.restarts}): restarts need random_start=True")
        try:
            self._optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._class.__name__}(lr={self.lr}, **{dict(self.options)}): {error}") from None

    @property
    def _class(self) -> type[torch.optim.Optimizer]:
        return self.optimizer  # type: ignore[return-value]  # resolved in __post_init__

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return self._class(parameters, lr=self.lr, **self.options)  # type: ignore[call-arg]

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        rows.memory = {}
        return rows.threat.random(rows.original, noise, "start", rows.restart) if self.random_start else rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        elementwise = self._class.__module__.startswith("torch.optim") and self._class.__name__ in _ELEMENTWISE
        moved = self._together(rows, gradient) if elementwise else self._one_by_one(rows, gradient, probe)
        return rows.threat.project(rows.original, moved, wide=True)

    def _together(self, rows: Rows, gradient: Tensor) -> Tensor:
        """One update for the batch: the optimiser's state is kept as tensors with a leading batch dimension.

        Counters that the class keeps once for a parameter are kept once for a sample; samples of equal count share one.
        """
        x = rows.x
        moved, memory = torch.empty_like(x), dict(rows.memory)
        for count in sorted(set(rows.step.tolist())):
            mine = (rows.step == count).nonzero().flatten()
            here = mine.to(x.device)
            parameter = nn.Parameter(x[here].clone())
            parameter.grad = -gradient[here]
            optimizer = self._optimizer([parameter])
            if count > 0:
                optimizer.state[parameter] = {
                    name: kept[here.to(kept.device)] if kept.shape[1:] == x.shape[1:] else kept[mine[0]].clone()
                    for name, kept in rows.memory.items()
                }
            optimizer.step()
            moved[here] = parameter.detach()
            for name, value in optimizer.state[parameter].items():
                if value is None:  # as SGD keeps its momentum buffer while there is none
                    continue
                value = torch.as_tensor(value)
                shared = value.shape != parameter.shape
                if name not in memory:
                    memory[name] = value.new_zeros((len(rows), *(value.shape if shared else x.shape[1:])))
                memory[name][here.to(value.device)] = value
        rows.memory = memory
        return moved

    def _one_by_one(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        """One optimiser a sample, asking the model again through a closure where the class wants one."""
        start = rows.x.clone()
        kept = rows.memory.get("optimizer") or [None] * len(rows)
        rows.memory = {"optimizer": [known or self._optimizer([nn.Parameter(x)]) for known, x in zip(kept, start)]}
        moved = []
        for i, optimizer in enumerate(rows.memory["optimizer"]):
            parameter = optimizer.param_groups[0]["params"][0]
            parameter.data.copy_(rows.x[i])
            parameter.grad = -gradient[i]
            if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
                optimizer.step(_closure(parameter, -rows.current[i], rows.original.dtype, torch.tensor([i]), probe))
            else:
                optimizer.step()
            moved.append(parameter.detach().clone())
        return torch.stack(moved)


def _closure(
    parameter: nn.Parameter, loss: Tensor, dtype: torch.dtype, which: Tensor, probe: Probe
) -> Callable[[], Tensor]:
    """What LBFGS and its like call; the first call asks about the point whose loss and gradient are known already."""
    known = True

    def closure() -> Tensor:
        nonlocal known, loss
        if not known:
            value, gradient = probe(which, parameter.detach()[None].to(dtype))
            parameter.grad, loss = -gradient[0].to(parameter.dtype), -value[0]
        known = False
        return loss

    return closure
