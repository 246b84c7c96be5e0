"""HopSkipJump: the smallest perturbation, from the model's decisions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.attacks.base import Attack
from sparring.attacks.random_start import random_images
from sparring.attacks.sign import need_norm
from sparring.checks import check_whole
from sparring.noise import Noise
from sparring.queries import Answers, QueryPool, Questions
from sparring.rows import Rows, keep_better
from sparring.threat import per_sample

# what a sample is doing: looking at the original, looking for any example, walking back to the boundary, asking round it
# which way it faces, and jumping that way
LOOK, FIND, BISECT, ESTIMATE, JUMP = range(5)
SPARE = 6  # queries for the jump, over those of the bisection after it
FEWEST = 10  # an estimate from fewer answers is not worth its queries
STARTS = (
    24  # random images asked about; those after the first that fools lie nearer than the boundary found on its way,
)
SHORTER = 0.9  # at this part of its distance,
COARSE = 0.05  # which bisection knows to this part of the way
HALVINGS = 25  # of a jump, before the estimate counts as wrong


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """Walks along the decision boundary to the point nearest to the input. Chen, Jordan and Wainwright (2020).

    In rounds: bisection back to the boundary; the direction that the boundary faces, from the answers at random points
    round it, with their mean as a baseline; a jump that way, halved until it fools. It asks for decisions only.

    eps does not hold the search back, it may be `math.inf`: every sample gets the nearest example found and its norm, and
    succeeds where that is at most eps. Where nothing fooled, x is the input and the norm is inf.
    It begins at the example given for each sample (`start` of a call; in an evaluation what the attack before it found),
    else at the nearest of 24 random images that fools: with targets those hit the class only by luck, so give examples of it.

    queries: forwards a sample at most. estimates: random points of the first round; round j has √j times as many.
    stop_when_fooled: let a sample go at its first example within eps.
    trace: as for `Square`.

    >>> from sparring import L2
    >>> x, y = torch.zeros(1, 2), torch.tensor([0])
    >>> adv = HopSkipJump(L2(math.inf), queries=1000)(lambda x: torch.stack([1 - x.sum(1), x.sum(1)], 1), x, y)
    >>> bool((adv.norm - 0.125**0.5).abs() < 0.02)
    True
    """

    queries: int = 5000
    estimates: int = field(default=100, kw_only=True)

    access: ClassVar[str] = "decisions"
    takes_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("HopSkipJump", queries=self.queries, estimates=self.estimates)
        super().__post_init__()
        need_norm(self, "linf", "l2")

    @property
    def steps(self) -> int:  # type: ignore[override]
        return max(1, self.queries - 1)

    def pool(self, model: Any, **settings: Any) -> QueryPool:
        return QueryPool(model, self, self.climbs(), **settings)

    def begin(self, rows: Rows, noise: Noise) -> None:
        count, n = torch.zeros(len(rows), dtype=torch.int64), len(rows)
        rows.x = rows.original.to(rows.value.dtype)
        rows.norm = torch.full_like(rows.value, torch.inf)
        number = torch.zeros(n, dtype=torch.float64)
        rows.memory = {"phase": count + LOOK}
        # tries: random images asked for. round: of estimates. planned, asked, hits: points of this one, so far, that fooled
        rows.memory |= {name: count.clone() for name in ("tries", "round", "planned", "asked", "hits", "halved")}
        # low, high: of the bisection, parts of the way to `far`. distance: of `x`, the point of the boundary
        rows.memory |= {name: number.clone() for name in ("low", "high", "distance")}
        # plain, signed: sums of the random directions, and with their answers ± 1. along: the jump's direction
        rows.memory |= {name: torch.zeros_like(rows.x) for name in ("far", "plain", "signed", "along")}

    def ask(self, rows: Rows, noise: Noise, left: Tensor, room: int) -> Questions:
        phase = rows.memory["phase"]
        owners, points = [], []
        for here in phase.unique().tolist():
            which = (phase == here).nonzero().flatten()
            if here == ESTIMATE:
                owner, point = self._round_about(rows, which, noise, left, max(1, room // len(rows)))
            else:
                owner = which
                point = {LOOK: _original, FIND: _random, BISECT: _middle, JUMP: _jump}[here](rows, which, noise)
            owners.append(owner)
            points.append(point)
        if len(owners) == 1:
            return Questions(owners[0], points[0])
        owner = torch.cat(owners)
        order = owner.argsort(stable=True)
        return Questions(owner[order], torch.cat(points)[order.to(rows.x.device)])

    def learn(self, rows: Rows, asked: Questions, answers: Answers) -> None:
        memory, phase = rows.memory, rows.memory["phase"]
        success = answers.success.cpu()
        last = torch.bincount(asked.owner, minlength=len(rows)).cumsum(0) - 1
        at = last.to(rows.x.device)
        # the points of an estimate do not count as examples: which of them are asked together depends on the batch
        single = (phase != ESTIMATE).to(rows.x.device)
        point = answers.points[at]
        keep_better(rows, point, answers.value[at], answers.prediction[at], answers.success[at] & single)
        point, fools = point.to(rows.x.dtype), success[last]
        before = phase.clone()  # each sample learns once: what it goes on to is asked for in the next batch
        for here in before.unique().tolist():
            mine = before == here
            yes, no = (mine & fools).nonzero().flatten(), (mine & ~fools).nonzero().flatten()
            if here == LOOK:
                phase[no] = FIND
            elif here == FIND:
                memory["tries"][mine] += 1
                known = no[memory["high"][no] > 0]
                phase[known[memory["tries"][known] >= STARTS]] = BISECT  # on with the last one that fooled
                self._arrive(rows, yes, point)
                self._land(rows, known)
            elif here == BISECT:
                middle = (memory["low"] + memory["high"]) / 2
                memory["high"][yes], memory["low"][no] = middle[yes], middle[no]
                rows.x = _put(rows.x, yes, point)
                self._land(rows, mine.nonzero().flatten())
            elif here == JUMP:
                memory["halved"][no] += 1
                lost = no[memory["halved"][no] > HALVINGS]
                memory["round"][lost] += 1
                self._restart(rows, lost)
                self._arrive(rows, yes, point)
            else:
                self._count(rows, mine, asked.owner, answers.points, success)

    def over(self, rows: Rows) -> Tensor:
        memory = rows.memory
        tired = (memory["phase"] == ESTIMATE) & (memory["planned"] == 0)
        finished: Tensor = (rows.norm == 0).cpu() | (tired & (self._plan(rows, self.queries - rows.step) == 0))
        return finished

    def _tolerance(self, rows: Rows) -> float:
        """The part of the way to which a bisection goes."""
        entries = rows.x[0].numel()
        power = 0.5 if rows.threat.norm == "l2" else 1.0
        published = entries ** -(1 + power)
        return float(max(min(published, 0.01 / entries**power), 4 * torch.finfo(rows.original.dtype).eps))

    def _plan(self, rows: Rows, left: Tensor) -> Tensor:
        """(N,) points of the next estimate: √round times the first round's, and no more than leave enough for the jump."""
        wanted = (self.estimates * (rows.memory["round"] + 1).double().sqrt()).long()
        spare = SPARE + math.ceil(-math.log2(self._tolerance(rows)))
        most = left - spare
        wanted = torch.where(most - wanted < spare + FEWEST, most, wanted)  # the last round takes what there is
        return torch.where(most < FEWEST, 0, wanted)

    def _arrive(self, rows: Rows, which: Tensor, point: Tensor) -> None:
        """These samples are at a point that fools: bisect from there."""
        memory = rows.memory
        memory["far"] = _put(memory["far"], which, point)
        rows.x = _put(rows.x, which, point)
        memory["low"][which], memory["high"][which] = 0.0, 1.0
        memory["phase"][which] = BISECT

    def _land(self, rows: Rows, which: Tensor) -> None:
        """Those of these samples whose bisection is over are at the boundary: look for a nearer start, or ask round it."""
        memory = rows.memory
        apart, searching = memory["high"] - memory["low"], self._searching(rows)
        over = (apart <= self._tolerance(rows)) | (searching & (apart <= COARSE))
        which = which[(over & (memory["phase"] == BISECT))[which]]
        if len(which):
            some = which.to(rows.x.device)
            memory["distance"][which] = rows.threat[which].size(rows.original[some], rows.x[some]).double().cpu()
            memory["phase"][which[searching[which]]] = FIND
            self._restart(rows, which[~searching[which]])

    @staticmethod
    def _searching(rows: Rows) -> Tensor:
        """(N,) bool: the samples that may yet find a nearer start. Where one was given, or a class is to be hit, it is kept."""
        tries, given = rows.memory["tries"], len(rows.start) > 0
        early: Tensor = (tries < (STARTS if rows.targets is None else 0)) & (rows.memory["round"] == 0)
        return early & (tries > 1) if given else early

    @staticmethod
    def _restart(rows: Rows, which: Tensor) -> None:
        """These samples, at the boundary, begin an estimate."""
        memory, some = rows.memory, which.to(rows.x.device)
        for name in ("planned", "asked", "hits", "halved"):
            memory[name][which] = 0
        memory["plain"][some], memory["signed"][some] = 0.0, 0.0
        memory["phase"][which] = ESTIMATE

    def _round_about(self, rows: Rows, which: Tensor, noise: Noise, left: Tensor, each: int) -> tuple[Tensor, Tensor]:
        """Random points round the boundary, at most `each` for a sample."""
        memory = rows.memory
        new = which[memory["planned"][which] == 0]
        memory["planned"][new] = self._plan(rows, left)[new]
        count = (memory["planned"] - memory["asked"])[which].clamp_max(each)
        owner = which.repeat_interleave(count)
        number = memory["asked"][owner] + torch.arange(len(owner)) - (count.cumsum(0) - count).repeat_interleave(count)
        own = noise[owner]
        draw = ("round", memory["round"][owner], number)
        some = owner.to(rows.x.device)
        x = rows.x[some]
        if rows.threat.norm == "l2":
            direction = own.normal(x.shape[1:], *draw, like=x)
        else:
            direction = own.uniform(x.shape[1:], *draw, like=x, low=-1.0)
        if (mask := rows.threat[owner].mask) is not None:
            direction = direction * mask
        length = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        size = self._radius(rows)[owner].to(x.device, x.dtype)
        return owner, _boxed(rows, x + direction * per_sample(size / length, x))

    def _radius(self, rows: Rows) -> Tensor:
        """(N,) Euclidean distance from the boundary at which it is asked."""
        entries = rows.x[0].numel()
        distance: Tensor = rows.memory["distance"]
        factor = math.sqrt(entries) if rows.threat.norm == "l2" else entries
        return distance * self._tolerance(rows) * factor

    def _count(self, rows: Rows, mine: Tensor, owner: Tensor, points: Tensor, success: Tensor) -> None:
        """Add up the answers, one point of each sample after the other, so that the sums are the same in any batch."""
        memory = rows.memory
        chosen = mine[owner].nonzero().flatten()
        whose, at = owner[chosen], chosen.to(rows.x.device)
        some = whose.to(rows.x.device)
        # from where the model saw them: the box, or rounding, may have moved them
        moved = points[at].to(rows.x.dtype) - rows.x[some]
        moved = moved / per_sample(self._radius(rows)[whose].to(moved.device, moved.dtype), moved)
        sign = success[chosen].to(moved.device, moved.dtype) * 2 - 1
        count = torch.bincount(whose, minlength=len(rows))
        nth = (torch.arange(len(whose)) - torch.searchsorted(whose, whose)).to(moved.device)
        spread = moved.new_zeros((2, len(rows), int(count.max()), *moved.shape[1:]))
        spread[0, some, nth], spread[1, some, nth] = moved, moved * per_sample(sign, moved)
        for n in range(spread.shape[2]):
            memory["plain"] += spread[0, :, n]
            memory["signed"] += spread[1, :, n]
        memory["asked"] += count
        memory["hits"] += torch.bincount(whose, success[chosen].double(), minlength=len(rows)).long()
        ready = (mine & (memory["asked"] >= memory["planned"])).nonzero().flatten()
        if len(ready):
            self._aim(rows, ready)

    def _aim(self, rows: Rows, which: Tensor) -> None:
        """The direction of the jump: the covariance of answers and directions."""
        memory, some = rows.memory, which.to(rows.x.device)
        mean = (2 * memory["hits"][which] / memory["asked"][which] - 1).to(rows.x.device, rows.x.dtype)
        mean = per_sample(torch.where(mean.abs() == 1, 0, mean), rows.x)  # all the same: their own mean says where to
        along = memory["signed"][some] - mean * memory["plain"][some]
        if rows.threat.norm == "linf":
            along = along.sign()
        else:
            along = along / per_sample(along.flatten(1).norm(dim=1).clamp_min(torch.finfo(along.dtype).tiny), along)
        memory["along"][some] = along
        memory["round"][which] += 1
        memory["phase"][which] = JUMP


def _put(values: Tensor, which: Tensor, new: Tensor) -> Tensor:
    """`values` (N, *S) with the rows `which` of `new` (N, *S); a new tensor."""
    some = which.to(values.device)
    return values.index_copy(0, some, new[some])


def _boxed(rows: Rows, x: Tensor) -> Tensor:
    return x if rows.threat.bounds is None else x.clamp(*rows.threat.bounds)


def _original(rows: Rows, which: Tensor, noise: Noise) -> Tensor:
    return rows.original.to(rows.x.dtype)[which.to(rows.x.device)]


def _random(rows: Rows, which: Tensor, noise: Noise) -> Tensor:
    """The example given first, then random images, once something fooled only as far away as a nearer start would be."""
    tries, x = rows.memory["tries"][which], _original(rows, which, noise)
    point = random_images(x, noise[which], tries - 1 if len(rows.start) else tries, rows.threat.bounds)
    distance = rows.memory["distance"][which].to(x.device, x.dtype)
    point = torch.where(per_sample(distance > 0, x), _within(rows, x, point, SHORTER * distance), point)
    if len(rows.start):
        point = torch.where(per_sample((tries == 0).to(x.device), x), rows.start[which.to(x.device)].to(x.dtype), point)
    if (mask := rows.threat[which].mask) is not None:
        point = torch.where(mask, point, x)
    return _boxed(rows, point)


def _middle(rows: Rows, which: Tensor, noise: Noise) -> Tensor:
    """Halfway between what is known to fool and what is not."""
    memory, original = rows.memory, _original(rows, which, noise)
    far: Tensor = memory["far"][which.to(rows.x.device)]
    change = (far - original).flatten(1)
    length = change.norm(dim=1) if rows.threat.norm == "l2" else change.abs().amax(1)
    part = ((memory["low"] + memory["high"]) / 2)[which].to(far.device, far.dtype)
    return _within(rows, original, far, part * length)


def _within(rows: Rows, original: Tensor, far: Tensor, distance: Tensor) -> Tensor:
    """The point at this distance (n,) on the way: on the segment, or in linf the smaller ball's point nearest to `far`."""
    change = far - original
    if rows.threat.norm == "linf":
        limit = per_sample(distance, far)
        return original + torch.minimum(torch.maximum(change, -limit), limit)
    length = change.flatten(1).norm(dim=1).clamp_min(torch.finfo(far.dtype).tiny)
    return original + change * per_sample((distance / length).clamp_max(1), far)


def _jump(rows: Rows, which: Tensor, noise: Noise) -> Tensor:
    memory, some = rows.memory, which.to(rows.x.device)
    size = memory["distance"][which] / memory["round"][which].double().sqrt() * 0.5 ** memory["halved"][which].double()
    x = rows.x[some]
    moved: Tensor = x + per_sample(size.to(x.device, x.dtype), x) * memory["along"][some]
    return _boxed(rows, moved)
