"""The fast gradient sign method and what grew from it: FGSM, R+FGSM, I-FGSM, MI-FGSM.

Under an l2 or l1 threat the sign becomes that norm's steepest step (the fast gradient method).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparring.ascent import Probe
from sparring.attacks.base import Attack, GradientAttack
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import per_sample


def stepped(rows: Rows, direction: Tensor, size: float | Tensor) -> Tensor:
    """One projected step from `rows.x` along a direction of length 1."""
    scale = per_sample(size, direction).to(direction.dtype) if isinstance(size, Tensor) else size
    return rows.threat.project(rows.original, (scale * direction).add_(rows.x), wide=True)


def climbed(rows: Rows, gradient: Tensor, size: float | Tensor, sparsity: float = 0.99) -> Tensor:
    """One projected step of this size along the norm's steepest direction."""
    return stepped(rows, rows.threat.steepest(gradient, rows.x, sparsity, size), size)


def default_step(steps: int) -> float:
    """In units of eps: a quarter, or, where the steps are few, what lets them go 2.5 times as far as the ball's radius."""
    return max(0.25, 2.5 / steps)


def need_finite(attack: Attack) -> None:
    """Where the random start or the step is a part of eps, eps must have parts."""
    eps = attack.threat.eps
    if math.isinf(float(eps.max()) if isinstance(eps, Tensor) else eps):
        raise ValueError(
            f"{attack.name}(threat={attack.threat!r}): its start or step is a part of eps; expected a finite eps "
            "(or, where the attack has them, a step_size and random_start=False)"
        )


def need_norm(attack: Attack, *norms: str) -> None:
    if attack.threat.norm not in norms:
        raise ValueError(f"{attack.name} has no form for {attack.threat.norm}: expected {', '.join(norms)}")


@dataclass(frozen=True)
class FGSM(GradientAttack):
    """Fast gradient sign method: one step of length eps along the sign of the gradient. Goodfellow et al. (2015).

    With targets it descends the loss of the target class; `targets="least-likely"` is Kurakin et al. (2017)'s
    least-likely-class method. It returns where the step led, also where that lowered the loss, as it does on a network
    that masks its gradient. 1 backward and 2 forwards a sample (the second says whether it worked).

    >>> from sparring import Linf
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> FGSM(Linf(0.25))(net, torch.tensor([[0.6, 0.4]]), torch.tensor([0])).x
    tensor([[0.3500, 0.6500]])
    """

    keep: str = field(default="last", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        need_finite(self)

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        return climbed(rows, gradient, rows.threat.eps)


@dataclass(frozen=True)
class RFGSM(GradientAttack):
    """R+FGSM: a random sign step of length `random_step`, then FGSM with what is left of eps. Tramèr et al. (2018).

    Like FGSM it returns where the step led.

    random_step: in input units, below eps; default eps / 2. Linf only.
    """

    random_step: float | None = None
    keep: str = field(default="last", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf")
        need_finite(self)
        eps = self.threat.eps
        if self.random_step is not None and not 0 <= self.random_step <= (
            float(eps.min()) if isinstance(eps, Tensor) else eps
        ):
            raise ValueError(
                f"RFGSM(random_step={self.random_step!r}): expected a length from 0 to eps={self.threat.typed}"
            )

    def _first(self, eps: float | Tensor) -> float | Tensor:
        return eps / 2 if self.random_step is None else self.random_step

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        rows.x = rows.original
        sign = noise.sign(rows.original.shape[1:], "sign", rows.restart, like=rows.original)
        return stepped(rows, sign, self._first(rows.threat.eps))

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        eps = rows.threat.eps
        return climbed(rows, gradient, eps - self._first(eps))


@dataclass(frozen=True)
class IFGSM(GradientAttack):
    """Iterated FGSM, the basic iterative method: small steps from the input, kept inside the ball. Kurakin et al. (2017).

    step_size: in input units; default eps / 4, or 2.5 · eps / steps below 10 steps (the paper takes 1/255).
    """

    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        if self.step_size is None:
            need_finite(self)

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        size = rows.threat.eps * default_step(self.steps) if self.step_size is None else self.step_size
        return climbed(rows, gradient, size)


@dataclass(frozen=True)
class MIFGSM(GradientAttack):
    """Momentum iterative FGSM, made to transfer. Dong et al. (2018).

    The gradient, divided by its l1 norm, is added to `decay` times the sum so far, and the step follows the sum.
    step_size: in input units; default as for `IFGSM` (the paper takes eps / steps).
    A direct call returns the best iterate for the model attacked.
    """

    steps: int = 10
    decay: float = 1.0
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        need_norm(self, "linf", "l2", "l1")
        if self.step_size is None:
            need_finite(self)
        if not self.decay >= 0:
            raise ValueError(f"MIFGSM(decay={self.decay!r}): expected a number that is not negative")

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        rows.memory["velocity"] = torch.zeros_like(rows.original, dtype=rows.value.dtype)
        return rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        wide = gradient.to(rows.value.dtype)
        largest = wide.flatten(1).abs().amax(1)  # first, so that tiny gradients do not vanish in the sum
        wide = wide / per_sample(torch.where(largest > 0, largest, 1), wide)
        mean = wide.flatten(1).abs().mean(1)
        velocity = self.decay * rows.memory["velocity"] + wide / per_sample(torch.where(mean > 0, mean, 1), wide)
        rows.memory["velocity"] = velocity
        size = rows.threat.eps * default_step(self.steps) if self.step_size is None else self.step_size
        return climbed(rows, velocity, size)
