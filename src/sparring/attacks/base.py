"""What every attack shares: being called, and being run by `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.ascent import Pool, Probe, Trace
from sparring.attacks.adversarial import Adversarial
from sparring.attacks.inputs import Targets, check_start, prepare
from sparring.borrow import Borrowed, borrow
from sparring.checks import check_whole
from sparring.noise import Noise
from sparring.objective import Objective, kl, margin, resolve
from sparring.rows import Loop, Rows
from sparring.threat import Threat
from sparring.wrappers import Model


@dataclass(frozen=True)
class Attack:
    """What can be called, and run by `evaluate`: it brings a loop for its samples.

    threat: what the attacker may do.
    targets: a named choice of target class for every call ("least-likely", "second", "random"), unless the call gives
    its own. stop_when_fooled: let a sample go at its first success (what `evaluate` does); otherwise every step is taken.
    autocast: run the model under torch.autocast with this dtype.
    trace: record objective, prediction and confidence per step.
    """

    threat: Threat
    targets: str | None = field(default=None, kw_only=True)
    stop_when_fooled: bool = field(default=False, kw_only=True)
    autocast: torch.dtype | None = field(default=None, kw_only=True)
    trace: bool = field(default=False, kw_only=True)

    takes_start: ClassVar[bool] = False  # whether it can begin at points that are given
    access: ClassVar[str] = "gradients"  # what it asks of the model: "gradients", "scores" or "decisions"
    steps = 1  # a subclass has these as fields where a user may choose them
    restarts = 1

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Threat):
            raise TypeError(f"{self.name}(threat={self.threat!r}): expected a threat model such as sp.Linf(8/255)")
        check_whole(self.name, steps=self.steps, restarts=self.restarts)
        size = getattr(self, "step_size", None)
        if size is not None and not size > 0:
            raise ValueError(f"{self.name}(step_size={size!r}): expected a number above 0")

    @property
    def name(self) -> str:
        return type(self).__name__

    def settings(self) -> dict[str, Any]:
        """What this attack was set to, for a result file; the threat is told apart."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "threat"}
        return {name: _plain(value) for name, value in values.items()}

    def climbs(self) -> Objective:
        """What it maximises."""
        return margin

    @property
    def rounds(self) -> int:
        """How often a sample may begin, in all."""
        return self.restarts

    def pointless(self, classes: int) -> bool:
        """Whether it has nothing to do on a model of so few classes."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Whether it uses the clean logits, `rows.reference`."""
        return self.climbs() is kl

    def pool(
        self,
        model: Borrowed,
        *,
        seed: int = 0,
        capacity: int | None = None,
        stop_when_fooled: bool = False,
        goal: bool = True,
        trace: Trace | None = None,
    ) -> Loop:
        """Its loop, ready for samples. goal: with targets, success is to hit the target; False counts any error."""
        raise NotImplementedError

    def __call__(
        self,
        model: Model,
        x: Any,
        y: Any,
        targets: Targets = None,
        *,
        start: Tensor | None = None,
        indices: Tensor | None = None,
        seed: int = 0,
    ) -> Adversarial:
        """Attack the samples x (B, *S) with labels y (B,).

        targets: (B,) classes to reach, or a name (see the class). start: (B, *S) where to begin, for the attacks that say
        so. indices: (B,) sample numbers that random draws are keyed by (default 0 … B − 1). Every sample is attacked, also
        those the model gets wrong to begin with.

        Raises TypeError or ValueError, in one line, for inputs, labels or a model that can't be attacked.
        """
        with borrow(model, self.autocast, seed) as borrowed:
            rows = prepare(
                borrowed,
                self.threat,
                x,
                y,
                targets=self.targets if targets is None else targets,
                indices=indices,
                seed=seed,
                needs_reference=self.needs_reference,
            )
            if start is not None:
                rows.start = check_start(start, rows.original, self.name, self.takes_start)
            trace = Trace.empty(self.rounds * (self.steps + 1), len(rows)) if self.trace else None
            if not len(rows):
                return _collect(rows, [], borrowed, trace)
            pool = self.pool(borrowed, seed=seed, stop_when_fooled=self.stop_when_fooled, trace=trace)
            done = list(drain(pool, rows))
            return _collect(rows, done, borrowed, trace)


@dataclass(frozen=True)
class GradientAttack(Attack):
    """An attack that climbs an objective by its gradient; subclasses say where to start and how to move.

    objective: "cross-entropy", "margin", "soft-margin", "dlr", "kl", "logit", or a callable (logits, y, targets,
    reference) → (B,).
    keep: which iterate to return, the "best" (fooling beats not fooling, then the higher objective) or the "last".
    The rest is as for `Attack`.
    """

    objective: str | Objective = field(default="cross-entropy", kw_only=True)
    keep: str = field(default="best", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve(self.objective)
        if self.keep not in ("best", "last"):
            raise ValueError(f"{self.name}(keep={self.keep!r}): expected 'best' or 'last'")

    def climbs(self) -> Objective:
        return resolve(self.objective)

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        return rows.original

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        raise NotImplementedError

    def again(self, rows: Rows) -> Tensor:
        """(N,) bool on the CPU: the samples at the end of a restart that begin another."""
        return rows.restart < self.restarts

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        return Pool(model, self, self.climbs(), **settings)


def drain(pool: Loop, rows: Rows) -> Iterator[Rows]:
    """The samples `rows` as a loop is done with them."""
    pool.add(rows)
    while len(pool):
        finished = pool.step()
        if finished is not None:
            yield finished


def _collect(rows: Rows, done: list[Rows], model: Borrowed, trace: Trace | None) -> Adversarial:
    if not done:
        none = rows.original.new_zeros(0)
        zero = torch.zeros(0, dtype=torch.int64)
        return Adversarial(rows.original, none.bool(), none.long(), none, none, 0, 0, zero, zero, rows.targets, trace)
    ticket = torch.cat([part.ticket for part in done])
    order = ticket.argsort()

    def gather(name: str) -> Tensor:
        parts = [getattr(part, name) for part in done]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined if bool((order == torch.arange(len(order))).all()) else joined[order.to(joined.device)]

    x = gather("best")
    return Adversarial(
        x=x,
        success=gather("fooled"),
        prediction=gather("prediction"),
        objective=gather("value"),
        norm=gather("norm") if len(done[0].norm) else rows.threat.size(rows.original, x),
        forwards=model.forwards,
        backwards=model.backwards,
        zero_gradients=gather("zero"),
        broken_gradients=gather("broken"),
        targets=rows.targets,
        trace=trace,
    )


def _plain(value: Any) -> Any:
    """A JSON value for a setting."""
    if isinstance(value, type) or callable(value):
        return getattr(value, "__name__", repr(value))
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
