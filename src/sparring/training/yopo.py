"""You only propagate once: examples from full passes that train the network anyway, refined in its first layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparring.attacks.inputs import check_inputs
from sparring.borrow import borrow
from sparring.checks import check_whole
from sparring.noise import Noise
from sparring.objective import check_label_range
from sparring.threat import Threat, parse_eps
from sparring.training.first import Costate, First, first_layer
from sparring.training.kept import Kept
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.modes import in_modes
from sparring.training.strategy import Strategy, check_threat


@dataclass(eq=False)
class YOPO(Strategy):
    """YOPO-m-n. Zhang et al. (2019).

    A batch starts at random points of the threat's set. Each of m full passes leaves, at the output of the first layer f0,
    the co-state p = ∂L/∂f0; with p held fixed, n steps along ∂⟨p, f0(x + η)⟩/∂η refine the perturbation η, and only f0
    runs. Parameter gradients of the m passes add up, and the optimiser steps once: with SGD take lr/m of what suits one pass
    (`fit` does, where it is given no rate).

    step_size: of an inner step, in input units; default eps / 4 (the paper's CIFAR-10 setting, 2/255 for eps 8/255).
    form: "hamiltonian": f0 learns from ⟨p, f0⟩ at the refined η, the other layers from the full passes; m full passes.
    "gradient": all layers learn at refined points; m + 1 full passes, the first of which only crafts.
    first: the first layer, a submodule's name or the module; default the first with parameters that the input meets.
    collapse: where f0 is affine in its input (a convolution, also behind a normalisation), ⟨p, f0(x + η)⟩ is linear in η,
    and the n inner steps are done with one gradient: under linf exactly one step of n · step_size. Tested on random points
    when first used; False runs the literal loop in any case.
    keep: each sample begins where its own perturbation was an epoch ago, not at a random point, as in Zheng et al. (2020).
    Batches must carry `indices`, and show each sample as it was (no random crops and mirrors).

    Passes a batch: "hamiltonian" m full, and m(n + 1) of the first layer; "gradient" m + 1 full, m · n of the first layer.
    Collapsed, the inner steps cost "hamiltonian" one backward of the first layer, and "gradient" nothing at all.
    """

    threat: Threat = field(kw_only=False)
    m: int = field(default=5, kw_only=False)
    n: int = field(default=3, kw_only=False)
    step_size: float | str | None = None
    form: str = "hamiltonian"
    first: str | nn.Module | None = None
    collapse: bool = True
    keep: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_whole("YOPO", m=self.m, n=self.n)
        if self.form not in ("hamiltonian", "gradient"):
            raise ValueError(f"YOPO(form={self.form!r}): expected 'hamiltonian' or 'gradient'")
        if self.step_size is not None:
            try:
                positive = parse_eps(self.step_size) > 0
            except ValueError:
                positive = False
            if not positive:
                raise ValueError(
                    f"YOPO(step_size={self.step_size!r}): expected a number above 0, such as 0.02 or 2/255"
                )
        self.summed = self.m
        self._first: First | None = None
        self._affine = False
        self._modes: list[tuple[nn.Module, bool]] = []  # in which that was found
        self.kept = Kept()

    @property
    def needs_indices(self) -> bool:
        """Whether something is kept for every sample."""
        return self.keep

    @property
    def step(self) -> float | Tensor:
        """Length of an inner step, in input units."""
        return self.threat.eps / 4 if self.step_size is None else parse_eps(self.step_size)

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        if self.form == "hamiltonian" and isinstance(model, DistributedDataParallel):
            raise ValueError(
                "YOPO(form='hamiltonian') goes backward through the first layer alone, which DistributedDataParallel does not "
                "allow: use form='gradient', or sp.fit with the bare model"
            )
        first = self._find(model, batch)
        x = self._start(batch)
        if self.form == "gradient":
            x = self._refined(model, batch, first, x, *self._crafted(model, batch, first, x))
        for j in range(self.m):
            last = j + 1 == self.m
            watched: list[Costate] = []
            over = last and self.form == "gradient"  # nothing is refined after this pass
            point = x.requires_grad_(self._affine and not over)

            def full(seen: Seen, point: Tensor = point, watched: list[Costate] = watched) -> Tensor:
                with first.watched(cut=self.form == "hamiltonian") as costate:
                    logits = self.forward(model, point, batch.y)
                watched.append(costate)
                seen.add("adversarial", logits, batch.y)
                return F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)

            loss = Loss(full, update=over)
            yield loss
            if over:
                self._keep(batch, point)
                return
            scale = loss.scale  # raises where the loop forgot the backward
            given = point.grad if self.form == "gradient" else None
            p = watched[0].p(scale) if given is None else None
            if self._affine and given is None:
                (given,) = torch.autograd.grad(watched[0].reached, point, watched[0].scaled)  # its direction counts
                self.passes.first_backwards += len(x)
            given = None if given is None else given.nan_to_num(0.0, 0.0, 0.0)  # a scaler's overflow
            x = self._refined(model, batch, first, point.detach(), p, given)
            if self.form == "hamiltonian":

                def hamiltonian(seen: Seen, x: Tensor = x, p: Tensor | None = p) -> Tensor:
                    assert p is not None
                    with self.statistics.crafting(model):
                        return (p * first(x)).sum().requires_grad_()  # also where f0 is frozen: a backward is called

                self._count(len(x))
                yield Loss(hamiltonian, update=last)
        self._keep(batch, x)

    def _start(self, batch: Batch) -> Tensor:
        """(B, *S) points of the threat's set, where this batch begins."""
        assert batch.indices is not None
        check_inputs(batch.x, self.threat)
        noise = Noise(self.draw_seed(batch), batch.indices)
        if not self.keep:
            return self.threat.random(batch.x, noise, "start")
        start = self.kept.start(batch.x, batch.indices, lambda: self.threat.random(batch.x, noise, "start"))
        return self.threat.for_inputs(batch.x).project(batch.x, start)  # what is kept is rounded

    def _keep(self, batch: Batch, x: Tensor) -> None:
        if self.keep:
            assert batch.indices is not None
            self.kept.put(batch.indices, x.detach() - batch.x, self.crew)

    def _find(self, model: nn.Module, batch: Batch) -> First:
        """The first layer of this model; what was found for a model holds for as long as it is the same, in the same modes."""
        modes = [(module, module.training) for module in model.modules()]
        if self._first is None or self._first.model is not model:
            with borrow(model):
                layer = self.first
                if isinstance(layer, str):
                    modules = dict(getattr(model, "_orig_mod", model).named_modules())
                    if layer not in modules:
                        raise ValueError(
                            f"YOPO(first={layer!r}): the model has no such module; its first ones are {list(modules)[1:6]}"
                        )
                    layer = modules[layer]
                layer = layer or first_layer(model, batch.x)
                self._first = First(model, layer)
            self._modes = []
        if self._modes != modes:
            with borrow(model), in_modes(modes):
                self._affine = self.collapse and self._first.affine(batch.x, self.threat.bounds)
            self._modes = modes
        return self._first

    def _crafted(self, model: nn.Module, batch: Batch, first: First, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """p at x, and where f0 is affine the gradient there, from a pass that nobody learns from."""
        with self.crafting(model, batch) as borrowed, torch.enable_grad(), first.watched(cut=False) as costate:
            point = x.detach().requires_grad_(True)
            logits = borrowed.call(point, {})
            check_label_range(batch.y, logits.shape[1])
            loss = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
            if self._affine:
                p, gradient = torch.autograd.grad(loss, (costate.reached, point))
            else:
                (p,), gradient = torch.autograd.grad(loss, costate.reached), None
        self.passes.backwards += len(x)
        return p, gradient

    def _refined(
        self, model: nn.Module, batch: Batch, first: First, x: Tensor, p: Tensor | None, gradient: Tensor | None
    ) -> Tensor:
        """x (B, *S) after n steps along ∂⟨p, f0⟩/∂x; a `gradient` that is known holds at every step, without p."""
        threat = self.threat.for_inputs(batch.x)
        if gradient is not None and threat.norm == "linf":
            return threat.project(batch.x, x + self.n * self.step * gradient.sign())
        if gradient is not None:
            for _ in range(self.n):
                x = threat.project(batch.x, x + self.step * threat.steepest(gradient, x))
            return x
        assert p is not None
        with borrow(model), self.statistics.crafting(model), torch.enable_grad():
            for _ in range(self.n):
                point = x.detach().requires_grad_(True)
                (slope,) = torch.autograd.grad((p * first(point)).sum(), point)
                self._count(len(x))
                x = threat.project(batch.x, x + self.step * threat.steepest(slope, x))
        return x

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept.load_state_dict(state["kept"])

    def _count(self, samples: int) -> None:
        self.passes.first_forwards += samples
        self.passes.first_backwards += samples
