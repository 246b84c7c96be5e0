"""`verify`: does a result folder say the truth? Everything it claims is checked again, with the model at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.borrow import Borrowed, borrow
from sparring.evaluation import cascade
from sparring.evaluation.document import describe_model
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.run import evaluate, placed, to_device
from sparring.evaluation.source import Source, digest
from sparring.evaluation.statistics import Proportion
from sparring.evaluation.store import Example, sha256
from sparring.noise import Noise
from sparring.objective import predict
from sparring.threat import Threat
from sparring.wrappers import AttackedInput, Model


@dataclass
class Verification:
    """lies: one line for each claim that does not hold (empty: the result says the truth). checked: what was looked at.

    fooling, still_8bit: how many of the saved examples fool the model, as saved and after rounding to 8 bits.
    attacked_again, fallen: how many of the samples claimed robust were attacked again with other random numbers, and how
    many of those fell: no lie (robust accuracy is an upper bound), but a sign of how loose the bound is.
    """

    lies: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    examples: int = 0
    fooling: int = 0
    still_8bit: int | None = None
    attacked_again: int = 0
    fallen: int = 0

    @property
    def ok(self) -> bool:
        return not self.lies

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **self.__dict__}


def verify(
    folder: str | Path,
    model: Model,
    data: Any = None,
    *,
    attacks: cascade.Attacks | None = None,
    samples: int = 100,
    seed: int = 1,
    batch_size: int = 128,
    device: torch.device | str | None = None,
) -> Verification:
    """Check the result in `folder` against `model`, and against `data` where it is given.

    Always: hashes of files and weights, the totals against the samples' rows, and that every saved example lies in the ball
    and the box, starts at its original, and fools the model. With `data`: that the samples are the same, the clean
    verdicts, and up to `samples` of those claimed robust are attacked again, once with the recorded seed (one that falls
    now but did not then is a lie, if it falls to the very attacks that were recorded) and once with `seed`.
    attacks: what to attack with (default: those recorded, where they are sparring's own).
    """
    if isinstance(model, AttackedInput):
        raise ValueError("a result of a model with several inputs does not hold the others: it can't be verified")
    result = EvaluationResult.load(folder)
    report = Verification()
    _check_files(result, report)
    _check_totals(result, report)
    threat = threat_of(result)
    with placed(model, device) as where:
        weights = describe_model(model, None)["sha256"]
        recorded = result.document["model"]["sha256"]
        if recorded is not None and weights != recorded:
            report.lies.append(
                f"the model's weights are not those of the run (sha256 {str(weights)[:12]}…, then {recorded[:12]}…)"
            )
        else:
            report.checked.append("weights")
        with borrow(model) as borrowed:
            _check_examples(result, report, borrowed, threat, where, batch_size)
    if data is not None:
        chosen = _check_data(result, report, model, data, samples, seed, batch_size, device)
        if chosen is not None:
            _attack_again(result, report, model, chosen, threat, attacks, seed, batch_size, device)
    return report


def threat_of(result: EvaluationResult) -> Threat:
    """The threat model of a result, with one eps for all. ValueError for a masked one or per-sample eps: no file holds those."""
    about = result.document["threat"]
    if about["masked"] or about["eps_typed"] == "one per sample":
        raise ValueError(
            "the run used a mask or one eps per sample, which the result folder does not hold: can't verify it"
        )
    return Threat(
        about["norm"],
        about["eps"],
        None if about["bounds"] is None else tuple(about["bounds"]),
        typed=about["eps_typed"],
    )


def _check_files(result: EvaluationResult, report: Verification) -> None:
    assert result.folder is not None
    for name, expected in result.document["files"].items():
        path = result.folder / name
        if not path.exists():
            report.lies.append(f"{name} is missing")
        elif sha256(path) != expected:
            report.lies.append(f"{name} was changed after the run: its hash is not the recorded one")
    report.checked.append(f"hashes of {len(result.document['files'])} files")


def _check_totals(result: EvaluationResult, report: Verification) -> None:
    document, table = result.document, result._records.table
    total = len(table)
    for name, column in (("clean_accuracy", "correct"), ("robust_accuracy", "robust")):
        counted, claimed = Proportion(int(table[column].sum()), total), document[name]
        if (claimed["count"], claimed["total"]) != (counted.count, counted.total) or abs(
            claimed["value"] - counted.value
        ) > 1e-9:
            report.lies.append(
                f"{name} claims {claimed['count']} of {claimed['total']}, the samples' rows say {counted.count} of {total}"
            )
    if bool((table["robust"] & ~table["correct"]).any()):
        report.lies.append("a sample is called robust though its clean prediction is wrong")
    if result._records.data_sha256() != document["data"]["sha256"]:
        report.lies.append("the hash of the data does not follow from the samples' rows")
    report.checked.append(f"totals over {total} samples")


def _chunks(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, size)):
        yield chunk


def _check_examples(
    result: EvaluationResult, report: Verification, model: Borrowed, threat: Threat, device: Any, batch_size: int
) -> None:
    table = result._records.table
    rows = {int(row["index"]): row for row in table}
    fallen = {int(i) for i in table["index"][table["correct"] & ~table["robust"]]}
    shown: set[int] = set()
    limit = float(threat.eps if not isinstance(threat.eps, Tensor) else threat.eps.max())
    low, high = threat.bounds or (-np.inf, np.inf)
    images = threat.bounds == (0.0, 1.0)
    bad: dict[str, list[int]] = {
        "outside the ball": [],
        "outside the box": [],
        "not fooling": [],
        "of another original": [],
    }
    rounded = 0
    for chunk in _chunks(result.examples, batch_size):
        index, original, adversarial = [i for i, _, _ in chunk], *(torch.stack([e[k] for e in chunk]) for k in (1, 2))  # type: ignore[misc]
        shown.update(index)
        labels = torch.tensor([int(rows[i]["label"]) if i in rows else -1 for i in index])
        slack = 1e-6 + limit * (
            1e-6 if adversarial.dtype in (torch.float32, torch.float64) else torch.finfo(adversarial.dtype).eps
        )
        sizes = threat.size(original, adversarial)
        wrong = predict(model.look(adversarial.to(device or "cpu"))).cpu() != labels
        report.fooling += int(wrong.sum())
        found = {
            "outside the ball": sizes > limit + slack,
            "outside the box": (adversarial.flatten(1).amin(1) < low) | (adversarial.flatten(1).amax(1) > high),
            "not fooling": ~wrong,
            "of another original": torch.tensor(
                [
                    i not in rows or d != int(rows[i]["digest"])
                    for i, d in zip(index, digest(original, labels), strict=True)
                ]
            ),
        }
        for name, mask in found.items():
            bad[name] += [i for i, is_bad in zip(index, mask.tolist(), strict=True) if is_bad]
        if images:
            saved = (adversarial.float() * 255).round().div(255).to(adversarial.dtype)
            rounded += int((predict(model.look(saved.to(device or "cpu"))).cpu() != labels).sum())
    report.examples, report.still_8bit = len(shown), rounded if images else None
    for name, indices in bad.items():
        if indices:
            report.lies.append(f"{len(indices)} saved examples are {name} (first: sample {indices[0]})")
    if shown != fallen:
        report.lies.append(
            f"{len(fallen - shown)} fooled samples have no example, {len(shown - fallen)} examples belong to no fooled sample"
        )
    report.checked.append(f"{len(shown)} examples: ball, box, original, fooling")


def _check_data(
    result: EvaluationResult,
    report: Verification,
    model: Model,
    data: Any,
    samples: int,
    seed: int,
    batch_size: int,
    device: Any,
) -> list[tuple[int, Any, int]] | None:
    """Hold the data against the rows; the samples claimed robust that are to be attacked again."""
    table = result._records.table
    rows = {int(row["index"]): row for row in table}
    claimed = torch.from_numpy(table["index"][table["robust"]].copy())
    order = Noise(seed, claimed).uniform((1,), "verify").squeeze(1).argsort()
    wanted = set(claimed[order[:samples]].tolist())
    recorded = result.document["settings"]["max_samples"]
    seen, other, clean, chosen = 0, 0, 0, []
    with placed(model, device) as where, borrow(model) as borrowed:
        for batch in Source(data, batch_size, recorded, int(result.document["seed"])):
            prediction = predict(borrowed.look(to_device(batch.x, where))).cpu()
            for i, (index, fingerprint) in enumerate(zip(batch.index.tolist(), digest(batch.x, batch.y), strict=True)):
                row = rows.get(index)
                if row is None:
                    continue
                seen += 1
                other += int(row["digest"]) != fingerprint
                clean += bool(prediction[i] == batch.y[i]) != bool(row["correct"])
                if index in wanted:
                    chosen.append((index, batch.x[i], int(batch.y[i])))
    if seen < len(rows) or other:
        report.lies.append(f"the data is not that of the run: {other} samples differ, {len(rows) - seen} are missing")
        return None
    if clean > max(1, 0.001 * seen):
        report.lies.append(f"{clean} of {seen} clean verdicts are not what the model says")
    report.checked.append(f"data and clean verdicts of {seen} samples")
    return chosen


def _attack_again(
    result: EvaluationResult, report: Verification, model: Model, chosen: list[tuple[int, Any, int]], threat: Threat,
    attacks: cascade.Attacks | None, seed: int, batch_size: int, device: Any,
) -> None:  # fmt: skip
    if not chosen:
        return
    chosen = sorted(chosen, key=lambda sample: sample[0])
    x, y = torch.stack([x for _, x, _ in chosen]), torch.tensor([y for _, _, y in chosen])
    index = torch.tensor([i for i, _, _ in chosen])
    same = cascade.recorded(result.document["attacks"], threat) if attacks is None else None
    if attacks is None and same is None:
        report.checked.append("no sample was attacked again: the recorded attacks are not sparring's own; name some")
        return

    def fallen(with_attacks: Any, with_seed: int) -> Tensor:
        again = evaluate(
            model,
            (x, y),
            threat,
            attacks=with_attacks,
            batch_size=batch_size,
            seed=with_seed,
            device=device,
            indices=index,
        )
        return ~again.robust

    if same is not None:
        lost = fallen(same, int(result.document["seed"]))
        allowed = 0 if x.dtype == torch.float64 else 0.001 * len(chosen)
        # kernels round differently in batches of another size: one verdict in a thousand may differ in float32
        if int(lost.sum()) > max(1, allowed):
            report.lies.append(
                f"{int(lost.sum())} of {len(chosen)} samples claimed robust fall to the recorded attacks with the recorded seed "
                f"(first: sample {int(index[lost][0])})"
            )
    lost = fallen(attacks if same is None else same, seed)
    report.attacked_again, report.fallen = len(chosen), int(lost.sum())
    report.checked.append(f"{len(chosen)} samples claimed robust, attacked again")
