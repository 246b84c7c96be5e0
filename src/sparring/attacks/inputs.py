"""From what a user passes to an attack to rows ready for the loop; what can't be attacked gets one clear line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.objective import check_label_range as check_label_range
from sparring.rows import Rows
from sparring.threat import Threat
from sparring.wrappers import AttackedInput, Model

Targets = Tensor | str | None
NAMED_TARGETS = ("least-likely", "second", "random")


def prepare(
    model: Borrowed,
    threat: Threat,
    x: Any,
    y: Any,
    *,
    targets: Targets = None,
    indices: Tensor | None = None,
    seed: int = 0,
    needs_reference: bool = False,
) -> Rows:
    """Checked rows for the samples x (B, *S), y (B,). Asks the model once, and counts it, where the clean logits are
    needed, for `rows.reference` or for named targets.

    TypeError or ValueError for inputs, labels or targets that no attack can use, saying what was given and expected.
    """
    x, context = split_inputs(model.model, x)
    check_inputs(x, threat)
    y = check_labels(y, x)
    x, y, context = _plain(x), _plain(y), {name: _plain(part) for name, part in context.items()}
    if indices is None:
        indices = torch.arange(len(x))
    if indices.shape != (len(x),):
        raise ValueError(f"indices of shape {tuple(indices.shape)} for {len(x)} samples: expected ({len(x)},)")
    rows = Rows(
        ticket=torch.arange(len(x)),
        index=indices.detach().cpu().long(),
        original=x,
        y=y,
        threat=threat.for_inputs(x),
        context=model.keyed(context, indices.detach().cpu().long()),
    )
    if targets is not None and not isinstance(targets, str):
        rows.targets = _plain(check_labels(targets, x, what="targets"))
    if len(x) and (needs_reference or isinstance(targets, str)):
        logits = model.look(x, context)
        rows.forwards, rows.backwards = torch.ones(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.int64)
        return with_logits(rows, logits, targets=targets, seed=seed, needs_reference=needs_reference)
    if isinstance(targets, str):
        check_target_name(targets)
    return rows


def _plain(value: Tensor) -> Tensor:
    """Without a graph, and a copy where inference mode made it: autograd refuses such tensors."""
    return value.clone() if value.is_inference() else value.detach()


def with_logits(
    rows: Rows, logits: Tensor, *, targets: Targets = None, seed: int = 0, needs_reference: bool = False
) -> Rows:
    """The rows with what depends on their clean logits (B, C): named targets, and the reference of KL."""
    check_label_range(rows.y, logits.shape[1])
    if needs_reference:
        rows.reference = logits
    if isinstance(targets, str):
        rows.targets = choose_targets(targets, logits, rows.y, Noise(seed, rows.index))
    return rows


def check_target_name(name: str) -> None:
    if name not in NAMED_TARGETS:
        raise ValueError(f"targets={name!r}: expected a (B,) tensor of classes, or one of {', '.join(NAMED_TARGETS)}")


def choose_targets(name: str, logits: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """(B,) int64, never the true class: the least likely, the most likely other one, or a random other one."""
    check_target_name(name)
    if name == "random":
        draw = noise.below(logits.shape[1] - 1, (1,), "target").squeeze(1).to(y.device)
        return draw + (draw >= y).long()
    away = torch.inf if name == "least-likely" else -torch.inf
    others = logits.detach().float().scatter(1, y[:, None], away)
    return others.argmin(1) if name == "least-likely" else others.argmax(1)


def split_inputs(model: Model, x: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The attacked tensor and the other inputs."""
    if isinstance(model, AttackedInput):
        return model.split(x)
    if not isinstance(x, Tensor):
        hint = (
            ": name the attacked one with sp.attacked_input(model, ...)" if isinstance(x, (dict, tuple, list)) else ""
        )
        raise TypeError(f"x is {type(x).__name__}: expected a tensor (B, ...){hint}")
    return x, {}


def check_inputs(x: Tensor, threat: Threat) -> None:
    if not x.is_floating_point():
        hint = ": divide by 255 first" if x.dtype == torch.uint8 else ""
        raise TypeError(f"x of dtype {x.dtype}: expected floats{hint}")
    if x.ndim < 2:
        raise ValueError(f"x of shape {tuple(x.shape)}: expected a batch (B, ...); for one sample use x[None]")
    if not len(x):
        return
    least, most = (float(v) for v in torch.aminmax(x.detach()))
    if not (least > -torch.inf and most < torch.inf):
        bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"x holds NaN or inf in {len(bad)} of {len(x)} samples (first: {bad[0]}): clean the data first"
        )
    if threat.bounds is not None and (least < threat.bounds[0] or most > threat.bounds[1]):
        low, high = threat.bounds
        raise ValueError(
            f"x lies in [{least:.3g}, {most:.3g}], outside the box [{low:g}, {high:g}]: attack images in [0, 1] with the "
            "normalisation inside the model, sp.normalized(model, mean, std), or give the box, as in Linf(eps, bounds=...)"
        )


def check_start(start: Tensor, x: Tensor, name: str, takes: bool) -> Tensor:
    """(B, *S) points to begin at, in x's dtype and on its device."""
    if not takes:
        raise ValueError(f"{name} takes no start: it begins where its own settings say")
    if not isinstance(start, Tensor) or start.shape != x.shape:
        given = f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"start of {given}: expected a point for each sample, {tuple(x.shape)} like x")
    return start.detach().to(x.device, x.dtype)


def check_labels(labels: Any, x: Tensor, what: str = "y") -> Tensor:
    """(B,) int64 on x's device."""
    try:
        y: Tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{what} is {type(labels).__name__}: expected class numbers, an integer tensor (B,)") from None
    if y.ndim == 2 and y.shape[0] == len(x) and y.shape[1] > 1:
        raise ValueError(
            f"{what} of shape {tuple(y.shape)}: expected class numbers (B,), not one-hot; use {what}.argmax(1)"
        )
    if y.shape != (len(x),):
        raise ValueError(f"{what} of shape {tuple(y.shape)} for {len(x)} samples: expected ({len(x)},)")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{what} of dtype {y.dtype}: expected class numbers of an integer dtype; use {what}.long()")
    return y.to(x.device, torch.int64)
