"""What `fit` was given: checked before anything is built, and told to a training that goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from inspect import Parameter
from numbers import Real
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
        if given[name] is not None and not (_number(given[name]) and given[name] > 0):
            raise ValueError(f"{name}={given[name]!r}: expected a number above 0")
    for name in ("momentum", "weight_decay", "warmup", "head_epochs"):
        if not (_number(given[name]) and given[name] >= 0):
            raise ValueError(f"{name}={given[name]!r}: expected a number, 0 or more")
    known = given["data"] is not Parameter.empty  # else a Trainer of Lightning's brings them, and its epochs
    if known and given["warmup"] >= given["epochs"]:
        raise ValueError(
            f"warmup={given['warmup']} of epochs={given['epochs']}: the rate would never be lr; expected fewer epochs of it"
        )
    _check_callbacks(given["callbacks"])
    if given["validation"] is False and given["validation_attack"] is not None:
        raise ValueError(
            "validation_attack: there is no validation (validation=False) to attack in: leave one of them out"
        )
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
    _check_optimizer(given)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence):
        name = type(callbacks).__name__
        raise TypeError(f"callbacks is a {name}: expected a list of them, as in callbacks=[{name}(…)]")
    for each in callbacks:
        if isinstance(each, type):
            raise TypeError(
                f"callbacks has the class {each.__name__}: expected an object, as in callbacks=[{each.__name__}(…)]"
            )
        if not callable(getattr(each, "after_epoch", None)):
            raise TypeError(f"callbacks has a {type(each).__name__}, which has no after_epoch(run)")


def _check_optimizer(given: dict[str, Any]) -> None:
    """An optimiser, or a scheduler, that is the user's own goes with the model, and with what else was given."""
    optimizer, schedule = given["optimizer"], given["schedule"]
    is_object = isinstance(optimizer, torch.optim.Optimizer)
    for name, default in (("lr", None), ("weight_decay", 0.0), ("momentum", 0.9)):
        if not isinstance(optimizer, str) and given[name] != default:
            brings = "is an object, which brings its own" if is_object else "is a function, which sets it"
            raise ValueError(f"{name}={given[name]}: optimizer {brings}: set it there, and leave {name} out")
    if is_object and (given["body_lr"] is not None or given["strategy"].modules()):
        raise ValueError(
            "optimizer is an object, which brings its parameters and rates: leave body_lr out, or give a function of "
            "parameter groups that makes one (a strategy with networks of its own needs one for each)"
        )
    if is_object:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held for p in given["model"].parameters()):
            raise ValueError(
                "optimizer has none of this model's parameters: nothing would be learned; make it of model.parameters()"
            )
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            "schedule is a ReduceLROnPlateau, which waits for a metric, and fit steps a scheduler once a batch: take another, "
            "or a name such as 'cosine'"
        )
    if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler) and (
        not is_object or given["warmup"] or schedule.optimizer is not optimizer
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
