"""The first layer of a model: found by a hook, run alone, and cut off from the rest (for YOPO)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

SILENT = (
    "the first layer's hook did not fire: name a layer that every forward meets by first=..., and let a compiled model "
    "run first under the strategy"
)
TOLERANCE = 1e-4  # of an affine map in float32, relative to how far its outputs move


Action = Callable[[Tensor], Tensor]


class _Reached(Exception):
    """The first layer has answered: the rest of the model need not run."""


def first_layer(model: nn.Module, x: Tensor) -> nn.Module:
    """The first module with parameters of its own that x (B, *S) meets in a borrowed model, whose parameters are frozen: an
    answer that needs a gradient comes from x. ValueError where there is none."""
    found: list[nn.Module] = []

    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not output.requires_grad:
            return  # the positions' embedding, say
        found.append(module)
        raise _Reached

    model = getattr(model, "_orig_mod", model)
    handles = [module.register_forward_hook(hook) for module in with_parameters(model)]
    try:
        with torch.enable_grad():
            model(x[:2].detach().requires_grad_(True))
    except _Reached:
        return found[0]
    finally:
        for handle in handles:
            handle.remove()
    raise ValueError(
        "no module with parameters ran that a gradient comes through to the input: YOPO needs a first layer, name it by "
        "first=..."
    )


def with_parameters(model: nn.Module) -> list[nn.Module]:
    """The modules with parameters of their own; those of a parametrisation (weight_norm) are the layer's that has it."""
    layers = (module for module in model.modules() if not isinstance(module, ParametrizationList))
    return [m for m in layers if is_parametrized(m) or any(True for _ in m.parameters(recurse=False))]


class Costate:
    """What a full pass tells about the first layer's output: `output`, with its graph, and p = ∂loss/∂output."""

    def __init__(self) -> None:
        self.output: Tensor | None = None
        self.gradients: list[Tensor] = []  # filled by a hook on the output, which must not hold what holds the output

    @property
    def reached(self) -> Tensor:
        """f0's output, once the forward has run."""
        if self.output is None:
            raise RuntimeError(SILENT)
        return self.output

    @property
    def scaled(self) -> Tensor:
        """p as the backward left it: times what the loop scaled the loss with, not a number where that overflowed."""
        if not self.gradients:
            raise RuntimeError(
                "the loss went backward without reaching the first layer: is part of the model detached?"
            )
        return self.gradients[-1]

    def p(self, scale: Tensor) -> Tensor:
        """p in float32 or better (half precision would lose small entries without the scale), zero where it overflowed."""
        p = self.scaled
        return (p.to(torch.promote_types(p.dtype, torch.float32)) / scale).nan_to_num(0.0, 0.0, 0.0)


class First:
    """The part of a model up to the output of its first layer f0.

    A compiled model is traced with the hooks that it has: there the hook stands from the beginning, and must have been
    set before the first call. Elsewhere it comes and goes.
    """

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self.model, self.layer = model, layer
        self._bare: nn.Module = getattr(model, "_orig_mod", model)  # what is broken off is not worth compiling
        self._action: Action | None = None
        if self._bare is not model:
            # as a decorator this would import the compiler, two seconds' worth, for everybody
            layer.register_forward_hook(torch.compiler.disable(self._hook))  # type: ignore[no-untyped-call]

    def _hook(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        if self._action is None:
            return None
        if not isinstance(output, Tensor):
            raise ValueError(
                f"YOPO's first layer, {type(module).__name__}, answers with a {type(output).__name__}, not a tensor: name a "
                "layer that every input meets and that answers with one by first=..., such as first='stem'"
            )
        return self._action(output)

    @contextmanager
    def _acting(self, action: Action) -> Iterator[None]:
        handle = self.layer.register_forward_hook(self._hook) if self._bare is self.model else None
        self._action = action
        try:
            yield
        finally:
            self._action = None
            if handle is not None:
                handle.remove()

    def __call__(self, x: Tensor) -> Tensor:
        """f0(x), with a graph where gradients are on; what comes behind it does not run."""
        answer: list[Tensor] = []

        def stop(output: Tensor) -> Tensor:
            answer.append(output)
            raise _Reached

        with self._acting(stop):
            try:
                self._bare(x)
            except _Reached:
                return answer[0]
        raise RuntimeError(SILENT)

    @contextmanager
    def watched(self, cut: bool) -> Iterator[Costate]:
        """While a forward of the model runs in here, f0's output is watched: the backward leaves the co-state p there.

        cut: the backward stops at f0's output, so f0's own parameters get no gradient from it.
        """
        costate = Costate()

        def watch(output: Tensor) -> Tensor:
            if costate.output is not None:
                raise RuntimeError(
                    f"the first layer, {type(self.layer).__name__}, ran twice in one forward: name another by first=..."
                )
            behind = output.detach().requires_grad_(True) if cut or not output.requires_grad else output
            behind.register_hook(costate.gradients.append)  # type: ignore[no-untyped-call]
            costate.output = output if cut else behind
            return behind.clone()  # which the network may write over, as ReLU(inplace=True) does

        with self._acting(watch):
            yield costate
        if costate.output is None:
            raise RuntimeError(SILENT)

    @torch.no_grad()
    def affine(self, x: Tensor, bounds: tuple[float, float] | None) -> bool:
        """Whether f0 is affine on the box (without bounds: far round x, (B, *S)): tested on random points, not assumed. With
        the batch's own statistics BatchNorm is not, and neither is dropout: so in the modes in which the model learns."""
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            return self._behaves(x, bounds)

    def _behaves(self, x: Tensor, bounds: tuple[float, float] | None) -> bool:
        generator = torch.Generator().manual_seed(0)
        low, high = bounds if bounds is not None else (-4 * float(x.abs().amax()), 4 * float(x.abs().amax()))
        unit = torch.rand((2, *x[:8].shape), generator=generator, dtype=x.dtype).to(x.device)
        a, b = (low + (high - low) * unit).unbind(0)
        at_a, at_b = self(a), self(b)
        if not bool((self(a) == at_a).all()):
            return False  # it draws random numbers
        reach = (at_a - at_b).abs().amax()
        mixed = (self(share * a + (1 - share) * b) - share * at_a - (1 - share) * at_b for share in (0.5, 0.1))
        return all(bool(error.abs().amax() <= TOLERANCE * reach) for error in mixed)
