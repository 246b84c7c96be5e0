"""What an attacker maximises. Every objective returns one value per sample, higher is better for the attacker.

Shapes: logits (B, C) float, y (B,) int64, targets (B,) int64 or None (untargeted), reference (B, C) clean logits.
Half-precision logits are raised to float32 first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Objective = Callable[[Tensor, Tensor, "Tensor | None", "Tensor | None"], Tensor]


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -torch.inf)


def cross_entropy(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """−log p(y), or log p(target). (B,)

    Written as softplus(logsumexp of the others − own logit), because in float32 the usual form has a gradient of
    exactly zero at the true logit from a margin of about 17 (1 − p rounds to 0); here it only fades like exp(−margin).

    >>> cross_entropy(torch.tensor([[40.0, 0.0]], requires_grad=True), torch.tensor([0])).item() > 0
    True
    """
    logits = _wide(logits)
    label = y if targets is None else targets
    loss = F.softplus(_without(logits, label).logsumexp(1) - _of(logits, label), threshold=80.0)
    return loss if targets is None else -loss


def margin(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """Best other logit − true logit, or target logit − best other logit. (B,) Carlini and Wagner (2017), loss f6.

    Positive where the sample is fooled.
    """
    logits = _wide(logits)
    label = y if targets is None else targets
    difference = _without(logits, label).amax(1) - _of(logits, label)
    return difference if targets is None else -difference


def soft_margin(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """The margin, whose gradient is that of its smooth form, logsumexp of the others − own logit. (B,)

    Cross-entropy is the softplus of that form, so this leads where cross-entropy does, away from all the other classes
    at once, and fades nowhere. With 2 classes it is the margin.
    """
    logits = _wide(logits)
    label = y if targets is None else targets
    smooth = _without(logits, label).logsumexp(1) - _of(logits, label)
    smooth = smooth if targets is None else -smooth
    return margin(logits, y, targets).detach() + (smooth - smooth.detach())


def difference(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """Target logit − true logit, whatever the other classes do; untargeted it is the margin. (B,)

    Gowal et al. (2019). What fools under it hits the target or a class still further ahead.
    """
    logits = _wide(logits)
    return margin(logits, y) if targets is None else _of(logits, targets) - _of(logits, y)


def dlr(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """Difference of logits ratio: the margin in units of the spread of the largest logits. (B,)

    Croce and Hein (2020). Invariant to shifting and scaling the logits. Untargeted: (z_best other − z_y) / (z₁ − z₃);
    targeted: (z_t − z_y) / (z₁ − (z₃ + z₄)/2). With 3 classes the targeted form divides by z₁ − z₃; with 2 classes no
    scale is left, and the plain margin is returned.
    """
    logits = _wide(logits)
    classes = logits.shape[1]
    difference = margin(logits, y) if targets is None else _of(logits, targets) - _of(logits, y)
    if classes < 3:
        return difference
    top = logits.topk(min(classes, 4), dim=1).values
    spread = top[:, 0] - (top[:, 2] if targets is None or classes == 3 else (top[:, 2] + top[:, 3]) / 2)
    return difference / spread.clamp_min(torch.finfo(spread.dtype).tiny ** 0.5)


def kl(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """KL(p(x) ‖ p(x′)), the distance that TRADES and virtual adversarial training climb. (B,)

    `reference`: the logits at the clean input; labels are not used. Its gradient at x′ = x is zero, so start at random.
    """
    if reference is None:
        raise ValueError("kl needs the clean logits: pass reference=model(x)")
    if targets is not None:
        raise ValueError("kl has no targeted form: use cross_entropy or margin with targets")
    p, q = _wide(reference).log_softmax(1), _wide(logits).log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def logit(logits: Tensor, y: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """The target's logit, or minus the true class's. (B,)"""
    logits = _wide(logits)
    return -_of(logits, y) if targets is None else _of(logits, targets)


OBJECTIVES: dict[str, Objective] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "soft-margin": soft_margin,
    "logit-difference": difference,
    "dlr": dlr,
    "kl": kl,
    "logit": logit,
}


def resolve(objective: str | Objective) -> Objective:
    """The objective of that name, or the callable itself. ValueError with the names there are."""
    if callable(objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}: expected one of {', '.join(OBJECTIVES)}, or a callable")
    return OBJECTIVES[objective]


def fooled(prediction: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Whether the prediction is what the attacker wants: not y, or the target. (B,) bool

    A prediction of −1 (logits that are not finite) is never a success.
    """
    return (prediction >= 0) & ((prediction != y) if targets is None else (prediction == targets))


def predict(logits: Tensor) -> Tensor:
    """argmax over classes, (B,) int64; −1 where the largest logit is NaN or infinite (argmax would call NaN class 0)."""
    top, prediction = logits.max(1)
    return prediction.masked_fill_(~top.isfinite(), -1)


class BrokenModel(ValueError):
    """The model answers samples with NaN or inf."""


def check_label_range(y: Tensor, classes: int, what: str = "y") -> None:
    """ValueError for labels (B,) that are no class of the model."""
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise ValueError(
            f"{what} holds classes from {int(y.min())} to {int(y.max())}, the model has {classes} (0 to {classes - 1}): "
            "is this the data set that it was trained on?"
        )
