"""The checkup: a few samples are looked at from every side, to tell whether a verdict about all of them can be trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparring.ascent import Trace
from sparring.borrow import Borrowed
from sparring.evaluation.placing import to_device
from sparring.evaluation.probes import climb, company, repeats, rounded_away, whole_box
from sparring.evaluation.randomness import OwnRandomness
from sparring.evaluation.store import Store
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.threat import Threat
from sparring.wrappers import AttackedInput

STANDING, FALLEN = 16, 8  # how many samples are looked at, of those that no attack fooled and of those that one did
EXAMPLES = 32  # how many examples are rounded to 8 bits
DEEPER = 10  # steps that those take which fool no more then, before they are rounded again
LOOKS, FORWARDS, BACKWARDS = 7, 48, 36  # what a sample costs that no probe fools: asked for logits alone, and in all
SMALL, USUAL, LARGE = 0.1, 0.25, 1.0  # lengths of a step, in units of eps

Findings = dict[str, int]


class Chosen:
    """The samples of the checkup: of those that stand at the end, and of the others, the first by hash(seed, number).

    So they are the same in any order, batch size, and after a kill. Only they are kept, whatever passes by.
    """

    def __init__(self, seed: int, shards: int = 1) -> None:
        """shards: that share the samples, and so the work."""
        self.seed, self.most = seed, {True: max(4, -(-STANDING // shards)), False: max(2, -(-FALLEN // shards))}
        self._kept: dict[bool, Rows | None] = {True: None, False: None}

    def offer(self, rows: Rows, standing: bool) -> None:
        """Samples that are done: all of them fooled, or none."""
        rows = Rows(rows.ticket, rows.index, rows.original, rows.y, rows.threat, context=rows.context)
        rows, before = self._first(rows, standing), self._kept[standing]
        self._kept[standing] = rows if before is None else self._first(before + rows, standing)

    def _first(self, rows: Rows, standing: bool) -> Rows:
        if len(rows) <= self.most[standing]:
            return rows
        order = _order(self.seed, rows.index)[: self.most[standing]]
        return rows[order]

    def rows(self) -> tuple[Rows, Tensor] | None:
        """The samples in the order of their numbers, and which of them stand (N,) bool; None where no sample was right."""
        kept = [(rows, standing) for standing, rows in self._kept.items() if rows is not None]
        if not kept:
            return None
        joined = kept[0][0] if len(kept) == 1 else kept[0][0] + kept[1][0]
        standing = torch.cat([torch.full((len(rows),), value) for rows, value in kept])
        order = joined.index.argsort()
        return joined[order], standing[order]


def _order(seed: int, index: Tensor) -> Tensor:
    return Noise(seed, index).bits((1,), "checkup").squeeze(1).argsort()


def check(
    model: Borrowed, rows: Rows, standing: Tensor, *, seed: int = 0, batch_size: int = 128, gradients: bool = True
) -> Findings:
    """What these samples (N of them, all classified correctly) show; `judge` knows what it means.

    standing: (N,) bool, no attack has fooled them. gradients: False where the model may be asked for logits alone.
    Counts only, so that those of several shards add up. 84 passes for a standing sample, about half that for another:
    - samples, standing: how many were looked at. combined: 1 where the model combines several answers (as EOT does).
    - repeats, turned: logits, and the class, differ when the same batch is asked again. company: logits depend on the batch.
    - one_step, ten_steps, small_steps, large_steps: how many of the standing samples are fooled by one step of length eps,
      and by ten steps of eps / 4, eps / 10 and eps; further: by any of these.
    - one_step_only, ten_steps_only: samples, standing or not, fooled by one step but not by ten, and the reverse.
    - climbs, rises: small steps taken, and those after which the margin was nearer to failure.
    - unbounded, unbounded_failed: samples attacked with no limit but the box, and those not fooled even so.
    - forwards, backwards: what all this cost.
    """
    began = model.forwards, model.backwards
    settings: dict[str, Any] = {"seed": seed, "capacity": batch_size}
    standing = standing.cpu()
    found: Findings = {"samples": len(rows), "standing": int(standing.sum()), "combined": int(bool(model.combined))}
    with OwnRandomness(seed):  # of a random model
        moved, turned = repeats(model, rows, **settings)
        found |= {"repeats": int(moved.sum()), "turned": int(turned.sum())}
        found |= {"company": int(company(model, rows, capacity=batch_size).sum())}
        if gradients and rows.threat.norm != "l0" and len(rows):
            found |= _climbs(model, rows, standing, settings)
    return found | {"forwards": model.forwards - began[0], "backwards": model.backwards - began[1]}


def _climbs(model: Borrowed, rows: Rows, standing: Tensor, settings: dict[str, Any]) -> Findings:
    found: Findings = {}
    whole = whole_box(rows)
    if isinstance(rows.threat.eps, Tensor) or rows.threat.eps != float("inf"):
        trace = Trace.empty(11, len(rows))
        small = climb(model, rows, 10, SMALL, trace=trace, **settings).fooled.cpu()
        usual = climb(model, rows, 10, USUAL, **settings).fooled.cpu()
        large = climb(model, rows, 5, LARGE, **settings).fooled.cpu()
        once = climb(model, rows, 1, 1.0, **settings).fooled.cpu()
        change = trace.objective[1:] - trace.objective[:-1]  # NaN after a sample has left
        any_of = small | usual | large | once
        found = {
            "one_step": int((once & standing).sum()),
            "ten_steps": int((usual & standing).sum()),
            "small_steps": int((small & standing).sum()),
            "large_steps": int((large & standing).sum()),
            "further": int((any_of & standing).sum()),
            "one_step_only": int((once & ~usual).sum()),
            "ten_steps_only": int((usual & ~once).sum()),
            "climbs": int((~change.isnan()).sum()),
            "rises": int((change > 0).sum()),
        }
    if whole is not None:
        fell = climb(model, replace(rows, threat=whole), 10, SMALL, **settings).fooled.cpu()
        found |= {"unbounded": len(rows), "unbounded_failed": int((~fell).sum())}
    return found


def round_examples(
    store: Store,
    model: Borrowed,
    threat: Threat,
    device: torch.device | None,
    *,
    seed: int = 0,
    batch_size: int = 128,
    gradients: bool = True,
) -> Findings:
    """rounded, rounded_away: saved examples rounded to 8 bits, and those that fool no more; forwards, backwards: what it cost.

    Attacks stop at the first success, a hair's breadth beyond the boundary. So what rounding undoes goes ten steps deeper, as
    far as gradients are asked for and one threat holds for all, and is rounded again.
    Asked of images in [0, 1] only, (C, H, W), and of models with one input. The store's records must be sorted.
    """
    table = store.records.table
    places = store.fooled()
    if threat.bounds != (0.0, 1.0) or isinstance(model.model, AttackedInput) or not places:
        return {}
    first = _order(seed, torch.from_numpy(table["index"][places].copy()))[:EXAMPLES]
    places = sorted(places[i] for i in first.tolist())
    began, saved = (model.forwards, model.backwards), list(store.examples(places))
    x = torch.stack([adversarial for _, _, adversarial in saved])
    if x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        return {}
    y = torch.from_numpy(table["label"][places].astype("int64"))
    x, y = to_device(x, device), to_device(y, device)
    alike = not isinstance(threat.eps, Tensor) and (threat.mask is None or threat.mask.ndim < x.ndim)
    alike = alike and threat.norm != "l0" and threat.eps != float("inf")
    with OwnRandomness(seed):
        lost = rounded_away(model, x, y, batch_size)
        if gradients and alike and bool(lost.any()):
            at = lost.nonzero().squeeze(1)
            here = at.to(x.device)
            index, origin = (torch.tensor([saved[i][0] for i in at]), torch.stack([saved[i][1] for i in at]))
            rows = Rows(at, index, to_device(origin, device), y[here], threat.for_inputs(x), start=x[here])
            rows = replace(rows, context=model.keyed({}, index.to(x.device)))
            deeper = climb(model, rows, DEEPER, SMALL, seed=seed, capacity=batch_size, stop=False)
            lost[at] = rounded_away(model, deeper.best.to(x.dtype), rows.y, batch_size)
    spent = model.forwards - began[0], model.backwards - began[1]
    return {"rounded": len(x), "rounded_away": int(lost.sum()), "forwards": spent[0], "backwards": spent[1]}


def examine(
    chosen: Chosen,
    store: Store,
    model: Borrowed,
    threat: Threat,
    device: torch.device | None,
    *,
    batch_size: int,
    gradients: bool,
) -> Findings:
    """The whole checkup at the end of a run: of the samples, and of the examples that were found."""
    picked, seed = chosen.rows(), chosen.seed
    found = {} if picked is None else check(model, *picked, seed=seed, batch_size=batch_size, gradients=gradients)
    rounded = round_examples(store, model, threat, device, seed=seed, batch_size=batch_size, gradients=gradients)
    return add(found, rounded)


def add(*findings: Findings) -> Findings:
    """The findings of several shards as one."""
    names = dict.fromkeys(name for found in findings for name in found)
    return {name: sum(found.get(name, 0) for found in findings) for name in names}
