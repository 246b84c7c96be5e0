"""A plain training loop, with or without adversarial examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Progress = Callable[[str, float], None]
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine", "triangle"]


class Crafted(Protocol):
    @property
    def x(self) -> Tensor: ...


class Attack(Protocol):
    """Any attack: `sparring.PGD(...)`, or another callable whose result has the examples x (B, *S)."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, /, *, indices: Tensor | None = None, seed: int = 0
    ) -> Crafted: ...


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch's samples, measured in passing: before each batch's update, in train mode."""

    loss: float | None
    accuracy: float | None
    adversarial_loss: float | None
    adversarial_accuracy: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class History:
    """One entry an epoch."""

    epochs: tuple[Epoch, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(epoch) for epoch in self.epochs]


def train(
    model: nn.Module,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: Optimizer = "adam",
    schedule: Schedule = "cosine",
    weight_decay: float = 0.0,
    seed: int = 0,
    attack: Attack | None = None,
    alpha: float = 0.5,
    max_norm: float | None = None,
    augment: bool = False,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> History:
    """Trains `model` in place by cross-entropy, on clean samples or on a mixture with adversarial ones.

    With an attack the loss is α·L(x) + (1 − α)·L(x_adv), x_adv crafted against the network as it is at that batch and
    constant in the gradient (Goodfellow et al., 2015); α = 0 trains on adversarial examples only (Madry et al., 2018).

    Args:
        model: maps float inputs (B, *S) to logits (B, C). One whose root is in eval mode is switched to train mode;
            one in train mode is taken as it stands, so a frozen BatchNorm stays frozen.
        data: (x, y) tensors, or a map-style Dataset of (x, label); it is held in memory. x (N, *S), y (N,).
        lr: the highest learning rate. `schedule` takes it down to zero ("cosine"), up and down linearly, highest at
            40% of the steps ("triangle"), or keeps it ("constant").
        optimizer: "adam", or "sgd" with Nesterov momentum 0.9.
        attack: any sparring attack; its random draws are keyed by (seed, step, sample).
        max_norm: after each update every unit's incoming weight vector (each row of a Linear, each filter of a
            convolution) is scaled back to at most this L2 norm (Srebro and Shraibman, 2005; Goodfellow et al., 2013).
        augment: mirror half of the images and shift each by up to 4 pixels; x must be (N, C, H, W).
        progress: called as progress(message, fraction done).
        device: the model is moved there; by default it stays where it is.

    The same seed on the same machine gives the same weights. The global random state, every module's mode and every
    parameter's `requires_grad` are afterwards as before; `.grad` is None. Frozen parameters are not trained.

    Returns: the `History`. Raises: ValueError for settings or data that cannot be trained on, FloatingPointError
    when the loss stops being finite.

    >>> x, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    >>> x[:, 0] += 4.0 * y
    >>> history = train(nn.Linear(5, 2), (x, y), epochs=20, batch_size=16, lr=0.1)
    >>> history.epochs[-1].accuracy > 0.95
    True
    """
    x, y = _in_memory(data)
    _check(epochs, batch_size, lr, alpha, augment, x)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(place)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("every parameter of the model is frozen (requires_grad=False): nothing to train")
    updater = _optimizer(optimizer, trained, lr, weight_decay)
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(x) / batch_size)
    history: list[Epoch] = []
    with _seeded(seed, place), _train_mode(model), torch.enable_grad():
        for epoch in range(epochs):
            started, clean, adversarial = time.perf_counter(), _Tally(), _Tally()
            for step, chosen in enumerate(torch.split(torch.randperm(len(x), generator=generator), batch_size)):
                done = epoch * steps + step
                for group in updater.param_groups:
                    group["lr"] = lr * _factor(schedule, done / (epochs * steps))
                batch, labels = x[chosen], y[chosen].to(place)
                batch = (_mirror_and_shift(batch, generator) if augment else batch).to(place)
                loss = torch.zeros((), device=place)
                if attack is None or alpha > 0:
                    term = clean.add(model(batch), labels)
                    loss = term if attack is None else alpha * term
                if attack is not None:
                    crafted = attack(model, batch, labels, indices=chosen.to(place), seed=seed + done)
                    loss = loss + (1 - alpha) * adversarial.add(model(crafted.x), labels)
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}: lower lr={lr:g}")
                updater.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                updater.step()
                if max_norm is not None:
                    _limit_norms(model, max_norm)
                if progress is not None and (step % 20 == 0 or step == steps - 1):
                    progress(f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", (done + 1) / (epochs * steps))
            rate, seconds = updater.param_groups[0]["lr"], time.perf_counter() - started
            history.append(Epoch(*clean.means(), *adversarial.means(), lr=rate, seconds=seconds))
    updater.zero_grad(set_to_none=True)
    return History(tuple(history))


class _Tally:
    """Sums of loss and correct answers over an epoch."""

    def __init__(self) -> None:
        self.loss, self.correct, self.count = 0.0, 0, 0

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        self.loss += loss.item() * len(labels)
        self.correct += int((logits.argmax(1) == labels).sum())
        self.count += len(labels)
        return loss

    def means(self) -> tuple[float | None, float | None]:
        return (self.loss / self.count, self.correct / self.count) if self.count else (None, None)


def _in_memory(data: Any) -> tuple[Tensor, Tensor]:
    """(x, y) from a pair of tensors, or by going through a map-style dataset once."""
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
    elif hasattr(data, "tensors") and callable(data.tensors):
        x, y = data.tensors()
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        samples = [data[i] for i in range(len(data))]
        if not samples:
            raise ValueError("the data set is empty: nothing to train on")
        x, y = torch.stack([sample[0] for sample in samples]), torch.tensor([int(sample[1]) for sample in samples])
    else:
        raise TypeError(f"data is a {type(data).__name__}: expected a pair of tensors (x, y) or a map-style Dataset")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x has {len(x)} samples and y {len(y)}: expected equally many, at least one")
    if not x.is_floating_point() or y.is_floating_point() or y.dim() != 1:
        raise ValueError(f"x is {x.dtype} and y is {y.dtype}, shape {tuple(y.shape)}: expected float x, integer y (N,)")
    return x, y.long()


def _check(epochs: int, batch_size: int, lr: float, alpha: float, augment: bool, x: Tensor) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)):
        if not value > 0:
            raise ValueError(f"{name}={value}: expected a number above 0")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected a number from 0 (adversarial only) to 1 (clean only)")
    if augment and x.dim() != 4:
        raise ValueError(f"augment=True mirrors and shifts images (N, C, H, W); x has shape {tuple(x.shape)}")


def _optimizer(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    raise ValueError(f"optimizer={name!r}: expected 'adam' or 'sgd'")


def _factor(schedule: str, done: float) -> float:
    """What the learning rate is multiplied with when the fraction `done` of all steps has been made."""
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule == "triangle":
        return done / 0.4 if done < 0.4 else (1 - done) / 0.6
    raise ValueError(f"schedule={schedule!r}: expected 'constant', 'cosine' or 'triangle'")


@torch.no_grad()
def _limit_norms(model: nn.Module, limit: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.weight.requires_grad:
            norms = torch.linalg.vector_norm(module.weight.flatten(1), dim=1)
            scale = (limit / norms.clamp_min(limit)).reshape(-1, *[1] * (module.weight.dim() - 1))
            module.weight.mul_(scale)


def _mirror_and_shift(x: Tensor, generator: torch.Generator, reach: int = 4) -> Tensor:
    """Each image mirrored with probability 1/2, and shifted by up to `reach` pixels, zeros moving in. (B, C, H, W)"""
    count, _, height, width = x.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    x = F.pad(torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x), [reach] * 4)
    down, right = torch.randint(0, 2 * reach + 1, (2, count), generator=generator).tolist()
    return torch.stack([x[i, :, down[i] : down[i] + height, right[i] : right[i] + width] for i in range(count)])


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generator: seed it, and put it back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    if not model.training:
        model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
