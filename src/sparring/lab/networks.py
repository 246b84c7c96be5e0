"""The networks that a page may ask for: those that were registered when the server started, and no others."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparring import data
from sparring.borrow import borrow
from sparring.wrappers import Model

SHAPES = ((3, 224, 224), (1, 28, 28), (3, 32, 32))
"""What a network of unknown input is tried with, in this order."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network under its name.

    shape: (C, H, W) of a picture as it takes it, in [0, 1]. classes: a name for each of its logits. arguments: how
    ``sparring attack`` is told to load the same one. device: where it is.
    """

    name: str
    model: Model
    shape: tuple[int, int, int]
    classes: Sequence[str]
    arguments: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)  # a step of one job, then of another

    @classmethod
    def of(
        cls,
        name: str,
        model: Model,
        *,
        shapes: Iterable[tuple[int, int, int]] = SHAPES,
        classes: Sequence[str] | None = None,
        arguments: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> Network:
        """The network with the first of these input shapes that it takes, and as many class names as it has logits.

        It stays in eval mode with frozen parameters. classes: names, used where their number is right; ImageNet's for
        1,000 logits. ValueError where it takes none of the shapes.
        """
        device = device or torch.device("cpu")
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)
        shape, count = _fitting(name, model, shapes, device)
        return cls(name, model, shape, _named(classes, count), tuple(arguments), device)

    def top(self, logits: Tensor, count: int = 5) -> list[tuple[int, float]]:
        """The likeliest classes of one row of logits (K,), with their probabilities."""
        values, labels = logits.detach().float().softmax(0).cpu().topk(min(count, len(self.classes)))
        return list(zip(labels.tolist(), values.tolist(), strict=True))


def _fitting(
    name: str, model: Model, shapes: Iterable[tuple[int, int, int]], device: torch.device
) -> tuple[tuple[int, int, int], int]:
    reason = ""
    for shape in shapes:
        try:
            with borrow(model) as borrowed:
                return shape, borrowed.look(torch.full((1, *shape), 0.5, device=device)).shape[1]
        except (ValueError, TypeError) as error:
            reason = reason or str(error)
    raise ValueError(f"network {name!r} took no picture: {reason}")


def _named(classes: Sequence[str] | None, count: int) -> list[str]:
    if classes is not None and len(classes) == count:
        return list(classes)
    return data.imagenet_classes() if count == 1000 else [f"class {i}" for i in range(count)]
