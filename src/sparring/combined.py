"""Several answers as one: an ensemble of models, or one model asked many times. Every pass is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparring.checks import check_whole
from sparring.wrappers import Held, Model

COMBINE = ("logits", "probabilities", "loss")


class Combined(nn.Module):
    """What makes one answer of several, weighted.

    extra: the passes, counted in samples, that it took beyond the one a sample that its caller sees. With combine="loss"
    `output` is what was last returned and `parts` the answers behind it, for the objective to be taken of each.
    """

    parts: list[Tensor]
    output: Tensor | None

    def __init__(self, weights: Sequence[float], combine: str) -> None:
        super().__init__()
        if combine not in COMBINE:
            raise ValueError(f"combine={combine!r}: expected one of {', '.join(COMBINE)}")
        self.combine, self.extra = combine, 0
        self.share = [float(weight) / sum(weights) for weight in weights]
        self.release()

    def release(self) -> None:
        """Let go of the last answers, and of their graphs."""
        self.parts, self.output = [], None

    def combined(self, parts: list[Tensor]) -> Tensor:
        """The one answer (B, C)."""
        self.extra += (len(parts) - 1) * len(parts[0])
        if self.combine == "probabilities":
            spread = [torch.log_softmax(part, 1) for part in parts]
            shares = torch.tensor(self.share, dtype=spread[0].dtype, device=spread[0].device).log()
            return torch.logsumexp(torch.stack(spread) + shares[:, None, None], 0)
        total = self.mean(parts)
        if self.combine == "loss":
            self.parts, self.output = parts, total
        return total

    def mean(self, parts: Sequence[Tensor]) -> Tensor:
        """The weighted mean, added up in order, so that it does not depend on the batch."""
        total = self.share[0] * parts[0]
        for share, part in zip(self.share[1:], parts[1:], strict=True):
            total = total + share * part
        return total


class Ensemble(Combined):
    """See `ensemble`."""

    def __init__(self, models: Sequence[Model], weights: Sequence[float] | None, combine: str) -> None:
        if not models:
            raise ValueError("an ensemble of no models: expected at least one")
        chosen = [1.0] * len(models) if weights is None else list(weights)
        if len(chosen) != len(models) or not all(0 < weight < float("inf") for weight in chosen):
            raise ValueError(f"weights={weights!r} for {len(models)} models: expected one each, all above 0")
        super().__init__(chosen, combine)
        self.members = nn.ModuleList([m if isinstance(m, nn.Module) else Held(m) for m in models])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = [member(x, *args, **kwargs) for member in self.members]
        for number, part in enumerate(parts):
            if not isinstance(part, Tensor) or part.shape != parts[0].shape:
                told = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in (parts[0], part)]
                raise ValueError(
                    f"an ensemble's members must return logits of one shape: member 0 returns {told[0]}, "
                    f"member {number} {told[1]}"
                )
        return self.combined(parts)

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}, weights={[round(share, 4) for share in self.share]}"


class Expectation(Combined):
    """See `expectation`."""

    def __init__(self, model: Model, samples: int, transform: Callable[[Tensor], Tensor] | None, combine: str) -> None:
        check_whole("expectation", samples=samples)
        if transform is not None and not callable(transform):
            raise TypeError(f"expectation(transform={transform!r}): expected a function of x, such as sp.rotated(22.5)")
        super().__init__([1.0] * samples, combine)
        self.model, self.samples, self.transform = model, samples, transform

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # one call for each draw: a model that draws once for its whole batch must draw anew
        seen = (x if self.transform is None else self.transform(x) for _ in range(self.samples))
        return self.combined([self.model(part, *args, **kwargs) for part in seen])

    def extra_repr(self) -> str:
        return f"samples={self.samples}, combine={self.combine!r}"


def ensemble(models: Sequence[Model], weights: Sequence[float] | None = None, combine: str = "logits") -> Ensemble:
    """Several models with the same classes as one model x (B, *S) → logits (B, C), to be attacked at once.

    Examples that fool several networks transfer better to others. Liu et al. (2017); Dong et al. (2018) compare what to
    average: "logits"; "probabilities" (the result is the logarithm of their mean); or the "loss": then an attack climbs
    the mean of its objective over the members, and the mean logits say who is fooled. "loss" needs the ensemble to be the
    model that is attacked (or what `normalized` and `output` hold).

    weights: one a member, above 0; they are divided by their sum. Each member's passes count.
    ValueError for weights, members or an average that can't be.

    >>> both = ensemble([lambda x: x, lambda x: 3 * x], weights=[1, 3])
    >>> both(torch.tensor([[1.0, 2.0]]))
    tensor([[2.5000, 5.0000]])
    """
    return Ensemble(list(models), weights, combine)


def expectation(
    model: Model, samples: int = 20, transform: Callable[[Tensor], Tensor] | None = None, combine: str = "logits"
) -> Expectation:
    """The model's mean answer over `samples` draws: expectation over transformation. Athalye et al. (2018).

    For a model that is random by itself (added noise, random resizing), whose single gradients and answers mislead; and, with
    a `transform`, for examples that fool under each of many changes, such as `rotated(22.5)`. A random draw is made for
    every forward. An attack climbs the mean's objective, or with combine="loss" the mean of the objectives, as the paper
    does; in both, success means that the mean answer over fresh draws is wrong. combine: as for `ensemble`.

    transform: x (B, *S) → what the model sees, differentiable. One of `sparring.transforms` draws numbers keyed by (seed,
    sample, draw); any other, like a model that is random by itself, draws from torch's generator: `seed` fixes it, but the
    batch size changes it.
    A forward costs `samples` passes, and each is counted; a backward needs the memory of all of them.

    >>> steady = expectation(torch.nn.Flatten(), samples=4, transform=lambda x: x + 1)
    >>> steady(torch.zeros(1, 2))
    tensor([[1., 1.]])
    """
    return Expectation(model, samples, transform, combine)
