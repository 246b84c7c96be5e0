"""`evaluate`: data streams through a cascade of attacks; what is still right at the end counts as robust."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparring.attacks.inputs import check_inputs, check_label_range, check_labels, split_inputs
from sparring.borrow import Borrowed, borrow, looks_like_probabilities
from sparring.evaluation import cascade
from sparring.evaluation.document import describe, describe_model, fingerprint
from sparring.evaluation.progress import Bar, Progress
from sparring.evaluation.records import STARTED
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.source import Batch, Source, digest
from sparring.evaluation.stages import Stage, draw_back, make_stage
from sparring.evaluation.store import Store
from sparring.evaluation.warnings import Observed
from sparring.objective import fooled, predict
from sparring.rows import Rows
from sparring.threat import Threat
from sparring.wrappers import AttackedInput, Model

LOOKS = 8  # bisections on the way back from an example to its original
FLUSH_SECONDS = 10.0


def evaluate(
    model: Model,
    data: Any,
    threat: Threat,
    *,
    attacks: cascade.Attacks = "adaptive",
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    max_samples: int | None = None,
    time_limit: float | None = None,
    autocast: torch.dtype | None = None,
    progress: bool | Callable[[Progress], None] = False,
    indices: torch.Tensor | None = None,
    class_names: list[str] | None = None,
    model_info: dict[str, Any] | None = None,
    data_info: dict[str, Any] | None = None,
) -> EvaluationResult:
    """Clean and robust accuracy of `model` on `data` under `threat`, the worst case over the attacks for each sample.

    model: an nn.Module or any callable from x (B, *S) to logits (B, C). data: a Dataset or DataLoader of (x, y), or a pair of
    tensors (x (N, *S) float, y (N,) integer); a `DataLoader` is read in its data set's order.
    attacks: "adaptive", an attack, or a list of them in the order to run; a sample that one attack fools is not shown to
    the next. A list may hold foreign attacks: callables (model, x, y) → adversarial x, whose examples are projected and
    checked again. Every success is confirmed by a second forward, in full precision, before it counts.
    batch_size: samples attacked together; memory is bounded by it, whatever the size of the data set.
    seed: fixes every random draw; results do not depend on the batch size (in float32: but for the rounding of kernels).
    device: where to run (default: where the model is); the model goes back afterwards.
    out: a folder for the result (see `EvaluationResult.save`). Killed at any moment and started again with the same `out`,
    the evaluation goes on where it was and ends with the same result.
    max_samples: evaluate a random part of that size. time_limit: seconds after which to stop; samples on their way then count
    as not fooled, and the result says so. autocast: a dtype for the attacks' passes, as torch.bfloat16.
    indices: (N,) whole numbers, all different, that stand for the samples in the result and that random draws are keyed by
    (default: positions in the data).
    progress: True for a bar, or a callback that gets a `Progress`. class_names, model_info, data_info: for the report.

    Raises TypeError or ValueError, in one line, for data or a model that can't be evaluated.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected a whole number, at least 1")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples}: expected a whole number, at least 1")
    if not isinstance(threat, Threat):
        raise TypeError(f"threat={threat!r}: expected a threat model such as sp.Linf(8/255)")
    chosen = cascade.resolve(attacks, threat, autocast)
    source = Source(data, batch_size, max_samples, seed, indices)
    about = describe_model(model, model_info)
    identity = fingerprint(about, threat, chosen, seed, max_samples)
    folder = None if out is None else Path(out)
    if folder is not None and (folder / "result.json").exists():
        earlier = EvaluationResult.load_matching(folder, identity)
        if earlier is not None:
            return earlier
    with ExitStack() as stack:
        scratch: Any = None
        if folder is None:
            scratch = tempfile.TemporaryDirectory(prefix="sparring-")
        store = Store((folder or Path(scratch.name)) / ".parts", identity, len(chosen))
        report = stack.enter_context(Bar()) if progress is True else progress or (lambda now: None)
        where = stack.enter_context(placed(model, device))
        borrowed = stack.enter_context(borrow(model))
        run = _Run(borrowed, source, threat, chosen, store, where, batch_size, seed, time_limit, report)
        try:
            run.go()
        finally:
            store.flush()
        store.records.sort()
        gallery = run.gallery()
        document = describe(
            run=run, model=about, threat=threat, seed=seed, data=data, data_info=data_info, class_names=class_names,
            gallery=gallery, identity=identity,
        )  # fmt: skip
    result = EvaluationResult(document, store, scratch)
    if folder is not None:
        result.save(folder)
        if document["finished"]:
            store.remove()
            return EvaluationResult.load(folder)
    return result


class _Run:
    """One evaluation under way: pulls data, keeps the stages fed, and settles samples as they fall or survive."""

    def __init__(
        self,
        model: Borrowed,
        source: Source,
        threat: Threat,
        attacks: list[cascade.Attack],
        store: Store,
        device: torch.device | None,
        batch_size: int,
        seed: int,
        time_limit: float | None,
        report: Callable[[Progress], None],
    ) -> None:
        self.model, self.source, self.threat, self.store, self.device = model, source, threat, store, device
        self.batch_size, self.time_limit, self.report = batch_size, time_limit, report
        self.records = store.records
        table = self.records.table  # what an earlier start has finished
        self.resumed = self.done = len(table)
        self.correct, self.fooled = int(table["correct"].sum()), int((table["attack"] >= 0).sum())
        # each attack draws numbers of its own
        self.stages: list[Stage] = [
            make_stage(attack, model, batch_size, seed + 1_000_003 * i) for i, attack in enumerate(attacks)
        ]
        self.observed = Observed()
        self.shape: list[int] | None = None
        self.finished = False
        self.unconfirmed = 0
        self._start = self._flushed = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def go(self) -> None:
        batches: Iterator[Batch] | None = iter(self.source)
        while self.time_limit is None or self.seconds < self.time_limit:
            full = [i for i, stage in enumerate(self.stages) if stage.ready >= self.batch_size]
            busy = [i for i, stage in enumerate(self.stages) if stage.busy]
            if full:
                self._step(full[-1])
            elif batches is not None:
                batch = next(batches, None)
                if batch is None:
                    batches = None
                else:
                    self._meet(batch)
            elif busy:
                self._step(busy[0])
            else:
                self.finished = True
                break
            self._tell()
        self._tell(last=True)
        for number, stage in enumerate(self.stages):
            for rows in stage.under_way():  # where time ran out
                self._account(rows, number)

    def _account(self, rows: Rows, number: int) -> None:
        """Book the passes that these samples have cost at this stage."""
        table, places = self.records.table, rows.ticket.numpy()
        table["passes"][places, number, 0] += rows.forwards.numpy()
        table["passes"][places, number, 1] += rows.backwards.numpy()
        for name in ("forwards", "backwards", "zero", "broken"):
            table[name][places] += getattr(rows, name).numpy()

    def _finish(self, place: int, example: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        self.done += 1
        self.fooled += example is not None
        self.store.finish(place, example)

    def _tell(self, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._told > 0.1:
            self._told = now
            passes = (self.model.forwards, self.model.backwards)
            met = (len(self.records), self.correct, self.fooled)
            self.report(Progress(self.done, self.source.total, *met, *passes, self.seconds, self.resumed))
        if now - self._flushed > FLUSH_SECONDS:
            self.store.flush()
            self._flushed = now

    def _meet(self, batch: Batch) -> None:
        """Look at new samples; those the model gets right go to the first attack."""
        prints = digest(batch.x, batch.y)
        fresh: list[int] = []
        for i, (index, fingerprint_) in enumerate(zip(batch.index.tolist(), prints, strict=True)):
            place = self.records.place(index)
            if place is None:
                fresh.append(i)
            elif int(self.records.table[place]["digest"]) != fingerprint_:
                raise ValueError(
                    f"sample {index} is not the one that the evaluation in {self.store.folder.parent} began with: "
                    "go on with the same data, or choose another folder"
                )
        x, context = split_inputs(self.model.model, to_device(batch.x, self.device))
        self.shape = list(x.shape[1:])
        if not fresh:
            return
        rows = torch.tensor(fresh)
        x, context = x[rows.to(x.device)], {k: v[rows.to(v.device)] for k, v in context.items()}
        try:
            check_inputs(x, self.threat)
            y = check_labels(batch.y[rows], x)
        except (TypeError, ValueError) as error:
            first, last = int(batch.index[fresh[0]]), int(batch.index[fresh[-1]])
            raise type(error)(f"samples {first} to {last}: {error}") from None
        logits = self.model.look(x, context)
        check_label_range(y, logits.shape[1])
        prediction = predict(logits)
        if bool((prediction < 0).any()):
            bad = batch.index[rows][(prediction < 0).cpu()].tolist()
            raise ValueError(
                f"the model returns NaN or inf for {len(bad)} clean samples (first: sample {bad[0]}): "
                "check its weights and its input range"
            )
        self.observed.looks_like_probabilities &= looks_like_probabilities(logits)
        correct = prediction == y
        self.correct += int(correct.sum())
        confidence = logits.float().softmax(1).amax(1)
        places = [self.records.add(int(batch.index[i])) for i in fresh]
        table = self.records.table
        table["digest"][places] = [prints[i] for i in fresh]
        for name, values in (("label", y), ("clean_prediction", prediction), ("correct", correct), ("robust", correct)):
            table[name][places] = values.cpu().numpy()
        table["clean_confidence"][places] = confidence.cpu().numpy()
        table["forwards"][places], table["state"][places] = 1, STARTED
        for place, right in zip(places, correct.tolist(), strict=True):
            if not right:
                self._finish(place)
        right = correct.cpu()
        if bool(right.any()):
            threat = self._threat_of(batch.index[rows], x)
            started = Rows(torch.tensor(places), batch.index[rows], x, y, threat, context=context, reference=logits)
            self.stages[0].feed(started[right])

    def _threat_of(self, index: torch.Tensor, x: torch.Tensor) -> Threat:
        """eps and masks with one value per sample are looked up by the samples' numbers."""
        if isinstance(self.threat.eps, torch.Tensor) and int(index.max()) >= len(self.threat.eps):
            raise ValueError(f"eps has {len(self.threat.eps)} values, the data more samples: expected one per sample")
        return self.threat[index].for_inputs(x)

    def _step(self, number: int) -> None:
        """Take one stage a step on: the fallen are settled, survivors go to the next stage or are robust."""
        done = self.stages[number].step()
        if done is None:
            return
        self._account(done, number)
        fell = done.fooled.cpu()
        if bool(fell.any()):
            fell[fell.clone()] = self._settle(done[fell], number)
        standing = done[~fell]
        if not len(standing):
            return
        if number + 1 < len(self.stages):
            self.stages[number + 1].feed(standing)
        else:
            for place in standing.ticket.tolist():
                self._finish(place)

    def _settle(self, rows: Rows, number: int) -> torch.Tensor:
        """Confirm examples by asking again, and draw them back; which of them (N,) were confirmed."""
        logits = self.model.look(rows.best, rows.context)
        prediction = predict(logits)
        sure = fooled(prediction, rows.y).cpu()
        table = self.records.table
        table["forwards"][rows.ticket.numpy()] += 1
        self.unconfirmed += int((~sure).sum())
        confidence = logits.float().softmax(1).amax(1).cpu()[sure]
        prediction, rows = prediction.cpu()[sure], rows[sure]
        if not len(rows):
            return sure
        distance = draw_back(self.model, rows, LOOKS)
        places = rows.ticket.numpy()
        table["forwards"][places] += LOOKS
        table["robust"][places], table["attack"][places] = False, number
        table["prediction"][places], table["confidence"][places] = prediction.numpy(), confidence.numpy()
        table["norm"][places] = rows.threat.size(rows.original, rows.best).double().cpu().numpy()
        table["distance"][places] = distance.numpy()
        for i, place in enumerate(places.tolist()):
            self._finish(place, (rows.original[i], rows.best[i]))
        return sure

    def gallery(self, most: int = 12) -> list[dict[str, Any]]:
        """The fooled samples nearest to their originals, with the model's five best guesses before and after."""
        table = self.records.table
        places = sorted(self.store.fooled(), key=lambda place: (float(table["distance"][place]), place))[:most]
        shown = []
        if isinstance(self.model.model, AttackedInput):  # the examples do not hold its other inputs
            return []
        for place, (index, original, adversarial) in zip(places, self.store.examples(places), strict=True):
            pair = torch.stack([original, adversarial]).to(self.device or original.device)
            chances, classes = self.model.look(pair).float().softmax(1).topk(min(5, self.model.classes or 5))
            row = table[place]
            guesses = [
                [{"label": int(c), "probability": float(p)} for c, p in zip(cs, ps, strict=True)]
                for cs, ps in zip(classes.tolist(), chances.tolist(), strict=True)
            ]
            shown.append(
                {
                    "index": index,
                    "label": int(row["label"]),
                    "attack": self.stages[int(row["attack"])].name,
                    "norm": float(row["norm"]),
                    "distance": float(row["distance"]),
                    "before": guesses[0],
                    "after": guesses[1],
                }
            )
        return shown


def to_device(x: Any, device: torch.device | None) -> Any:
    if isinstance(x, dict):
        return {name: to_device(part, device) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(to_device(part, device) for part in x)
    return x if device is None or not isinstance(x, torch.Tensor) else x.to(device, non_blocking=True)


@contextmanager
def placed(model: Model, device: torch.device | str | None) -> Iterator[torch.device | None]:
    """The model on the device, and back afterwards; the device to send data to."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if device is None:
        yield None if first is None else first.device
        return
    where = torch.device(device)
    home = None if first is None else first.device
    moved = isinstance(model, nn.Module) and home is not None and home != where
    if moved:
        model.to(where)  # type: ignore[union-attr]
    try:
        yield where
    finally:
        if moved:
            model.to(home)  # type: ignore[union-attr]
