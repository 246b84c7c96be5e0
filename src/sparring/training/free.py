"""Adversarial training for free: the gradient at the input is what the update's own backward leaves there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks.inputs import check_inputs
from sparring.checks import check_positive, check_whole
from sparring.noise import Noise
from sparring.threat import Threat
from sparring.training.kept import Kept
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy, check_threat


@dataclass(eq=False)
class Free(Strategy):
    """Free-m: each batch is shown m times, with an update each, and each backward also moves the perturbation. Shafahi et al.
    (2019).

    The perturbation lives on from batch to batch, by its place in the batch, and begins at zero. m passes and m updates a
    batch: train for 1/m of the epochs. step_size: in input units, default eps, as in the paper.
    keep: every sample begins where its own perturbation was an epoch ago (at a random point the first time), as in Zheng et
    al. (2020), instead of where other samples of the batch before were. Batches need `indices`, and samples to come as they are.
    """

    threat: Threat
    m: int = 8
    step_size: float | None = None
    keep: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threat(self.name, self.threat, "linf", "l2", "l1")
        check_whole(self.name, m=self.m)
        check_positive(self.name, step_size=self.step_size)
        self._kept: Tensor | None = None
        self._own = Kept()

    @property
    def needs_indices(self) -> bool:
        """Whether something is kept for every sample."""
        return self.keep

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        x, y = batch.x, batch.y
        check_inputs(x, self.threat)
        threat, size = self.threat.for_inputs(x), float(self.threat.eps) if self.step_size is None else self.step_size
        kept = self._mine(batch) if self.keep else self._perturbation(x)
        for _ in range(self.m):
            point = threat.project(x, x + kept[: len(x)]).requires_grad_(True)

            def replay(seen: Seen, point: Tensor = point) -> Tensor:
                logits = self.forward(model, point, y)
                seen.add("adversarial", logits, y)
                return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

            loss = Loss(replay)
            yield loss
            if point.grad is None:
                raise RuntimeError(
                    "no gradient reached the input: a loop must call loss.value.backward() on each loss, and the model must "
                    "not detach its input"
                )
            gradient = point.grad.nan_to_num(0.0, 0.0, 0.0)  # its scale is no matter: steps are unit
            with torch.no_grad():
                moved = threat.project(x, point + size * threat.steepest(gradient, point, length=size))
                kept[: len(x)] = moved - x
        if self.keep:
            assert batch.indices is not None
            self._own.put(batch.indices, kept, self.crew)

    def _mine(self, batch: Batch) -> Tensor:
        """(B, *S) where these samples' perturbations were, or random points of the set."""
        assert batch.indices is not None
        noise = Noise(self.draw_seed(batch), batch.indices)
        return self._own.start(batch.x, batch.indices, lambda: self.threat.random(batch.x, noise, "start")) - batch.x

    def _perturbation(self, x: Tensor) -> Tensor:
        """The kept perturbation (at least B, *S), to be changed in place; zeros where the batch is larger than any before, or
        its samples of another shape."""
        kept = self._kept
        if kept is None or kept.shape[1:] != x.shape[1:]:
            kept = torch.zeros_like(x)
        elif len(kept) < len(x):
            kept = torch.cat([kept, kept.new_zeros((len(x) - len(kept), *x.shape[1:]))])
        self._kept = kept.to(x.device, x.dtype)
        return self._kept

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self._kept is None else {"perturbation": self._kept.clone()}
        return {**super().state_dict(), **kept, "kept": self._own.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        kept = state.get("perturbation")
        self._kept = None if kept is None else kept.clone()
        self._own.load_state_dict(state["kept"])
