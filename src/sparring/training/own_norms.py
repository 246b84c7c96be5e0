"""BatchNorm layers that people write themselves: modules that give buffers of their own to `functional.batch_norm`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sparring.borrow import borrow
from sparring.layout import fitting

NAMES: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled",
    ),
    torch.native_batch_norm: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps",
    ),
}  # fmt: skip
Arguments = dict[str, Any]


@dataclass(frozen=True)
class OwnNorm:
    """Such a call, with the attributes of a BatchNorm layer. mean, var: the names of the module's buffers."""

    name: str
    module: nn.Module
    mean: str
    var: str
    momentum: float
    eps: float

    num_batches_tracked = None

    @property
    def buffers(self) -> tuple[str, str]:
        return self.mean, self.var

    @property
    def training(self) -> bool:
        return self.module.training

    @property
    def running_mean(self) -> Tensor:
        return self.module.get_buffer(self.mean)

    @property
    def running_var(self) -> Tensor:
        return self.module.get_buffer(self.var)

    @property
    def num_features(self) -> int:
        return len(self.running_mean)


Norm = _BatchNorm | OwnNorm


class _Calls(TorchFunctionMode):
    """What is called with which arguments wherever batch_norm would be called with some."""

    def __init__(self, answer: Callable[[Arguments], Arguments]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = NAMES.get(func)
        if names is None:
            return func(*args, **(kwargs or {}))
        return func(**self.answer(dict(zip(names, args)) | (kwargs or {})))


@contextmanager
def _calls(answer: Callable[[Arguments], Arguments]) -> Iterator[None]:
    """Compiled code is run as it was written, because its calls can't be seen."""
    loaded = "torch._dynamo" in sys.modules  # nothing is compiled without it
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager") if loaded else nullcontext()
    with eager, _Calls(answer):
        yield


def _whose(norms: Sequence[OwnNorm], given: Arguments) -> OwnNorm | None:
    mean = given.get("running_mean")
    return next((norm for norm in norms if norm.running_mean is mean), None)


def normalised_by_batch(norms: Sequence[OwnNorm]) -> AbstractContextManager[None]:
    """These calls take the batch's own statistics, and leave the running ones alone."""

    def answer(given: Arguments) -> Arguments:
        if _whose(norms, given) is None:
            return given
        return {**given, "running_mean": None, "running_var": None, "training": True}

    return _calls(answer) if norms else nullcontext()


@contextmanager
def listening(norms: Sequence[Norm], heard: Callable[[Norm, Tensor, bool], None]) -> Iterator[None]:
    """`heard(norm, its input, whether its running statistics move)` whenever one of these layers runs."""
    own = [norm for norm in norms if isinstance(norm, OwnNorm)]

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        heard(layer, inputs[0], layer.training and layer.track_running_stats)

    def answer(given: Arguments) -> Arguments:
        if (norm := _whose(own, given)) is not None:
            heard(norm, given["input"], given.get("training", False))
        return given

    handles = [norm.register_forward_pre_hook(hook) for norm in norms if isinstance(norm, _BatchNorm)]
    try:
        with _calls(answer) if own else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


_SEEN: WeakKeyDictionary[nn.Module, tuple[list[str], list[tuple[str, str, str, float, float]]]] = WeakKeyDictionary()


def may_have_own_norms(model: nn.Module) -> bool:
    """Whether one of the modules may be such a layer."""
    return any(may_be_norm(module) for module in model.modules())


def own_norms(model: nn.Module, x: Any = None) -> list[OwnNorm]:
    """The modules of this model that call batch_norm with buffers of their own, whatever their mode.

    x: inputs, of which two are shown to a model that it has not seen before and that has buffers which may be such; others
    cost nothing. None: a model that has not been seen is not looked at, and none of its modules are known.
    """
    possible = [name for name, module in model.named_modules() if may_be_norm(module)]
    if not possible:
        return []
    known, calls = _SEEN.get(model, ([], []))
    if known != possible and x is None:
        return []
    if known != possible:
        calls = _found(model, possible, x[:2])
        _SEEN[model] = possible, calls
    return [OwnNorm(name, model.get_submodule(name), *rest) for name, *rest in calls]  # type: ignore[arg-type]


def may_be_norm(module: nn.Module) -> bool:
    """Whether it is no BatchNorm, and has two buffers that can be a mean and a variance by channel."""
    if not module._buffers or isinstance(module, _BatchNorm):
        return False
    sizes = [len(b) for b in module._buffers.values() if b is not None and b.ndim == 1 and b.is_floating_point()]
    return len(set(sizes)) < len(sizes)


def _found(model: nn.Module, possible: Sequence[str], x: Any) -> list[tuple[str, str, str, float, float]]:
    """The calls of one forward, in which nothing in the model moves."""
    buffers = {
        id(buffer): (name, key)
        for name in possible
        for key, buffer in model.get_submodule(name)._buffers.items()
        if buffer is not None
    }
    calls: dict[tuple[str, str], tuple[str, str, str, float, float]] = {}

    def answer(given: Arguments) -> Arguments:
        mean, var = (buffers.get(id(given.get(key))) for key in ("running_mean", "running_var"))
        if mean is not None and var is not None and mean[0] == var[0]:
            momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
            calls.setdefault(mean, (*mean, var[1], float(momentum), float(eps)))
        return given

    with torch.random.fork_rng([]), borrow(model), torch.no_grad(), fitting(x, known=False), _calls(answer):
        model(x)
    return list(calls.values())
