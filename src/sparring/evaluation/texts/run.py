"""`evaluate` for text models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.borrow import borrow
from sparring.evaluation import shards
from sparring.evaluation.document import describe
from sparring.evaluation.kinds import result_of
from sparring.evaluation.placing import placed
from sparring.evaluation.progress import Bar, Progress
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.source import Source
from sparring.evaluation.texts.document import describe_classifier, describe_threat, identity_of
from sparring.evaluation.texts.records import TextRecords
from sparring.evaluation.texts.stream import TextStream
from sparring.text import TextAttack, TextClassifier

# settings of `evaluate` that texts have too; those that are about inputs of numbers, and what each is when it is not given
TEXT_SETTINGS = (
    "data", "attacks", "batch_size", "seed", "device", "out", "max_samples", "time_limit", "progress", "indices", "shard",
    "class_names", "model_info", "data_info",
)  # fmt: skip
FOREIGN = {
    "threat": None, "autocast": None, "access": "gradients", "query_budget": None, "query_log": None, "plan": None,
}  # fmt: skip


def evaluate_texts(
    model: TextClassifier,
    data: Any,
    *,
    attacks: Any,
    batch_size: int,
    seed: int,
    device: torch.device | str | None,
    out: str | Path | None,
    max_samples: int | None,
    time_limit: float | None,
    progress: bool | Callable[[Progress], None],
    indices: Tensor | None,
    shard: shards.Shard | None,
    class_names: list[str] | None,
    model_info: dict[str, Any] | None,
    data_info: dict[str, Any] | None,
) -> EvaluationResult:
    """Clean accuracy, robust accuracy under each attack and under all together; arguments as of `evaluate`."""
    chosen = resolve(attacks)
    folder = None if out is None else Path(out)
    own = getattr(getattr(data, "dataset", data), "classes", None)
    _check_classes(own, model.classes)
    part = shards.check_shard(shards.WHOLE if shard is None else shard, folder)
    source = Source(data, batch_size, max_samples, seed, indices, part)
    about = describe_classifier(model, model_info)
    identity = identity_of(about, chosen, seed, source.available, max_samples)
    if folder is not None and (folder / "result.json").exists():
        earlier = EvaluationResult.load_matching(folder, identity, source)
        if earlier is not None:
            return earlier
    records = TextRecords(len(chosen))
    if folder is not None and part != shards.WHOLE:
        share = shards.earlier(folder, source, identity, len(chosen), records)
        if share is not None:
            return share
    with ExitStack() as stack:
        store = shards.open_store(folder, source, identity, len(chosen), records)
        report = stack.enter_context(Bar()) if progress is True else progress or (lambda now: None)
        where = stack.enter_context(placed(model, device))
        borrowed = stack.enter_context(borrow(model, seed=seed))
        stream = TextStream(
            borrowed, source, chosen, store, records, where, batch_size=batch_size, seed=seed, time_limit=time_limit,
            report=report,
        )  # fmt: skip
        try:
            stream.go()
        finally:
            store.flush()
        store.sort()
        names = class_names or own or model.classes
        facts = {"task": "text"} | describe(
            run=stream, model=about, threat=describe_threat(chosen), seed=seed, data=data, data_info=data_info,
            class_names=list(names), identity=identity,
        )  # fmt: skip
    if folder is not None and part != shards.WHOLE:
        return shards.keep(folder, source, facts, [], store)
    result = result_of(facts, store, [])
    if folder is None:
        return result
    result.save(folder)
    if result.finished:
        shards.remove(folder)
    return EvaluationResult.load(folder)


def check_settings(given: dict[str, Any]) -> None:
    """ValueError for what `evaluate` can be told of inputs of numbers, and not of texts."""
    for name, default in FOREIGN.items():
        if given[name] is not default and given[name] != default:
            raise ValueError(
                f"{name}={given[name]!r} is not for texts: a text attack holds its own limits and settings"
            )


def _check_classes(data: Any, model: list[str]) -> None:
    """ValueError where data and model number the same classes in different ways. data: its classes, or None."""
    numbered = model == [str(i) for i in range(len(model))]
    if data is None or numbered or list(data) == model or not set(data) & set(model):
        return
    raise ValueError(
        f"the data has the classes {', '.join(map(str, data))}, and the model {', '.join(model)}: open the texts with "
        "classes=model.classes"
    )


def resolve(attacks: Any) -> list[TextAttack]:
    """The attacks as a list; TypeError or ValueError, in one line, for what does not attack texts."""
    hint = "expected such as [sp.EmbeddingPGD(eps=5), sp.WordSubstitution(synonyms)]"
    if attacks == "adaptive":
        raise ValueError(f"a text model needs its attacks named, as synonyms have to come from somewhere: {hint}")
    chosen = list(attacks) if isinstance(attacks, (list, tuple)) else [attacks]
    if not chosen:
        raise ValueError(f"attacks is empty: {hint}")
    for attack in chosen:
        if not isinstance(attack, TextAttack):
            raise TypeError(f"attack {attack!r} does not attack texts: {hint}")
    return chosen
