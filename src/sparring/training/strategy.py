"""What every training strategy shares: it turns a batch into losses, and the loop that owns the optimiser takes the steps.

    for loss in strategy(model, batch):
        loss.value.backward()
        if loss.update:
            optimizer.step()
            optimizer.zero_grad()

The generator resumes after each backward (and step), so what the backward left behind is there for it to use.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sparring.attacks.base import Attack
from sparring.attacks.inputs import check_labels
from sparring.borrow import Borrowed, borrow, check_logits
from sparring.layout import fitting
from sparring.objective import check_label_range
from sparring.stem import quick_stems
from sparring.text.encoded import is_tokens
from sparring.threat import Threat
from sparring.training.batchnorm import Statistics, safe_buffers
from sparring.training.crafting import craft
from sparring.training.losses import Batch, Loss, Passes
from sparring.training.values import plain

if TYPE_CHECKING:
    from sparring.training.parts import Part


def wide(logits: Tensor) -> Tensor:
    """In float32 or better: a loss of half precision has three digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_threat(name: str, threat: Threat, *norms: str) -> None:
    """One line for what is no set to train against. norms: those that the strategy has a form for; none: any."""
    if not isinstance(threat, Threat):
        raise TypeError(f"{name}(threat={threat!r}): expected a threat model such as sp.Linf(8/255)")
    if isinstance(threat.eps, Tensor):
        raise ValueError(f"{name}(threat={threat!r}): expected one eps; one per sample belongs to one batch only")
    if not 0 < threat.eps < math.inf:
        raise ValueError(f"{name}(threat={threat!r}): expected a finite eps above 0; sp.Standard() trains without one")
    if norms and threat.norm not in norms:
        raise ValueError(f"{name} has no form for {threat.norm}: expected {', '.join(norms)}")


Self = TypeVar("Self", bound="Strategy")


@dataclass(eq=False, kw_only=True)
class Strategy:
    """Base of all strategies. A subclass writes `losses`.

    bn: which statistics BatchNorm layers use while examples are crafted; see `Statistics`.
    label_smoothing: of the cross-entropy that is learned from (never of the one that is attacked).
    seed: of all random draws, which are keyed by (seed, step, sample).
    parts: what `with_` put round it.
    """

    takes_tokens: ClassVar[bool] = False  # whether it learns from texts, too
    bn: str = "auto"
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"{self.name}(label_smoothing={self.label_smoothing!r}): expected a number from 0 to below 1"
            )
        self.statistics = Statistics(self.bn)
        self.passes = Passes()
        self.autocast: torch.dtype | None = None  # set by a loop that trains in mixed precision
        self.crew: Any = None  # a `Crew`, set by a loop of several processes
        self.parts: tuple[Part, ...] = ()
        self.batches = 0
        self.summed = 1  # passes whose gradients one step of the optimiser adds up
        self.is_aside = False
        self._classes: int | None = None  # of the model, by its id
        self._known = 0

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def splits(self) -> bool:
        """Whether its clean and its adversarial samples can have BatchNorm statistics of their own."""
        return False

    @property
    def needs_indices(self) -> bool:
        """Whether a batch must say which samples of the data set it holds."""
        return False

    @property
    def takes_unlabelled(self) -> bool:
        """Whether it, or a part round it, learns from samples without labels, too: `extras["unlabelled"]` of a batch."""
        return any(part.takes_unlabelled for part in self.parts)

    def settings(self) -> dict[str, Any]:
        """What this strategy, and what is round it, was set to, in values that JSON can hold."""
        found = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        return {**found, "parts": [{"name": type(part).__name__, **part.settings()} for part in self.parts]}

    def modules(self) -> dict[str, nn.Module]:
        """The other networks that learn, by the name that their losses have as `owner`: each needs an optimiser."""
        return {}

    def __call__(self, model: nn.Module, batch: Batch | tuple[Tensor, Tensor]) -> Iterator[Loss]:
        """The losses of this batch, in the order in which they are to go backward.

        Raises TypeError or ValueError, in one line, for a batch that cannot be learned from.
        """
        if self._known != id(model):
            self._known, self._classes = id(model), None
        batch = self._checked(batch)
        self.statistics.check(model, batch.x)
        if self.bn == "split" and not self.splits:
            raise ValueError(
                f"{self.name}(bn='split'): it does not learn from clean and adversarial samples side by side; use sp.AdvProp, or "
                "sp.Mixed with alpha between 0 and 1"
            )
        self.batches = (self.batches if batch.step is None else batch.step) + 1
        losses = self.losses(model, batch) if len(batch.y) else self.without_labels(model, batch)
        for part in self.parts:
            losses = part.around(self, model, batch, losses)
        yield from losses

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        raise NotImplementedError

    def without_labels(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        """The losses of a batch of nothing but unlabelled samples: none of its own, so that what is round it has its turn."""
        yield Loss(lambda seen: torch.zeros((), device=batch.x.device, requires_grad=True))  # a backward may be called

    def with_(self: Self, *parts: Part) -> Self:
        """A new strategy of these settings with `AWP`, `EMA`, … round it, the first innermost, outside those that it has.

        ValueError where one of them can't be put round this strategy, or is of a kind that it has.
        """
        kinds = [type(part) for part in (*self.parts, *parts)]
        for part in parts:
            part.check(self)
            if kinds.count(type(part)) > 1:
                raise ValueError(f"{self.name} has {type(part).__name__} round it already: choose one of them")
        made = replace(self)
        made.parts = (*self.parts, *parts)
        return made

    def state_dict(self) -> dict[str, Any]:
        """What lasts between batches: tensors, numbers, and dicts and lists of these."""
        return {
            "batches": self.batches,
            "statistics": self.statistics.state_dict(),
            "passes": vars(self.passes).copy(),
            "parts": [part.state_dict() for part in self.parts],
            "modules": {name: copy.deepcopy(module.state_dict()) for name, module in self.modules().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the strategy whose `state_dict` this is stopped. ValueError where that one was another."""
        if len(state["parts"]) != len(self.parts) or set(state["modules"]) != set(self.modules()):
            raise ValueError(
                f"the state is of a strategy with {len(state['parts'])} parts round it and the networks "
                f"{sorted(state['modules'])}; this one has {len(self.parts)} and {sorted(self.modules())}"
            )
        self.batches = state["batches"]
        self.statistics.load_state_dict(state["statistics"])
        self.passes = Passes(**state["passes"])
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)
        for name, module in self.modules().items():
            module.load_state_dict(state["modules"][name])

    def _checked(self, batch: Batch | tuple[Tensor, Tensor]) -> Batch:
        if not isinstance(batch, (Batch, tuple, list)):
            raise TypeError(f"a batch of type {type(batch).__name__}: expected sp.Batch(x, y) or (x, y)")
        batch = batch if isinstance(batch, Batch) else Batch(*batch)
        x = batch.x
        tokens = self.takes_tokens and is_tokens(x)
        if not tokens and not (isinstance(x, Tensor) and x.is_floating_point()):
            given = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"batch.x of {given}: expected a tensor of floats (B, *S)")
        y = check_labels(batch.y, x)
        if not len(y) and not (self.takes_unlabelled and "unlabelled" in batch.extras):
            raise ValueError(f"a batch without a sample: {self.name} has nothing to learn from")
        if len(y) and self._classes is not None:
            check_label_range(y, self._classes)
        if batch.indices is None and self.needs_indices:
            wanted = "and the batch carries no indices: pass sp.Batch(x, y, indices=...)"
            raise ValueError(f"{self.name} keeps something for every sample, {wanted}")
        indices = torch.arange(len(x)) if batch.indices is None else batch.indices.detach().cpu().long()
        if indices.shape != (len(x),):
            raise ValueError(f"indices of shape {tuple(indices.shape)} for {len(x)} samples: expected ({len(x)},)")
        step = self.batches if batch.step is None else batch.step
        return Batch(x if tokens else x.detach(), y, indices, step, batch.extras)

    def draw_seed(self, batch: Batch) -> int:
        """What random draws of this batch are keyed by, beside the samples' indices."""
        assert batch.step is not None
        return self.seed * 1_000_003 + batch.step

    @contextmanager
    def crafting(self, model: nn.Module, batch: Batch) -> Iterator[Borrowed]:
        """The model as examples are crafted on it: parameters frozen, dropout off, statistics as `bn` says, buffers safe."""
        with borrow(model, self.autocast, self.draw_seed(batch)) as borrowed, self.statistics.crafting(model):
            yield borrowed
        self.passes.forwards += borrowed.forwards
        self.passes.backwards += borrowed.backwards

    @contextmanager
    def aside(self, model: nn.Module) -> Iterator[None]:
        """Forwards in here, in the model's own modes, are learned from by nobody: buffers and the policy's view of them stay."""
        self.is_aside = True
        try:
            with safe_buffers(list(model.modules())):
                yield
        finally:
            self.is_aside = False

    def crafted(self, model: nn.Module, batch: Batch, attack: Attack, start: Tensor | None = None) -> Tensor:
        """What the attack makes of these samples, (B, *S); start: (B, *S) where it begins, if not where it would itself."""
        seed = self.draw_seed(batch)
        with self.crafting(model, batch) as borrowed:
            together = self.statistics.mixes  # samples that stop early leave no others behind whose statistics differ
            return craft(
                attack, borrowed, batch.x, batch.y, indices=batch.indices, seed=seed, start=start, together=together
            )

    def precision(self, x: Tensor) -> AbstractContextManager[Any]:
        """Autocast, where a loop trains in mixed precision."""
        return nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast)

    def forward(self, model: nn.Module, x: Tensor, y: Tensor, branch: str = "adversarial") -> Tensor:
        """Logits (B, C), in float32 or better, of the forward that is learned from: in the model's own modes, and the only one
        that moves its buffers."""
        moving = nullcontext() if self.is_aside else self.statistics.learning(model, branch)
        stems = quick_stems(model.modules() if getattr(x, "requires_grad", False) else ())  # tokens have no gradient
        with self.precision(x), moving, stems, fitting(x, known=self._classes is not None):
            logits: Tensor = model(x)
        if self._classes is None:
            self._classes = check_logits(logits, len(x))
            check_label_range(y, self._classes)
        self.passes.forwards += len(x)
        self.passes.backwards += len(x)
        return wide(logits)
