"""BatchNorm's running statistics taken anew, from what the network is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, is_available, is_initialized

from sparring.training.batchnorm import BRANCHES, live_norms
from sparring.training.losses import Batch
from sparring.training.modes import as_in_training
from sparring.training.own_norms import Norm, listening, may_have_own_norms
from sparring.training.strategy import Strategy

BATCH = 128


class Sums:
    """Count, mean and sum of squared deviations of a layer's inputs by channel, in float64, over any number of batches."""

    def __init__(self, layer: Norm) -> None:
        assert layer.running_mean is not None
        device = layer.running_mean.device
        self.place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.count = torch.zeros((), dtype=torch.float64, device=self.place)
        self.mean = torch.zeros(layer.num_features, dtype=torch.float64, device=self.place)
        self.squares = torch.zeros_like(self.mean)
        self.batches = 0

    def add(self, x: Tensor) -> None:
        """x (B, C, *): one more batch."""
        x = x.detach() if x.dtype == torch.float64 else x.detach().float()
        others = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = torch.var_mean(x, others, correction=0)
        count = x.numel() // x.shape[1]
        self._join(count, mean.to(self.place).double(), var.to(self.place).double() * count)
        self.batches += 1

    def _join(self, count: Tensor | int, mean: Tensor, squares: Tensor) -> None:
        """Chan, Golub and LeVeque (1979): exact for parts of any size, without the cancellation of E[x²] − E[x]²."""
        total = self.count + count
        away = mean - self.mean
        self.squares += squares + away.square() * self.count * count / total
        self.mean += away * count / total
        self.count = total

    def reduce(self) -> None:
        """The sums of all processes."""
        total = self.count.clone()
        all_reduce(total)
        mean = self.mean * self.count / total.clamp(min=1)
        all_reduce(mean)
        self.squares += self.count * (self.mean - mean).square()
        all_reduce(self.squares)
        batches = torch.tensor(self.batches, device=self.place)
        all_reduce(batches)
        self.count, self.mean, self.batches = total, mean, int(batches)

    @torch.no_grad()
    def put(self, layer: Norm) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.squares / (self.count - 1).clamp(min=1))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(self.batches)


def recalibrate(model: nn.Module, data: Any, strategy: Strategy | None = None, batches: int | None = None) -> None:
    """Sets BatchNorm's running statistics to those of the training mixture, in one pass over the data.

    Each layer gets the mean and the (unbiased) variance of all inputs that it has while the model learns from `data`, its
    momentum aside: every sample counts the same, also those of a short last batch. Wherever weights were not themselves
    trained under their running statistics (moving averages, a pretrained network on other data), those are off.

    model: its BatchNorm layers, and modules that give buffers of their own to `functional.batch_norm`. Those that are frozen
    (in eval mode while the model is in train mode) stay as they are; a model that is in eval mode as a whole is taken as if in
    train mode, and is in eval mode again afterwards.
    data: batches (x, y), or one pair of tensors, of which batches of 128 are made; `Batch`es are taken as they are. Under
    torch.distributed each process gives its own share, and all end with the same statistics: those of all shares together.
    strategy: the mixture is what it learns from, clean samples and examples, crafted as in training; its own state is as
    before afterwards. None: the samples as they are. batches: stop after so many.

    Parameters, `.grad`, modes, momentum, the global random state and the buffers of other modules are as before.
    Raises ValueError where there is nothing to take statistics from.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    >>> x = torch.tensor([[0.0], [1.0], [5.0]])
    >>> recalibrate(model, (x, torch.tensor([0, 1, 1])))
    >>> model[0].running_mean, model[0].running_var
    (tensor([2.]), tensor([7.]))
    """
    inner: nn.Module = getattr(model, "_orig_mod", model)  # hooks are not seen by what torch.compile has made
    with as_in_training(inner), torch.random.fork_rng([]):
        place = next(chain(inner.parameters(), inner.buffers()), torch.empty(0)).device
        given = _batches(data, place)
        looks = may_have_own_norms(inner)  # and shows which are such
        first = list(islice(given, looks))
        chosen = live_norms(inner, first[0].x if first else None)
        if not chosen and (first or not looks):
            return
        split = strategy is not None and strategy.bn == "split"
        if split and strategy is not None:
            x = first[0].x if first else torch.empty(2)
            strategy.statistics.check(inner, x)  # now there are two branches, also in the state kept below
        sums = {name: {layer: Sums(layer) for layer in chosen} for name in (BRANCHES if split else BRANCHES[:1])}
        with _listening(sums, strategy), _own_state(inner, strategy):
            seen = 0
            for batch in islice(chain(first, given), batches):
                _learn(inner, batch, strategy)
                seen += 1
        if not seen and not _distributed():
            raise ValueError("recalibrate was given no batch: expected batches (x, y), or one pair of tensors")
        for name, by_layer in sums.items():
            with strategy.statistics.branch(inner, name) if split and strategy is not None else nullcontext():
                for layer, found in by_layer.items():
                    if _distributed():
                        found.reduce()
                    if found.batches:
                        found.put(layer)


def _learn(model: nn.Module, batch: Batch, strategy: Strategy | None) -> None:
    if strategy is None:
        if len(batch.x) == 1:
            raise ValueError("a batch of one sample has no batch statistics: drop it (drop_last=True)")
        with torch.no_grad():
            model(batch.x)
        return
    for loss in strategy(model, batch):
        loss.value.backward()  # type: ignore[no-untyped-call]  # what comes next may need the gradients


def _distributed() -> bool:
    return is_available() and is_initialized()


def _batches(data: Any, place: torch.device) -> Iterator[Batch]:
    """Numbered batches, where the model is."""
    for batch in _numbered(data):
        yield replace(batch, x=batch.x.to(place), y=batch.y.to(place))


def _numbered(data: Any) -> Iterator[Batch]:
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor) and isinstance(data[1], Tensor):
        numbers = list(torch.split(torch.arange(len(data[0])), BATCH))
        if len(numbers) > 1 and len(numbers[-1]) == 1:  # a rest of one has no statistics of its own
            numbers[-2:] = [torch.cat(numbers[-2:])]
        yield from (Batch(data[0][part], data[1][part], part) for part in numbers)
        return
    if not isinstance(data, Iterable):
        raise TypeError(f"data is {type(data).__name__}: expected batches (x, y), or one pair of tensors")
    first = 0
    for item in data:
        if isinstance(item, Batch):
            yield item
            continue
        if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[0], Tensor):
            raise TypeError(f"the data give {type(item).__name__} a batch: expected (x, y)")
        if item[0].ndim == 0 or not isinstance(item[1], Tensor) or item[1].ndim != 1:
            raise ValueError("the data give single samples: expected batches (x (B, *S), y (B,)); use a DataLoader")
        yield Batch(item[0], item[1], torch.arange(first, first + len(item[0])))
        first += len(item[0])


def _listening(sums: dict[str, dict[Norm, Sums]], strategy: Strategy | None) -> AbstractContextManager[None]:
    """Sums up what goes into the layers whenever they would move their running statistics: in what is learned from."""
    own = {layer: layer.running_mean for layer in sums[BRANCHES[0]]}

    def heard(layer: Norm, x: Tensor, moving: bool) -> None:
        aside = strategy is not None and strategy.is_aside
        if moving and not aside:
            sums[BRANCHES[layer.running_mean is not own[layer]]][layer].add(x)

    return listening(list(own), heard)


@contextmanager
def _own_state(model: nn.Module, strategy: Strategy | None) -> Iterator[None]:
    """The strategy, buffers, gradients and random state are afterwards as before."""
    networks = [model, *(strategy.modules().values() if strategy is not None else ())]
    parameters = [(p, p.grad) for network in networks for p in network.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    devices = sorted({p.device.index for p, _ in parameters if p.device.type == "cuda"})
    try:
        for parameter, _ in parameters:
            parameter.grad = None
        with torch.random.fork_rng(devices), _kept(strategy) if strategy is not None else nullcontext():
            yield
    finally:
        for parameter, grad in parameters:
            parameter.grad = grad
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)


@contextmanager
def _kept(strategy: Strategy) -> Iterator[None]:
    """The strategy without what is round it, which moves weights, not the mixture; afterwards it is as before."""
    parts, strategy.parts = strategy.parts, ()
    state = strategy.state_dict()
    try:
        yield
    finally:
        strategy.load_state_dict(state)
        strategy.parts = parts
