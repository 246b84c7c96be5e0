"""Borrowing a model: evaluation mode, frozen parameters, counted passes; afterwards it is as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from sparring.combined import Combined
from sparring.layout import Layout, fitting
from sparring.noise import Noise
from sparring.stem import quick_stems
from sparring.transforms import Keys, RandomTransform
from sparring.wrappers import Context, Model, decided

INDEX = (
    "index of the sample"  # a name in a context that is not the model's: what a sample's random numbers are keyed by
)

HOLDS = ("model", "function", "stand_in", "transform")  # how the wrappers call what they hold


class Borrowed:
    """A borrowed model: calls it, takes input gradients, and counts the samples that pass through it.

    cost: the passes that one answer takes; above 1 where the model combines several answers.
    access: "gradients"; "scores": logits without a graph, whoever asks; "decisions": nothing but the class on top, which is
    also what a model may return, as labels (B,) of `labels` classes.
    batch: the largest batch to come, where that is known; only a compiled model cares.
    """

    def __init__(
        self,
        model: Model,
        autocast: torch.dtype | None = None,
        seed: int = 0,
        modules: Iterable[nn.Module] = (),
        *,
        access: str = "gradients",
        labels: int | None = None,
        batch: int = 0,
    ) -> None:
        self.access, self.labels = access, labels
        self.model, self.autocast, self.seed = model, autocast, seed
        self.forwards = self.backwards = 0
        self.cost = 1
        self.classes: int | None = None
        modules = list(modules)
        self.layout = Layout.of(model, modules)
        self.layout.largest = batch
        self.combined = [module for module in modules if isinstance(module, Combined)]
        self.transforms = [module for module in modules if isinstance(module, RandomTransform)]
        self._calls: dict[int, int] = {}  # how often each sample was asked, where it has random numbers of its own

    def keyed(self, context: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The context, with what the random numbers inside the model are keyed by, where there are any."""
        return {**context, INDEX: index} if self.transforms else context

    @contextmanager
    def precision(self, autocast: torch.dtype | None) -> Iterator[None]:
        """Run the model under torch.autocast with this dtype (None: in its own precision) for the length of the block."""
        before, self.autocast = self.autocast, autocast
        try:
            yield
        finally:
            self.autocast = before

    def call(self, x: Tensor, context: Context) -> Tensor:
        """Checked logits (B, C), one counted forward a sample, with a graph where gradients are on."""
        count = len(x)
        x, context = self.layout.arrange(x, context)
        cast = nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast)
        before = sum(module.extra for module in self.combined)
        watched = nullcontext() if self.access == "gradients" else torch.no_grad()
        with cast, self._drawing(context, len(x)), watched, fitting(x, known=self.classes is not None):
            logits: Tensor = self.model(x, **{name: part for name, part in context.items() if name != INDEX})
        if self.access == "decisions":
            logits = decided(logits, self.labels)
        self.cost = 1 + (sum(module.extra for module in self.combined) - before) // max(len(x), 1)
        self.forwards += self.cost * count
        if self.classes is None or not isinstance(logits, Tensor) or logits.shape != (len(x), self.classes):
            self.classes = check_logits(logits, len(x), self.classes)
        return self._first(logits, count) if self.layout.compiled else logits

    def _first(self, logits: Tensor, count: int) -> Tensor:
        """The logits of so many rows."""
        first = self.layout.own(logits[:count])
        for module in self.combined:
            if module.output is logits:
                module.output, module.parts = first, [part[:count] for part in module.parts]
        return first

    @contextmanager
    def _drawing(self, context: Context, count: int) -> Iterator[None]:
        """Every random transform of ours gets its numbers by sample and call."""
        index = context.get(INDEX)
        if index is None or len(index) != count:
            yield
            return
        calls = [self._calls.get(i, 0) for i in index.tolist()]
        self._calls.update((i, call + 1) for i, call in zip(index.tolist(), calls, strict=True))
        noise, call = Noise(self.seed, index), torch.tensor(calls)
        for number, transform in enumerate(self.transforms):
            transform.keys = Keys(noise, call, number * 1_000_003)
        try:
            yield
        finally:
            for transform in self.transforms:
                transform.keys = None

    def look(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Logits (B, C) without a graph: one forward a sample."""
        with torch.no_grad():
            logits = self.call(x, context or {}).detach()
        self._release()
        return logits

    def probe(
        self,
        x: Tensor,
        objective: Callable[[Tensor], Tensor],
        context: Context | None = None,
        view: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C), objective (B,) and its gradient (B, *S) at x: one forward and one backward a sample.

        The gradient is that of the sum over the batch, with respect to the input only: each sample gets its own.
        view: what the model sees of x, differentiable; None: x itself.
        An objective of shape (B, k) gives k gradients (B, k, *S) from one forward, and k backwards count.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.call(x if view is None else view(x), context or {})
            value = self._objective(logits, objective)
            if not value.requires_grad:
                raise ValueError(
                    "the model's logits carry no gradient to its input (computed under no_grad, detached, or through "
                    "numpy): return them as torch computed them"
                )
            columns = value.unbind(1) if value.ndim == 2 else (value,)
            gradients: list[Tensor | None] = [
                torch.autograd.grad(column.sum(), x, allow_unused=True, retain_graph=i + 1 < len(columns))[0]
                for i, column in enumerate(columns)
            ]
        found = [self.layout.own(gradient) for gradient in gradients if gradient is not None]
        if len(found) < len(gradients):
            raise ValueError("the model's logits do not depend on the attacked input: is another input meant?")
        gradient = torch.stack(found, 1) if value.ndim == 2 else found[0]
        self.backwards += self.cost * len(x) * len(columns)
        self._release()
        return logits.detach(), value.detach(), gradient

    def _objective(self, logits: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """The objective of these logits, or its mean over the answers behind them, where that is what they combine."""
        for module in self.combined:
            if module.output is logits:
                return module.mean([objective(part) for part in module.parts])
            if module.output is not None:
                raise ValueError(
                    f"{type(module).__name__.lower()}(combine='loss') is changed by what lies round it: attack it "
                    "itself (sp.normalized and sp.output may hold it), or combine 'logits' or 'probabilities'"
                )
        return objective(logits)

    def _release(self) -> None:
        for module in self.combined:
            module.release()


def _likely(outputs: Mapping[Any, Any], batch: int) -> str:
    """The key under which logits most probably are."""
    shaped = [
        key for key, value in outputs.items() if isinstance(value, Tensor) and value.ndim == 2 and len(value) == batch
    ]
    named = [key for key in ("logits", "output", "out", "scores") if key in outputs]
    return str(next(iter([*named, *shaped, *outputs]), "logits"))


def check_logits(logits: Any, batch: int, classes: int | None = None) -> int:
    """The number of classes; one clear line where this is not (B, C) floating-point logits."""
    if isinstance(logits, Mapping):
        raise TypeError(
            f"the model returned a dict with keys {sorted(map(str, logits))}: name its logits, as in "
            f"sp.output(model, {_likely(logits, batch)!r}) (--output on the command line)"
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
            held = [module.__dict__.get(name) for module in here.modules() for name in HOLDS]
        else:
            held = _held(here)
        queue += [part for part in held if callable(part) and not inspect.isclass(part)]
    return list(found.values())


@contextmanager
def borrow(
    model: Model,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    *,
    access: str = "gradients",
    labels: int | None = None,
    batch: int = 0,
) -> Iterator[Borrowed]:
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
    dropouts = [(module, module.dropout) for module in on_cudnn(modules)]
    try:
        for module in modules:
            module.training = False
        for module, _ in dropouts:
            module.training, module.dropout = True, 0.0
        for parameter, _, _ in grads:
            parameter.requires_grad_(False)
        borrowed = Borrowed(model, autocast, seed, modules, access=access, labels=labels, batch=batch)
        stems = quick_stems(() if borrowed.layout.compiled else modules)
        with torch.inference_mode(False), borrowed.layout.compiling(), stems:
            yield borrowed
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


def on_cudnn(modules: Iterable[nn.Module]) -> list[nn.RNNBase]:
    """Those of these modules that are recurrent layers on CUDA."""
    return [m for m in modules if isinstance(m, nn.RNNBase) and any(p.is_cuda for p in m.parameters())]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
