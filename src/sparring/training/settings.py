"""What `fit` was given: checked before anything is built, and told to a training that goes on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from sparring.checks import check_whole
from sparring.training.feed import Feed
from sparring.training.strategy import Strategy
from sparring.training.unlabelled import Pairs
from sparring.training.values import plain

if TYPE_CHECKING:
    from sparring.training.run import Run

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
    if known:
        check_warmup(given["warmup"], given["epochs"], "epochs")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise ValueError(
            "the model has lazy layers, whose sizes are not known yet: call it on a batch first, model(x[:2])"
        )
    if given.get("head") is not None and not given["head_epochs"] and given["body_lr"] is None:
        raise ValueError(
            f"head={given['head']!r}: without head_epochs or body_lr it learns like everything else; give one of them"
        )
    _check_callbacks(given["callbacks"])
    if given["validation"] is False and given["validation_attack"] is not None:
        raise ValueError(
            "validation_attack: there is no validation (validation=False) to attack in: leave one of them out"
        )
    if given["head_epochs"] > given["epochs"] or (
        given["head_epochs"] == given["epochs"] and given["body_lr"] is not None
    ):
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
    spatial = [name for name, weight in model.named_parameters() if weight.ndim == 5]
    if given["channels_last"] and spatial:
        raise ValueError(
            f"channels_last=True orders images (B, C, H, W), and {spatial[0]} has 5 dimensions: leave it out, or give the model "
            "as model.to(memory_format=torch.channels_last_3d)"
        )
    _check_optimizer(given)


def check_warmup(warmup: float, epochs: int, name: str) -> None:
    """ValueError where it takes all of the epochs, which the caller knows by this name."""
    if warmup >= epochs:
        raise ValueError(f"warmup={warmup} of {name}={epochs}: the rate would never be lr; expected fewer epochs of it")


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
        "data": None if feed.memory is None else _digest(*feed.memory),
        "moments of x": None if feed.memory is None else _moments(feed.memory[0]),
        "unlabelled": [feed.others.available, feed.others.batch_size] if isinstance(feed, Pairs) else None,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


LATER = (
    *("data", "moments of x", "validation", "moments of validation x", "validation_attack", "callbacks' settings"),
    "moments of the weights of sources",
)
"""What earlier versions did not keep: a state without one of them is gone on with."""


def beside(run: Run) -> dict[str, Any]:
    """What must be the same for a training to go on, beside what `fit` was given: as it was made of that."""
    held, strategy = run.validation, run.strategy
    learning = [run.model, *strategy.modules().values()]
    fixed = [module for field in fields(strategy) for module in _modules(getattr(strategy, field.name))]
    sources = [_moments(_weights(module)) for module in fixed if not any(module is each for each in learning)]
    return {
        "validation": None if held is None else _digest(held.x, held.y),
        "moments of validation x": None if held is None or held.made else _moments(held.x),
        "validation_attack": None if held is None or held.threat is None else [str(held.threat), _steady(held.attacks)],
        "callbacks' settings": [_settings(callback) for callback in run.callbacks],
        **({"moments of the weights of sources": sources} if sources else {}),
    }


def _digest(x: Tensor, y: Tensor) -> str:
    """Which samples they are: by their labels, and their tokens where they are texts. Floats may be rounded otherwise on
    another machine, where a training may well go on: see `_moments`."""
    hasher = hashlib.sha256(y.cpu().numpy().tobytes())
    if not x.is_floating_point():
        hasher.update(x.cpu().numpy().tobytes())
    return f"{len(y)} samples, sha256 {hasher.hexdigest()[:12]}"


def _moments(x: Tensor) -> list[float] | None:
    """Mean and spread of up to 256 rows, and means weighted by row and by place: hardly the same for other samples."""
    if not x.is_floating_point():
        return None
    count = min(len(x), 256)
    rows = (torch.arange(count) * len(x) // count).to(x.device)
    some = x[rows].detach().reshape(count, -1).cpu().double().nan_to_num()
    by_row, by_place = (torch.arange(size, dtype=torch.float64).cos() for size in some.shape)
    found = [some.mean(), some.std(correction=0), (some.T * by_row).mean(), (some * by_place).mean()]
    return [float(f"{float(value):.6g}") for value in found]


def _modules(value: Any) -> list[nn.Module]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, nn.Module)]


def _weights(module: nn.Module) -> Tensor:
    """Some of each tensor's numbers (1, n)."""
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return torch.cat([torch.zeros(1), *(tensor.flatten()[:4096].float().cpu() for tensor in floats)])[None]


def _settings(callback: Any) -> Any:
    """What a callback says that it was set to, or the fields of one that can't change; of others no one knows."""
    if callable(told := getattr(callback, "settings", None)):
        return _steady(told())
    if is_dataclass(callback) and getattr(type(callback), "__dataclass_params__").frozen:  # noqa: B009
        return {field.name: _steady(getattr(callback, field.name)) for field in fields(callback)}
    return None


def _steady(value: Any) -> Any:
    """As JSON can hold it, without the addresses of objects, which are others at the next start."""
    told = _told(value)
    if isinstance(told, list):
        return [_steady(part) for part in told]
    if isinstance(told, dict):
        return {name: _steady(part) for name, part in told.items()}
    return re.sub(r" at 0x[0-9a-f]+", "", told) if isinstance(told, str) else told


def _told(value: Any) -> Any:
    """A setting in words that are the same at the next start."""
    if isinstance(value, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
        return type(value).__name__
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else plain(value)
