"""The virtual adversarial direction: where a network's answer changes most, found without a label by power iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparring.borrow import Borrowed, borrow, on_cudnn
from sparring.checks import check_whole
from sparring.layout import is_compiled
from sparring.noise import Noise
from sparring.objective import kl
from sparring.threat import per_sample
from sparring.training.batchnorm import Statistics
from sparring.training.modes import twice_differentiable


def virtual_perturbation(
    model: nn.Module,
    x: Tensor,
    eps: float,
    xi: float | None = None,
    iterations: int = 1,
    *,
    exact: bool = False,
    indices: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """r (B, *S) of L2 length eps for each sample of x (B, *S), along which KL(p(x) ‖ p(x + r)) grows fastest. Miyato et al.
    (2018), equations 8 to 11.

    At r = 0 the divergence and its slope are zero, so the direction is the dominant eigenvector of its Hessian H. Power
    iteration, d ← H·d / ‖H·d‖ from a random d, finds it without forming H: ∇KL(p(x) ‖ p(x + r)) at r = ξ·d is ξ·H·d + O(ξ²).

    model: maps x to logits (B, C). It runs in the modes that it is in: in train mode with dropout, of which all forwards
    have the same mask, and with BatchNorm's batch statistics, whose running ones stay. Parameters collect no gradients.
    eps: in input units, above 0. xi: ξ, the length of the finite difference, in input units. Left out, it is √u · ‖x‖ for
    each sample, u the coarsest rounding unit of what the network's layers give and of x (√u · eps where ‖x‖ is below eps):
    there the errors of rounding, u / ξ, and of the finite difference, ξ, are about equal in the first iteration, whose
    random d H shortens most. The paper's 1e-6 is rounded away already in float32.
    iterations: of power iteration; one forward and one backward each, after one forward at x. exact: H·d by a second
    backward instead of the finite difference, which `xi` then is not for. indices (B,), seed: what the random d are keyed by.
    A sample whose H·d is zero keeps its random direction. float32 or better, as x where that is better.

    Raises TypeError or ValueError, in one line, for what can't be.

    >>> import sparring as sp
    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))  # only x's first number counts
    >>> sp.virtual_perturbation(model, torch.ones(1, 2), eps=0.5).abs()
    tensor([[0.5000, 0.0000]])
    """
    check(eps, xi, iterations)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected an nn.Module, whose modes and parameters are known")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x of {getattr(x, 'dtype', type(x).__name__)}: expected a tensor of floats (B, *S)")
    numbers = torch.arange(len(x)) if indices is None else indices.detach().cpu().long()
    x = x.detach()
    with as_it_learns(model, x) as borrowed:
        finder, replay = Finder(eps, xi, iterations, exact), Replay(x.device)
        _, clean = Clean.of(lambda: borrowed.look(x), model, x)
        return finder(borrowed, x, Noise(seed, numbers), replay, clean)


def check(eps: float, xi: float | None, iterations: int, name: str = "virtual_perturbation") -> None:
    """One line for settings that there can't be."""
    for what, value in (("eps", eps), ("xi", xi)):
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if (what == "eps" or value is not None) and not (known and 0 < value < math.inf):  # type: ignore[operator]
            raise ValueError(f"{name}({what}={value!r}): expected a finite number above 0, an L2 length in input units")
    check_whole(name, iterations=iterations)


class Replay:
    """The random numbers of the next forward, for others to draw again: the same dropout mask in all of them."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device.index or 0] if device.type == "cuda" else []
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(index) for index in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            for index, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, index)
            yield


@contextmanager
def rounding(model: nn.Module, unit: float = 0.0) -> Iterator[list[float]]:
    """The coarsest rounding unit of what the layers give in forwards in here, at least `unit`, as the list's one number: a
    network that computes in bf16 may answer in float32, as Hugging Face's Trainer lets it. A compiled one is not looked into."""
    found = [unit]

    def see(module: nn.Module, inputs: object, output: object) -> None:
        for part in output if isinstance(output, tuple) else (output,):
            if isinstance(part, Tensor) and part.is_floating_point():
                found[0] = max(found[0], torch.finfo(part.dtype).eps)

    layers = list(model.modules())
    handles = [] if any(map(is_compiled, layers)) else [layer.register_forward_hook(see) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def batch_wise(model: nn.Module, x: Tensor) -> Iterator[None]:
    """The model in its own modes, with the statistics of its batches, which move no running ones, and recurrent layers on
    CUDA, as they are borrowed, without the dropout between their layers: cuDNN does not draw the same mask again."""
    statistics = Statistics("train")
    statistics.check(model, x)
    recurrent = [(layer, layer.dropout) for layer in on_cudnn(model.modules())]
    with statistics.crafting(model):
        try:
            for layer, _ in recurrent:
                layer.dropout = 0.0
            yield
        finally:
            for layer, dropout in recurrent:
                layer.dropout = dropout


@contextmanager
def as_it_learns(model: nn.Module, x: Tensor, autocast: torch.dtype | None = None, seed: int = 0) -> Iterator[Borrowed]:
    """`batch_wise`, and parameters frozen."""
    statistics = Statistics("train")
    statistics.check(model, x)  # sees the model's own modes
    with borrow(model, autocast, seed) as borrowed, statistics.crafting(model):
        yield borrowed


class Clean(NamedTuple):
    """Logits (B, C) at x, without a graph, and the rounding unit of the forward that gave them."""

    logits: Tensor
    rounding: float

    @staticmethod
    def of(forward: Callable[[], Tensor], model: nn.Module, x: Tensor) -> tuple[Tensor, Clean]:
        """What a forward at x gives, and what the search needs of it."""
        with rounding(model, torch.finfo(x.dtype).eps) as found:
            logits = forward()
        return logits, Clean(logits.detach(), max(found[0], torch.finfo(logits.dtype).eps))


Start = Callable[[Noise, Tensor], Tensor]  # noise and x (B, *S) to the directions (B, *S) that the search begins with
Size = Callable[[Tensor], Tensor]  # x (B, *S) to the L2 lengths (B,) that ξ is measured by


class Finder:
    """Power iteration on the Hessian of KL(p(x) ‖ p(x + r)) at r = 0."""

    def __init__(
        self,
        eps: float,
        xi: float | None,
        iterations: int,
        exact: bool = False,
        start: Start | None = None,
        size: Size | None = None,
    ) -> None:
        self.eps, self.xi, self.iterations, self.exact = eps, xi, iterations, exact
        self.start = start or (lambda noise, like: noise.normal(like.shape[1:], "virtual", like=like))
        self.size = size or (lambda x: x.to(at_least_single(x)).flatten(1).norm(dim=1))

    def __call__(self, model: Borrowed, x: Tensor, noise: Noise, replay: Replay, clean: Clean) -> Tensor:
        """r (B, *S). clean: of the forward at x whose random numbers `replay` has."""
        d = unit(self.start(noise, x.to(at_least_single(x))))
        length = self._length(x, clean)
        with torch.enable_grad():
            product = (
                self._products(model, x, replay)
                if self.exact
                else self._difference(model, x, clean.logits, length, replay)
            )
            for _ in range(self.iterations):
                d = unit(product(d), d)
        return self.eps * d

    def _length(self, x: Tensor, clean: Clean) -> Tensor:
        """ξ of each sample (B, 1, …)."""
        if self.xi is not None:
            return per_sample(x.new_full((len(x),), self.xi, dtype=at_least_single(x)), x)
        return per_sample(math.sqrt(clean.rounding) * self.size(x).clamp_min(self.eps), x)

    def _difference(
        self, model: Borrowed, x: Tensor, clean: Tensor, length: Tensor, replay: Replay
    ) -> Callable[[Tensor], Tensor]:
        """d to ∇KL(p(x) ‖ p(x + r)) / ξ at r = ξ·d."""

        def product(d: Tensor) -> Tensor:
            r = (length * d).requires_grad_(True)
            with replay.again():
                logits = model.call((x + r).to(x.dtype), {})
            far = kl(exact(logits), logits, reference=exact(clean))
            scaled = far / length.flatten()  # so that the slope is of the size of H, whatever ξ: fp16 has few exponents
            slope: Tensor = torch.autograd.grad(scaled.sum(), r)[0]
            model.backwards += len(x)
            return slope

        return product

    def _products(self, model: Borrowed, x: Tensor, replay: Replay) -> Callable[[Tensor], Tensor]:
        """d to H·d, from one graph."""
        r = torch.zeros_like(x, dtype=at_least_single(x)).requires_grad_(True)
        with replay.again(), twice_differentiable():
            logits = model.call((x + r).to(x.dtype), {})
        (slope,) = torch.autograd.grad(
            kl(exact(logits), logits, reference=exact(logits.detach())).sum(), r, create_graph=True
        )
        model.backwards += len(x)

        def product(d: Tensor) -> Tensor:
            found: Tensor = torch.autograd.grad((slope * d).sum(), r, retain_graph=True)[0]
            model.backwards += len(x)
            return found

        return product


def exact(logits: Tensor) -> Tensor:
    """In float64, where there is one: the probabilities of a network that is sure differ in digits that float32 has not."""
    return logits if logits.device.type == "mps" else logits.double()


def at_least_single(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def unit(v: Tensor, instead: Tensor | None = None) -> Tensor:
    """v (B, *S) divided by each sample's L2 length; where that is zero or not finite, the row of `instead`."""
    rows = v.flatten(1)
    largest = rows.abs().amax(1, keepdim=True)  # first, so that squares neither overflow nor vanish
    scaled = rows / torch.where(largest > 0, largest, 1)
    found: Tensor = (scaled / scaled.norm(dim=1, keepdim=True).clamp_min(0.5)).view_as(v)
    if instead is None:
        return found
    usable = (largest > 0) & largest.isfinite()
    return torch.where(per_sample(usable.flatten(), v), found, instead)
