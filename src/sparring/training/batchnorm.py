"""Which statistics BatchNorm layers use while a strategy crafts, and who may move the running ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparring.training.drift import Buffers, Drift
from sparring.training.modes import in_modes
from sparring.training.own_norms import Norm, OwnNorm, normalised_by_batch, own_norms

POLICIES = ("auto", "train", "eval", "batch", "split")
BRANCHES = ("clean", "adversarial")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # that leave the buffers alone where they are told to

EVERY = 8  # forwards between two looks at the drift: on a GPU a look waits for it
AGREE, DISAGREE = 0.25, 0.5  # a layer's shift in standard deviations, and its stretch: half a one is a factor of 1.65


def layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers (1d, 2d, 3d, SyncBatchNorm) that are not frozen: in train mode, with running statistics."""
    known = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.training)
    return [layer for layer in known if layer.track_running_stats and layer.running_mean is not None]


def live_norms(model: nn.Module, x: Any = None) -> list[Norm]:
    """These layers, and the modules that give buffers of their own to batch_norm, that are not frozen. x: see `own_norms`."""
    return [*layers(model), *(norm for norm in own_norms(model, x) if norm.training)]


def names_of(model: nn.Module, norms: Iterable[Norm]) -> list[str]:
    """The submodules' names that these have in the model."""
    names = {module: name for name, module in model.named_modules()}
    return [norm.name if isinstance(norm, OwnNorm) else names[norm] for norm in norms]


@contextmanager
def batch_statistics(chosen: Sequence[Norm]) -> Iterator[None]:
    """These layers normalise with the batch's own statistics and leave the running ones alone."""
    before = [(layer, layer.training, layer.track_running_stats) for layer in chosen if isinstance(layer, _BatchNorm)]
    try:
        for layer, _, _ in before:
            layer.training, layer.track_running_stats = True, False
        with normalised_by_batch([layer for layer in chosen if isinstance(layer, OwnNorm)]):
            yield
    finally:
        for layer, mode, tracks in before:
            layer.training, layer.track_running_stats = mode, tracks


def running_statistics(chosen: Sequence[Norm]) -> AbstractContextManager[None]:
    """These layers normalise with their running statistics; those that people wrote do where their modules' mode says so."""
    return in_modes((layer, False) for layer in chosen if isinstance(layer, _BatchNorm))


@contextmanager
def safe_buffers(modules: list[nn.Module]) -> Iterator[None]:
    """What moves in these modules' buffers, moves in copies. (Copying back would spoil graphs that saved the buffers.)"""
    kept = [
        (module, name, buffer) for module in modules for name, buffer in module._buffers.items() if buffer is not None
    ]
    try:
        for module, name, buffer in kept:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer


class Statistics:
    """The BatchNorm policy of a strategy: which statistics normalise while examples are crafted.

    "auto": the batch's own until the running ones agree with those of the batches that are learned from, then the running
    ones; back again where they part. "batch": always the batch's own. "eval": always the running ones. "train": the batch's
    own, and every other module as it is in training, so that dropout is on. "split": the batch's own, and the branch
    "adversarial" has running statistics of its own (`branch`). Frozen layers (in eval mode) stay as they are under all
    of them, and only `learning` moves running statistics.

    Layers of torch's BatchNorm classes and their subclasses are known, and modules that give buffers of their own to
    `functional.batch_norm`, which a first look at two samples finds.
    """

    def __init__(self, policy: str = "auto") -> None:
        if policy not in POLICIES:
            raise ValueError(f"bn={policy!r}: expected one of {', '.join(POLICIES)}")
        self.policy = policy
        self.agrees = False  # "auto": whether running and batch statistics do
        self.drift: Drift | None = None
        self._layers: list[Norm] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        self._second: dict[str, dict[str, Tensor]] = {}
        self._pending: Mapping[str, Any] | None = None

    @property
    def mode(self) -> str:
        """What crafting uses now: "batch" or "eval" statistics."""
        return "eval" if self.policy == "eval" or (self.policy == "auto" and self.agrees) else "batch"

    @property
    def live(self) -> list[Norm]:
        """The layers that are not frozen, of the model that `check` has seen last."""
        return self._layers

    def running(self) -> list[Tensor]:
        """Running means and variances of the live layers, in both branches."""
        own = [buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var)]
        second = [buffer for held in self._second.values() for buffer in held.values()]
        return [buffer for buffer in (*own, *second) if buffer is not None and buffer.is_floating_point()]

    @property
    def mixes(self) -> bool:
        """Whether, while crafting, a sample's answer depends on the others of its batch."""
        return self.mode == "batch" and bool(self._layers)

    @property
    def apart(self) -> bool:
        """ "auto": whether running and batch statistics clearly disagree now."""
        return self.drift is not None and self.drift.forwards > 0 and self._worst(self.drift) >= DISAGREE

    def check(self, model: nn.Module, x: Tensor) -> None:
        """ValueError for a batch without statistics, or nothing to split. Looks at layers' modes before they are borrowed."""
        self._modes = [(module, module.training) for module in model.modules()]
        self._layers = live_norms(model, x)
        known = any(isinstance(module, _BatchNorm) for module, _ in self._modes) or own_norms(model)  # frozen ones, too
        if self.policy == "split" and not known:
            raise ValueError("bn='split': the model has no BatchNorm layer to split; use sp.Mixed with bn='auto'")
        if self._layers and len(x) == 1:
            raise ValueError(
                "a batch of one sample has no batch statistics: drop it (drop_last=True), or freeze BatchNorm with .eval()"
            )
        if self.policy == "auto" and self._layers and (self.drift is None or not self.drift.fits(self._layers)):
            self.drift, self.agrees = Drift(self._layers), False
            self._restore()
        elif self.policy == "auto" and not self._layers:
            self.drift = None
        if self.policy == "split":
            names = {module: name for name, module in model.named_modules()}
            for layer in self._layers:
                module, keys = (layer.module, layer.buffers) if isinstance(layer, OwnNorm) else (layer, BUFFERS)
                held = self._second.setdefault(names[module], {})
                held.update(
                    {key: b.clone() for key in keys if key not in held and (b := module._buffers[key]) is not None}
                )

    @contextmanager
    def crafting(self, model: nn.Module) -> Iterator[None]:
        """While examples are crafted: the statistics of the policy, and no buffer moves. `check` has seen the model."""
        others = [module for module, _ in self._modes if module._buffers and type(module).forward not in FORWARDS]
        chosen = batch_statistics if self.mode == "batch" else running_statistics
        with (
            safe_buffers(others),
            in_modes(self._modes) if self.policy == "train" else nullcontext(),
            chosen(self._layers),
        ):
            yield

    @contextmanager
    def learning(self, model: nn.Module, branch: str) -> Iterator[None]:
        """While a forward runs that is learned from: the one kind that moves the running statistics, of its branch."""
        if self.policy == "split":
            with self.branch(model, branch):
                yield
            return
        if self.drift is None:
            yield
            return
        before = Buffers.of(self._layers)
        yield
        self.drift.add(before)
        if self.drift.forwards % EVERY == 0:
            self._look(self.drift)

    @contextmanager
    def branch(self, model: nn.Module, name: str) -> Iterator[None]:
        """The model with the running statistics of this branch, "clean" (its own) or "adversarial": to learn, to evaluate,
        or to save, since its `state_dict` holds them too. Only with "split"; before the first batch they are the same."""
        if name not in BRANCHES:
            raise ValueError(f"branch={name!r}: expected 'clean' or 'adversarial'")
        if self.policy != "split":
            raise ValueError(f"bn={self.policy!r} has one set of statistics: a strategy with bn='split' has branches")
        swapped = (
            [] if name == "clean" else [(model.get_submodule(layer), held) for layer, held in self._second.items()]
        )
        before = [(layer, {key: layer._buffers[key] for key in held}) for layer, held in swapped]
        try:
            for layer, held in swapped:
                device = next(buffer.device for buffer in layer.buffers(recurse=False))
                held.update(
                    {key: buffer.to(device) for key, buffer in held.items()}
                )  # a state may have been loaded elsewhere
                layer._buffers.update(held)
            yield
        finally:
            for layer, own in before:
                layer._buffers.update(own)

    def _look(self, drift: Drift) -> None:
        """Enter and leave agreement at different limits, so that noise does not toggle it."""
        self.agrees = self._worst(drift) < (DISAGREE if self.agrees else AGREE)

    def _worst(self, drift: Drift) -> float:
        return float(torch.stack(drift.by_layer()).max())

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.policy == "auto" and self.drift is not None:
            state = {"agrees": self.agrees, "drift": self.drift.state_dict()}
        if self.policy == "split":
            state = {"second": {name: {k: b.clone() for k, b in held.items()} for name, held in self._second.items()}}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._second = {name: {k: b.clone() for k, b in held.items()} for name, held in state.get("second", {}).items()}
        self._pending = state if "drift" in state else None
        self._restore()

    def _restore(self) -> None:
        """The drift that was loaded belongs to layers that the first batch shows."""
        if self._pending is None or self.drift is None:
            return
        if len(self._pending["drift"]["shift"]) == len(self.drift.shift):
            self.drift.load_state_dict(self._pending["drift"])
            self.agrees = self._pending["agrees"]
        self._pending = None
