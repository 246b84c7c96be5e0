"""The loop. All iterative gradient attacks are recipes over it: where to start, and how to move along a gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.objective import Objective, check_label_range, fooled, predict
from sparring.rows import Rows, keep_better


class Recipe(Protocol):
    """What tells one iterative attack from another."""

    @property
    def steps(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    @property
    def keep(self) -> str:
        """Which iterate is returned: the "best" of all, only the "last" of each restart, or the "nearest" that fools.

        "nearest" is for searches of the smallest perturbation: the iterate that fools with the smallest norm, whatever eps;
        eps only says whether that is a success. Where none fools, the original, and a norm of inf.
        """

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        """The first iterate (N, *S) of the current restart; may set `rows.memory`."""

    def move(self, rows: Rows, gradient: Tensor, probe: Probe) -> Tensor:
        """The next iterate (N, *S), inside the set, from `rows.x` and the gradient there; must not change either.

        Iterates are kept in float32 or better; the model sees them rounded to the inputs' dtype.
        """

    def again(self, rows: Rows) -> Tensor:
        """(N,) bool on the CPU: which of the samples at the end of a restart (`rows.restart` are done) begin another."""


class Search(Recipe, Protocol):
    """A recipe that keeps the "nearest"."""

    def settled(self, rows: Rows) -> Tensor:
        """(N,) bool: which samples need no further step, after a look at `rows.x`."""


class Probe(Protocol):
    """Asks the model at other points, counted: (rows of the pool, x) → (objective (n,), gradient (n, *S))."""

    def __call__(self, which: Tensor, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def look(self, which: Tensor, x: Tensor) -> Tensor:
        """(n,) bool: whether x (n, *S) fools, by a forward only; x counts as an iterate of these rows."""


@dataclass
class Trace:
    """What happened at each step of each restart, in that order; (restarts · (steps + 1), B). NaN and −1 after a sample left."""

    objective: Tensor
    prediction: Tensor
    confidence: Tensor

    @classmethod
    def empty(cls, length: int, batch: int) -> Trace:
        nothing = torch.full((length, batch), torch.nan)
        return cls(nothing, torch.full((length, batch), -1), nothing.clone())

    def record(self, place: Tensor, ticket: Tensor, value: Tensor, logits: Tensor) -> None:
        self.objective[place, ticket] = value.float().cpu()
        self.prediction[place, ticket] = predict(logits).cpu()
        self.confidence[place, ticket] = logits.float().softmax(1).amax(1).cpu()


class Pool:
    """The samples that are under attack now, at most `capacity` at a time, each at its own step.

    `add` brings samples in, `step` takes every one of them one step on and hands back those that are done, and the free
    places can be filled again. A sample's last iterate needs a forward only: such samples are parked until a full batch
    of them (a quarter where restarts bring them back), or nothing else, is left, so that K steps cost K backwards and
    K + 1 forwards in any company.
    """

    def __init__(
        self,
        model: Borrowed,
        recipe: Recipe,
        objective: Objective,
        *,
        seed: int = 0,
        capacity: int | None = None,
        stop_when_fooled: bool = False,
        goal: bool = True,
        trace: Trace | None = None,
        rounds: int | None = None,
    ) -> None:
        """goal: with targets, success is to hit the target; False counts any wrong prediction.

        rounds: how often a sample may begin, default the recipe's restarts.
        """
        self.model, self.recipe, self.objective, self.seed, self.capacity = model, recipe, objective, seed, capacity
        self.stop_when_fooled, self.goal, self.trace = stop_when_fooled, goal, trace
        self.rounds = rounds or recipe.restarts
        self.active: Rows | None = None
        self.parked: Rows | None = None
        self._joined = False

    def __len__(self) -> int:
        return sum(len(rows) for rows in (self.active, self.parked) if rows is not None)

    @property
    def _limit(self) -> int:
        return self.capacity or 1 << 62

    @property
    def room(self) -> int:
        """How many samples can join. Parked samples hold their places where a restart will bring them back."""
        returning = len(self.parked) if self.parked is not None and self.rounds > 1 else 0
        return max(0, self._limit - returning - (0 if self.active is None else len(self.active)))

    def add(self, rows: Rows) -> None:
        """Begin with these samples."""
        rows = replace(rows)  # the caller's stay as they are
        count = torch.zeros(len(rows), dtype=torch.int64)
        rows.step, rows.restart = count, count.clone()
        rows.zero, rows.broken = count.clone(), count.clone()
        if not len(rows.forwards):
            rows.forwards, rows.backwards = count.clone(), count.clone()
        dtype = torch.promote_types(rows.original.dtype, torch.float32)
        rows.value = rows.original.new_full((len(rows),), -torch.inf, dtype=dtype)
        rows.current = rows.value
        if self.recipe.keep == "nearest":
            rows.norm = torch.full_like(rows.value, torch.inf)
        rows.prediction, rows.fooled = rows.y.new_full((len(rows),), -1), torch.zeros_like(rows.y, dtype=torch.bool)
        rows.fools = rows.fooled
        self._enter(self._begin(rows))
        self._joined = True

    def _begin(self, rows: Rows) -> Rows:
        start = self.recipe.begin(rows, Noise(self.seed, rows.index))
        rows.x = start.to(rows.value.dtype)
        if not len(rows.best):
            nearest = self.recipe.keep == "nearest"
            rows.best = rows.original if nearest else rows.threat.rounded(rows.original, rows.x)
        return rows

    def _enter(self, rows: Rows) -> None:
        if self.recipe.steps == 0:
            self.parked = rows if self.parked is None else self.parked + rows
        else:
            self.active = rows if self.active is None else self.active + rows

    def step(self) -> Rows | None:
        """One probe of every active sample, or one look at the parked ones; the samples that are done, if any."""
        parked = 0 if self.parked is None else len(self.parked)
        enough = self._limit if self.rounds == 1 else max(1, self._limit // 4)
        if parked and (self.active is None or not len(self.active) or parked >= enough):
            return self._finish()
        return self._climb() if self.active is not None and len(self.active) else None

    def _value(self, rows: Rows, logits: Tensor) -> Tensor:
        if self._joined:  # the first logits that newcomers meet say how many classes there are
            self._joined = False
            check_label_range(rows.y, logits.shape[1])
            if rows.targets is not None:
                check_label_range(rows.targets, logits.shape[1], "targets")
        value = self.objective(logits, rows.y, rows.targets, rows.reference)
        if value.shape != rows.y.shape:
            raise ValueError(
                f"the objective returned shape {tuple(value.shape)}: expected one value a sample, ({len(rows)},)"
            )
        return value

    def _climb(self) -> Rows | None:
        rows = self.active
        assert rows is not None
        point = rows.threat.rounded(rows.original, rows.x)
        logits, value, gradient = self._probe(rows, point)
        rows.current = value
        gradient = gradient.to(rows.x.dtype)
        self._judge(rows, point, logits, value)
        done: Rows | None = None
        leaving = self._leaving(rows)
        if leaving is not None and bool(leaving.any()):
            here = leaving.cpu()
            done, rows, gradient = rows[here], rows[~here], gradient[~leaving]
        if len(rows):
            gradient = self._mend(rows, gradient)
            rows.x = self.recipe.move(rows, gradient, _Asking(self, rows))
            rows.step = rows.step + 1
            due = rows.step == self.recipe.steps
            if bool(due.any()):
                ready, rows = (rows, None) if bool(due.all()) else (rows[due], rows[~due])
                self.parked = ready if self.parked is None else self.parked + ready
        self.active = rows if rows is not None and len(rows) else None
        return done

    def _probe(self, rows: Rows, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, objective (N,) and the gradient to move along (N, *S) at `point`, counted."""
        rows.forwards, rows.backwards = rows.forwards + 1, rows.backwards + 1
        return self.model.probe(point, partial(self._value, rows), rows.context)

    def _leaving(self, rows: Rows) -> Tensor | None:
        """(N,) bool: who needs no further step; None for nobody."""
        if self.recipe.keep != "nearest":
            return rows.fooled if self.stop_when_fooled else None
        settled = cast(Search, self.recipe).settled(rows)
        return settled | rows.fooled if self.stop_when_fooled else settled

    def _finish(self) -> Rows | None:
        """Look at last iterates: done, unless restarts are left that could still change something."""
        assert self.parked is not None
        rows, self.parked = self.parked.split(self._limit)
        point = rows.threat.rounded(rows.original, rows.x)
        logits = self.model.look(point, rows.context)
        rows.forwards = rows.forwards + 1
        self._judge(rows, point, logits, self._value(rows, logits))
        rows.restart = rows.restart + 1
        done, leaving = ~self.recipe.again(rows), self._leaving(rows)
        if leaving is not None:
            done |= leaving.cpu()
        if not bool(done.all()):
            again = rows[~done]
            again.step = torch.zeros_like(again.step)
            self._enter(self._begin(again))
            rows = rows[done]
        return rows if len(rows) else None

    def _judge(self, rows: Rows, point: Tensor, logits: Tensor, value: Tensor) -> None:
        """Write down what was seen, and keep the better of this point and the best so far."""
        if self.trace is not None:
            self.trace.record(rows.restart * (self.recipe.steps + 1) + rows.step, rows.ticket, value, logits)
        rows.fools = self._keep(rows, point, logits, value)

    def _keep(self, rows: Rows, point: Tensor, logits: Tensor, value: Tensor) -> Tensor:
        """Keep it where it is better; (N,) bool, whether it fools."""
        prediction = predict(logits)
        success = fooled(prediction, rows.y, rows.targets if self.goal else None)
        if self.model.autocast is not None and (self.stop_when_fooled or self.recipe.keep == "nearest"):
            rows.forwards = rows.forwards + success.cpu()
            success = confirmed(self.model, rows, point, success, self.goal)
        if self.recipe.keep == "last" and bool((rows.step < self.recipe.steps).any()):
            return success
        keep_better(rows, point, value, prediction, success)
        return success

    def _mend(self, rows: Rows, gradient: Tensor) -> Tensor:
        """Replace what would stop a sample silently: NaN and inf by zero, and an all-zero gradient by a random one."""
        if rows.threat.mask is not None:
            gradient = gradient * rows.threat.mask
        flat = gradient.flatten(1)
        span = flat.amax(1) - flat.amin(1)  # NaN with NaN, infinite with inf: one cheap look finds most gradients sound
        if bool(((span > 0) & (span < torch.inf)).all()):
            return gradient
        size = flat.abs().amax(1)
        rows.broken = rows.broken + (~size.isfinite()).cpu()
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        still = gradient.flatten(1).abs().amax(1) == 0
        rows.zero = rows.zero + still.cpu()
        stuck = still.cpu().nonzero().flatten()
        if len(stuck):
            noise = Noise(self.seed, rows.index[stuck])
            gradient[still] = noise.normal(
                gradient.shape[1:], "instead of a zero gradient", rows.restart[stuck], rows.step[stuck], like=gradient
            )
        return gradient


def confirmed(model: Borrowed, rows: Rows, points: Tensor, claims: Tensor, goal: bool) -> Tensor:
    """(N,) bool: whether those of the points (N, *S) that fool under autocast, (N,) bool, do so in full precision; one forward
    each. A sample that left for an example which does not hold would be missed by the steps that it did not take, and what
    a search finds nearest is where rounding decides."""
    sure = claims.clone()
    if bool(claims.any()):
        some = rows[claims.cpu()]
        with model.precision(None):
            logits = model.look(points[claims], some.context)
        sure[claims] = fooled(predict(logits), some.y, some.targets if goal else None)
    return sure


@dataclass
class _Asking:
    """The probe that a recipe gets with its rows."""

    pool: Pool
    rows: Rows

    def __call__(self, which: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, pool = self.rows, self.pool
        some = rows[which]
        _, value, gradient = pool.model.probe(x, partial(pool._value, some), some.context)
        rows.forwards[which] += 1
        rows.backwards[which] += 1
        return value, pool._mend(some, gradient)

    def look(self, which: Tensor, x: Tensor) -> Tensor:
        rows, pool = self.rows, self.pool
        some = rows if len(which) == len(rows) else rows[which]
        point = some.threat.rounded(some.original, x)
        logits = pool.model.look(point, some.context)
        success = pool._keep(some, point, logits, pool._value(some, logits))
        for name in () if some is rows else ("best", "value", "prediction", "fooled", "norm", "forwards"):
            kept, here = getattr(rows, name), getattr(some, name)
            setattr(rows, name, kept.index_copy(0, which.to(kept.device), here) if len(kept) else kept)
        rows.forwards[which] += 1
        return success
