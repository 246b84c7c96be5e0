"""`evaluate`: data streams through a cascade of attacks; what is still right at the end counts as robust."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparring.borrow import borrow
from sparring.evaluation import adaptive, cascade, shards
from sparring.evaluation.access import choose, logged
from sparring.evaluation.checkup import examine
from sparring.evaluation.document import describe, describe_model, describe_threat, fingerprint, summarize
from sparring.evaluation.gallery import gallery
from sparring.evaluation.pilot import Plan, kept
from sparring.evaluation.placing import placed
from sparring.evaluation.progress import Bar, Progress
from sparring.evaluation.randomness import OwnRandomness
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.source import Source
from sparring.evaluation.stream import Stream
from sparring.evaluation.study import study
from sparring.evaluation.texts.run import TEXT_SETTINGS, check_settings, evaluate_texts
from sparring.evaluation.together import processes, together
from sparring.text import TextClassifier
from sparring.threat import Threat
from sparring.wrappers import Model


def evaluate(
    model: Model,
    data: Any,
    threat: Threat | None = None,
    *,
    attacks: cascade.Attacks = "adaptive",
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    max_samples: int | None = None,
    time_limit: float | None = None,
    autocast: torch.dtype | None = None,
    access: str = "gradients",
    query_budget: int | None = None,
    query_log: str | Path | None = None,
    checkup: bool = True,
    progress: bool | Callable[[Progress], None] = False,
    indices: torch.Tensor | None = None,
    shard: shards.Shard | None = None,
    plan: Plan | None = None,
    class_names: list[str] | None = None,
    model_info: dict[str, Any] | None = None,
    data_info: dict[str, Any] | None = None,
) -> EvaluationResult:
    """Clean and robust accuracy of `model` on `data` under `threat`, the worst case over the attacks for each sample.

    A text model, `sp.TextClassifier`, needs no threat: give (texts, labels) or a data set of such pairs, and attacks, as
    [sp.EmbeddingPGD(eps=5), sp.WordSubstitution(synonyms)]. Each of them is shown every text that the model gets right,
    and the result, a `TextResult`, tells the robust accuracy under each and under all (docs/text-attacks.md).

    model: an nn.Module or any callable from x (B, *S) to logits (B, C). data: a Dataset or DataLoader of (x, y), or a pair of
    tensors (x (N, *S) float, y (N,) integer); a `DataLoader` is read in its data set's order.
    attacks: "adaptive", an attack, or a list of them in the order to run; a sample that one attack fools is not shown to
    the next. A list may hold foreign attacks: callables (model, x, y) → adversarial x, whose examples are projected and
    checked again. Every success is confirmed by a second forward, in full precision, before it counts.
    batch_size: samples attacked together; memory is bounded by it, whatever the size of the data set.
    seed: fixes every random draw; results do not depend on the batch size (in float32: but for the rounding of kernels).
    A model that is random by itself draws by `seed` too, but in the order of its batches. The default finds it out and lets
    most of 25 draws decide (of up to 200 where those leave it open); under other attacks a success needs two draws in a
    row, the attack's and the one that confirms. Wrap it in `sp.expectation` for a steady verdict.
    device: where to run (default: where the model is); the model goes back afterwards.
    out: a folder for the result (see `EvaluationResult.save`). Killed at any moment and started again with the same `out`,
    the evaluation goes on where it was and ends with the same result.
    max_samples: evaluate a random part of that size. time_limit: seconds after which to stop; samples on their way then count
    as not fooled, and the result says so. autocast: a dtype for the attacks' passes, as torch.bfloat16.
    checkup: look at two dozen samples from every side at the end, for about 1,500 passes, to tell whether the number can be
    trusted; what that finds becomes part of `warnings` (docs/warnings.md).
    access: what may be asked of the model: "gradients"; "scores", which Square then attacks by; or "decisions", for
    HopSkipJump, and the model may return labels (B,) (with `class_names`, or as `sp.from_labels(model, classes)`). Without
    gradients nothing is ever differentiated, there is no checkup, and an attack that needs more is refused.
    query_budget: what that attack may ask about a sample (default 5,000); the result's `queries` says what was asked in all.
    query_log: a file for every query of the attacks without gradients, one JSON object a line.
    indices: (N,) whole numbers, all different, that stand for the samples in the result and that random draws are keyed by
    (default: positions in the data). Where `threat` holds eps or masks one per sample, they go by position.
    plan: who goes on to which attack, in place of a pilot of this run's own: that of an earlier result, `result.plan`.
    shard: (i, n) for every n-th sample from the i-th on, kept in a folder in `out` of which `merge` makes one result. Left
    out in the processes of torchrun, or of a process group, all of them must call this: each takes a shard on its own GPU
    where there are any, and all get the whole result. (0, 1): everything in this process alone, also there.
    progress: True for a bar, or a callback that gets a `Progress`. class_names, model_info, data_info: for the report.

    Raises TypeError or ValueError, in one line, for data or a model that can't be evaluated.
    """
    given = locals()
    if not callable(model):
        raise TypeError(f"the model is a {type(model).__name__}: expected evaluate(model, data, threat), in this order")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit={time_limit}: expected seconds, above 0")
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: expected a folder, which need not be there yet")
    if isinstance(model, TextClassifier):
        check_settings(given)
    elif not isinstance(threat, Threat):
        raise TypeError(f"threat={threat!r}: expected a threat model such as sp.Linf(8/255)")
    if shard is None and processes() > 1:
        return together(evaluate, **given)
    if isinstance(model, TextClassifier):
        return evaluate_texts(model, **{name: given[name] for name in TEXT_SETTINGS})
    assert isinstance(threat, Threat)
    chosen = choose(attacks, threat, autocast, access, query_budget)
    if plan is not None and len(plan.gates) != len(chosen):
        raise ValueError(
            f"a plan for {len(plan.gates)} attacks, and {len(chosen)} attacks: expected one of the same cascade"
        )
    part = shards.check_shard(shards.WHOLE if shard is None else shard, folder)
    source = Source(data, batch_size, max_samples, seed, indices, part)
    about = describe_model(model, model_info)
    identity = fingerprint(about, threat, chosen, seed, source.available, max_samples)
    if folder is not None and (folder / "result.json").exists():
        earlier = EvaluationResult.load_matching(folder, identity, source)
        if earlier is not None:
            return earlier
    if folder is not None and part != shards.WHOLE:
        share = shards.earlier(folder, source, identity, len(chosen))
        if share is not None:
            return share
    with ExitStack() as stack:
        store = shards.open_store(folder, source, identity, len(chosen))
        report = stack.enter_context(Bar()) if progress is True else progress or (lambda now: None)
        where = stack.enter_context(placed(model, device))
        stack.enter_context(OwnRandomness(seed))  # of a model that is random by itself
        names = class_names or getattr(getattr(data, "dataset", data), "classes", None)
        labels = None if names is None else len(names)
        borrowed = stack.enter_context(borrow(model, seed=seed, access=access, labels=labels, batch=batch_size))
        if plan is None and cascade.is_adaptive(attacks) and access == "gradients":
            learn = partial(
                study, borrowed, data, threat, adaptive.steps(threat), chosen, where,
                batch_size=batch_size, max_samples=max_samples, seed=seed, indices=indices,
            )  # fmt: skip
            plan = kept(None if folder is None else folder / "plan.json", identity, learn)
        stream = Stream(
            borrowed, source, threat, chosen, store, where, batch_size=batch_size, seed=seed, time_limit=time_limit,
            report=report, checkup=checkup and access == "gradients", plan=plan,
        )  # fmt: skip
        stack.enter_context(logged([getattr(stage, "pool", None) for stage in stream.stages], query_log))
        try:
            stream.go()
        finally:
            store.flush()
        store.sort()
        shown = gallery(store, borrowed, [stage.name for stage in stream.stages], where)
        findings = None
        if stream.chosen is not None and stream.finished:
            findings = examine(
                stream.chosen, store, borrowed, threat, where, batch_size=batch_size, gradients=stream.gradients
            )
        facts = describe(
            run=stream, model=about, threat=describe_threat(threat), seed=seed, data=data, data_info=data_info,
            class_names=class_names, identity=identity, checkup=findings,
        )  # fmt: skip
    if folder is not None and part != shards.WHOLE:
        return shards.keep(folder, source, facts, shown, store)
    result = EvaluationResult(summarize(facts, store.records, shown), store)
    if folder is None:
        return result
    result.save(folder)
    if result.finished:
        shards.remove(folder)
    del result, stream, store  # their table of samples goes before the one that is loaded comes
    return EvaluationResult.load(folder)
