"""Borrowing a model: evaluation mode, frozen parameters, counted passes; afterwards it is as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from sparring.wrappers import Context, Model


class Borrowed:
    """A borrowed model: calls it, takes input gradients, and counts the samples that pass through it."""

    def __init__(self, model: Model, autocast: torch.dtype | None = None) -> None:
        self.model, self.autocast = model, autocast
        self.forwards = self.backwards = 0
        self.classes: int | None = None

    def call(self, x: Tensor, context: Context) -> Tensor:
        """Checked logits (B, C), one counted forward a sample, with a graph where gradients are on."""
        cast = nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast)
        try:
            with cast:
                logits: Tensor = self.model(x, **context)
        except RuntimeError as error:
            if self.classes is not None or isinstance(error, torch.OutOfMemoryError):
                raise  # it has worked before: not the inputs' fault
            raise ValueError(
                f"the model can't take inputs of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')} on {x.device}: "
                f"{str(error).strip().splitlines()[0]}; give it data of the channels, size and dtype that it was made for"
            ) from error
        self.forwards += len(x)
        if self.classes is None or not isinstance(logits, Tensor) or logits.shape != (len(x), self.classes):
            self.classes = _check_logits(logits, len(x), self.classes)
        return logits

    def look(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Logits (B, C) without a graph: one forward a sample."""
        with torch.no_grad():
            return self.call(x, context or {}).detach()

    def probe(
        self, x: Tensor, objective: Callable[[Tensor], Tensor], context: Context | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C), objective (B,) and its gradient (B, *S) at x: one forward and one backward a sample.

        The gradient is that of the sum over the batch, with respect to the input only: each sample gets its own.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.call(x, context or {})
            value = objective(logits)
            if not value.requires_grad:
                raise ValueError(
                    "the model's logits carry no gradient to its input (computed under no_grad, detached, or through "
                    "numpy): return them as torch computed them"
                )
            (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        if gradient is None:
            raise ValueError("the model's logits do not depend on the attacked input: is another input meant?")
        self.backwards += len(x)
        return logits.detach(), value.detach(), gradient


def _check_logits(logits: Any, batch: int, classes: int | None) -> int:
    """The number of classes; one clear line where this is not (B, C) floating-point logits."""
    if isinstance(logits, Mapping):
        raise TypeError(
            f"the model returned a dict with keys {sorted(map(str, logits))}: name its logits, as in "
            f"sp.output(model, {str(next(iter(logits), 'logits'))!r})"
        )
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(logits).__name__}: expected a tensor of logits (B, C); pick it with "
            f"sp.output(model, {0 if isinstance(logits, (tuple, list)) else 'logits'!r})"
        )
    if logits.ndim != 2 or len(logits) != batch or (classes is not None and logits.shape[1] != classes):
        expected = f"({batch}, {classes or 'C'})"
        raise ValueError(
            f"the model returned shape {tuple(logits.shape)}: expected one row of logits a sample, {expected}"
        )
    if logits.shape[1] < 2:
        raise ValueError(
            "the model returned 1 logit a sample: expected one for each class; for a binary model return "
            "torch.cat([-z, z], 1) / 2"
        )
    if not logits.is_floating_point():
        raise TypeError(f"the model returned {logits.dtype}: expected floating-point logits, before any argmax")
    return int(logits.shape[1])


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row is non-negative and sums to one: softmax applied where logits are expected."""
    wide = logits.detach().float()
    return bool((wide >= 0).all()) and bool(((wide.sum(1) - 1).abs() < 1e-3).all())


def _held(model: object) -> list[object]:
    """What a callable keeps that may be, or hold, a network: of a bound method its object, of a partial its parts, of a
    function its closure and the modules that it names, of another object its attributes."""
    if isinstance(model, partial):
        return [model.func, *model.args, *model.keywords.values()]
    if inspect.ismethod(model):
        return [model.__self__]
    if inspect.isfunction(model):
        named = [model.__globals__.get(name) for name in model.__code__.co_names]
        cells = [cell.cell_contents for cell in model.__closure__ or () if cell != CellType()]  # not the empty ones
        return [*cells, *(value for value in named if isinstance(value, nn.Module))]
    return list(getattr(model, "__dict__", {}).values())


def _modules(model: object) -> list[nn.Module]:
    """The modules behind a model, each once: its own, and those of the callables that it holds."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    queue = [model]
    while queue:
        here = queue.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, nn.Module):
            found.update((id(module), module) for module in here.modules())
            # a wrapper round a plain callable holds it as an attribute, unregistered
            held = [module.__dict__.get("model") for module in here.modules()]
        else:
            held = _held(here)
        queue += [part for part in held if callable(part) and not inspect.isclass(part)]
    return list(found.values())


@contextmanager
def borrow(model: Model, autocast: torch.dtype | None = None) -> Iterator[Borrowed]:
    """Borrow `model`: every submodule in evaluation mode, no parameter collecting gradients, inference mode off.

    On the way out, also after an exception, every submodule's mode, every parameter's `requires_grad` and `.grad`, and
    every buffer is as it was. A recurrent layer on CUDA stays in train mode with its dropout off, because cuDNN has
    no backward in evaluation mode.
    """
    modules = _modules(model)
    modes = [(module, module.training) for module in modules]
    parameters = {id(p): p for module in modules for p in module.parameters(recurse=False)}.values()
    grads = [(p, p.requires_grad, p.grad) for p in parameters]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    dropouts = [
        (module, module.dropout)
        for module in modules
        if isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters())
    ]
    try:
        for module in modules:
            module.training = False
        for module, _ in dropouts:
            module.training, module.dropout = True, 0.0
        for parameter, _, _ in grads:
            parameter.requires_grad_(False)
        with torch.inference_mode(False):
            yield Borrowed(model, autocast)
    finally:
        for module, mode in modes:
            module.training = mode
        for rnn, dropout in dropouts:
            rnn.dropout = dropout
        for parameter, required, grad in grads:
            parameter.requires_grad_(required)
            parameter.grad = grad
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                if buffer is not None and content is not None and not _same(buffer, content):
                    buffer.copy_(content)
                module._buffers[name] = buffer


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
