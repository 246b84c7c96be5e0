"""How inputs lie in memory, and in batches of which size, so that a model runs at its best."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparring.combined import Combined
from sparring.transforms import RandomTransform
from sparring.wrappers import Context

GRAPHS = (
    64  # that a compiled model may have: three sizes, with a graph and without, in each precision, for several models
)
COMPILING = ("torch._dynamo", "torch._inductor")
MISFIT = re.compile(r"shape|size|channel|dimension|type|device|expected|stride", re.IGNORECASE)
OTHERS = re.compile(r"memory|CUDA error|cuDNN", re.IGNORECASE)


@dataclass
class Layout:
    """compiled: batches are filled up to one of three sizes, the largest yet, a quarter and a sixteenth of it, because a
    compiled model has a graph for every shape (and CUDA graphs a recording). The rows that fill a batch up repeat its last
    one; nobody sees their logits, and they do not count as passes.
    channels_last: images come in the order of memory that the model's filters are in.
    whole: something else completes the batches, whose statistics count: none is filled up.
    """

    compiled: bool = False
    channels_last: bool = False
    largest: int = 0
    whole: bool = False

    @classmethod
    def of(cls, model: Callable[..., Any], modules: list[nn.Module]) -> Layout:
        """ValueError where something was compiled that keeps account of passes or draws by sample."""
        compiled, last = is_compiled(model), False
        inside = list(modules) if compiled else []
        for module in modules:
            if is_compiled(module):
                compiled = True
                inside += module.modules()
            compiled = compiled or is_compiled(module.__dict__.get("model"))  # a function that a wrapper holds
            last = last or any(map(_is_channels_last, module.parameters(recurse=False)))
        for module in inside:
            if isinstance(module, (Combined, RandomTransform)):
                raise ValueError(
                    f"torch.compile round {type(module).__name__.lower()}, which keeps account of passes or draws by "
                    "sample: compile the model that it holds instead, as in sp.expectation(torch.compile(model))"
                )
        return cls(compiled, last)

    def arrange(self, x: Tensor, context: Context) -> tuple[Tensor, Context]:
        """x (B, *S) and the other inputs as the model is to have them, filled up to (B', *S), B' ≥ B."""
        count = len(x)
        if self.compiled and count and not self.whole:
            self.largest = max(self.largest, count)
            size = next(s for s in (self.largest // 16, self.largest // 4, self.largest) if s >= count)
            if size > count:
                x = _filled(x, size)
                context = {n: _filled(part, size) if len(part) == count else part for n, part in context.items()}
        if self.channels_last and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last), context
        return x.contiguous() if self.compiled else x, context  # strides make graphs of their own, too

    def own(self, result: Tensor) -> Tensor:
        """What a model returned, in the usual order of memory; a copy where the next replay of a CUDA graph overwrites it."""
        return result.clone(memory_format=torch.contiguous_format) if self.compiled else result.contiguous()

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Room for all graphs, each of which may be differentiated more than once."""
        if not self.compiled:
            yield
            return
        import torch._dynamo.config as tracing  # slow, and not needed by others
        import torch._functorch.config as differentiating

        limit = max(GRAPHS, tracing.recompile_limit)
        with tracing.patch(recompile_limit=limit), differentiating.patch(donated_buffer=False):
            yield


def is_compiled(model: object) -> bool:
    """By torch.compile: hooks on it are not seen."""
    if isinstance(model, nn.Module):  # wrapped by torch.compile, or compiled in place by its own method
        return "_orig_mod" in model._modules or model._compiled_call_impl is not None
    return hasattr(model, "_torchdynamo_orig_callable")


def _filled(x: Tensor, size: int) -> Tensor:
    return torch.cat([x, x[-1:].detach().expand(size - len(x), *x.shape[1:])])


def _is_channels_last(parameter: Tensor) -> bool:
    return (
        parameter.ndim == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
    )


@contextmanager
def fitting(x: Any, known: bool) -> Iterator[None]:
    """Round a model's call: ValueError, in one line, where it can't take x (B, *S); `known`: it did take such inputs. What is
    not the inputs' fault (memory, a device, what the model itself has to say) is raised as it came."""
    try:
        yield
    except RuntimeError as error:
        if known or not isinstance(x, Tensor):
            raise
        reason, compiling = _told(error)
        if compiling:
            raise ValueError(f"torch.compile fails on this model: {reason}; use it uncompiled") from error
        torchs = type(error) is RuntimeError or type(error).__module__.startswith(COMPILING)
        if not torchs or OTHERS.search(reason) or not MISFIT.search(reason):
            raise
        raise ValueError(
            f"the model can't take inputs of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')} on {x.device}: "
            f"{reason}; give it data of the channels, size and dtype that it was made for"
        ) from error


def _told(error: RuntimeError) -> tuple[str, bool]:
    """What went wrong, in one line, and whether it was the compiling."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not type(error).__module__.startswith(COMPILING):
        return lines[0], False
    if inside := re.search(r"got \w+\((['\"])(.*)\1\)", str(error)):  # what the model itself raised while it was traced
        return inside[2], False
    return " ".join(line.strip() for line in lines[:2]).strip(), True
