"""What `fit` was given: checked before anything is built, and told to a training that goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparring.checks import check_whole
from sparring.training.feed import Feed
from sparring.training.strategy import Strategy
from sparring.training.unlabelled import Pairs
from sparring.training.values import plain

PRECISIONS = {"bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16, "fp16": torch.float16, "16-mixed": torch.float16}


def check(given: dict[str, Any]) -> None:
    """TypeError or ValueError, in one line, for arguments of `fit` that go with nothing, or not together."""
    model, strategy = given["model"], given["strategy"]
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy={strategy!r}: expected one such as sp.YOPO(sp.Linf(8/255))")
    check_whole("", **{name: given[name] for name in ("epochs", "accumulate", "evaluate_every")})
    for name in ("lr", "body_lr", "max_grad_norm"):
        if given[name] is not None and not given[name] > 0:
            raise ValueError(f"{name}={given[name]}: expected a number above 0")
    for name in ("momentum", "weight_decay", "warmup", "head_epochs"):
        if not given[name] >= 0:
            raise ValueError(f"{name}={given[name]}: expected 0 or more")
    if given["head_epochs"] >= given["epochs"] and given["body_lr"] is not None:
        raise ValueError(f"head_epochs={given['head_epochs']} of epochs={given['epochs']}: the body would never learn")
    if strategy.needs_indices and given["augment"] is not None:
        raise ValueError(
            f"{strategy.name} keeps a perturbation for every sample, which augment would move: leave augment out, or keep=False"
        )
    if given.get("unlabelled") is not None and not strategy.takes_unlabelled:
        raise ValueError(
            f"unlabelled: {strategy.name} learns nothing from samples without labels; sp.VAT(eps) does, and "
            f"{strategy.name} with .with_(sp.VirtualAdversarial(eps)) round it"
        )
    if given.get("unlabelled") is None and given.get("unlabelled_batch_size") is not None:
        raise ValueError(f"unlabelled_batch_size={given['unlabelled_batch_size']}: there are no unlabelled samples")
    if next(getattr(model, "parameters", lambda: iter(()))(), None) is None:
        raise ValueError(f"the model, a {type(model).__name__}, has no parameters: nothing to train")
    given_optimizer = isinstance(given["optimizer"], torch.optim.Optimizer)
    if given_optimizer and (given["lr"] is not None or given["body_lr"] is not None or strategy.modules()):
        raise ValueError(
            "optimizer is an object, which brings its parameters and rates: leave lr and body_lr out, or give a function "
            "of parameter groups that makes one (a strategy with networks of its own needs one for each)"
        )
    if isinstance(given["schedule"], torch.optim.lr_scheduler.LRScheduler) and (
        not given_optimizer or given["warmup"] or given["schedule"].optimizer is not given["optimizer"]
    ):
        raise ValueError("schedule is a torch scheduler: give the optimiser that it was made for, and no warmup")


def precision_of(name: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype to run under autocast with; None: the model's own."""
    if name in (None, "32", "fp32", "32-true"):
        return None
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r}: expected None, 'bf16' or 'fp16'")
    dtype = PRECISIONS[name]
    if dtype == torch.float16 and device.type != "cuda":
        raise ValueError(f"precision={name!r} needs a CUDA device, and the model is on {device}: use 'bf16'")
    return dtype


def identity(given: dict[str, Any], callbacks: Sequence[Any], feed: Feed, model: nn.Module) -> dict[str, Any]:
    """What must be the same for a training to go on."""
    names = (
        *("epochs", "optimizer", "lr", "momentum", "weight_decay", "schedule", "warmup", "max_grad_norm", "accumulate"),
        *("precision", "augment", "freeze", "head", "head_epochs", "body_lr", "seed", "evaluate_every"),
    )
    strategy = given["strategy"]
    return {
        "strategy": strategy.name,
        **{f"strategy.{name}": value for name, value in strategy.settings().items()},
        **{name: _told(given[name]) for name in names},
        "callbacks": [type(callback).__name__ for callback in callbacks],
        "batch_size": feed.batch_size,
        "samples": len(feed.numbers),
        "data": _digest(feed),
        "unlabelled": [feed.others.available, feed.others.batch_size] if isinstance(feed, Pairs) else None,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _digest(feed: Feed) -> str | None:
    """Which samples they are, where they are in memory: by their labels, and their tokens where they are texts. Floats may be
    rounded otherwise on another machine, where a training may well go on."""
    if feed.memory is None:
        return None
    x, y = feed.memory
    hasher = hashlib.sha256(y.cpu().numpy().tobytes())
    if not x.is_floating_point():
        hasher.update(x.cpu().numpy().tobytes())
    return f"{len(y)} samples, sha256 {hasher.hexdigest()[:12]}"


def _told(value: Any) -> Any:
    """A setting in words that are the same at the next start."""
    if isinstance(value, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
        return type(value).__name__
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else plain(value)
