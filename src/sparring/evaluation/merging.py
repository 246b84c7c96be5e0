"""`merge`: the shares of an evaluation become the result that one process would have written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sparring.evaluation.checkup import add
from sparring.evaluation.kinds import records_for, result_of
from sparring.evaluation.parts import Parts, part_of
from sparring.evaluation.records import Records
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.shards import Working, fingerprint, workings
from sparring.evaluation.store import check_fingerprint, read_journal, read_settings

OWN = {"finished", "seconds", "environment", "settings", "attacks", "checkup"}  # what each share may say in its own way


def merge(folder: str | Path) -> EvaluationResult:
    """One result out of the shards in `folder`, written there; every sample of the data is in it exactly once.

    The shards (`evaluate(..., shard=(i, n), out=folder)`) may have run anywhere, if their folders `shard-i-of-n` now lie in
    this one. They stay; when the result is written they are not needed any more. Counts, intervals, curve and warnings come
    from the samples' rows by the code that a single run uses, and examples are copied one at a time: memory holds the rows.
    `seconds` are those of the slowest shard, each attack's the sum.

    Raises FileNotFoundError or ValueError, in one line, where shards or samples are missing, there twice, or of different
    evaluations.
    """
    folder = Path(folder)
    found = workings(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no shards: expected folders named shard-0-of-4 and so on")
    complete = _complete(folder, found)
    known = [share.read() for share in complete]
    facts = _agreed(complete, [share["facts"] for share in known])
    identity = facts["identity"]
    for share in complete:
        check_fingerprint(read_settings(share.path), fingerprint(identity, (share.number, share.of)), share.path)
    if (folder / "result.json").exists():
        check_fingerprint(EvaluationResult.load(folder).document["identity"], identity, folder)
    records, paths = _gather(complete, known, records_for(facts))
    if facts["finished"]:
        _check_whole(folder, complete, [share["seen"] for share in known], facts, records)
    records.sort()
    shown = sorted(
        (entry for share in known for entry in share["gallery"]), key=lambda entry: (entry["distance"], entry["index"])
    )
    result_of(facts, Parts(records, lambda part: paths[part]), shown).save(folder)
    return EvaluationResult.load(folder)


def _complete(folder: Path, found: list[Working]) -> list[Working]:
    """The shares of one number that have all come to an end."""
    missing: dict[int, list[int]] = {}
    for of in sorted({share.of for share in found}):
        ended = {share.number: share for share in found if share.of == of and share.ended}
        missing[of] = [number for number in range(of) if number not in ended]
        if not missing[of]:
            return list(ended.values())
    of = min(missing, key=lambda of: len(missing[of]) / of)
    begun = [share.number for share in found if share.of == of]
    raise ValueError(
        f"{folder}: of {of} shards "
        + " and ".join(
            f"{_listed(numbers)} {'is' if len(numbers) == 1 else 'are'} {what}"
            for what, numbers in (
                ("missing", [number for number in missing[of] if number not in begun]),
                ("not finished", [number for number in missing[of] if number in begun]),
            )
            if numbers
        )
        + f": run them with --shard {missing[of][0]}/{of} and the same settings"
    )


def _agreed(shares: list[Working], facts: list[dict[str, Any]]) -> dict[str, Any]:
    """What all shares say of the run. ValueError where they were not part of the same one."""
    first = facts[0]
    for share, fact in zip(shares, facts, strict=True):
        for name in (name for name in first if name not in OWN):
            if fact.get(name) != first[name]:
                ours, theirs = _brief(first[name], fact.get(name))
                raise ValueError(
                    f"{share} and {shares[0]} differ in {name} ({theirs} and {ours}): not shards of one evaluation"
                )
    settings = {name: value for name, value in first["settings"].items() if name != "shard"}
    return first | {
        "finished": all(fact["finished"] for fact in facts),
        "checkup": add(*(fact["checkup"] for fact in facts if fact["checkup"])) or None,
        "seconds": max(fact["seconds"] for fact in facts),
        "settings": settings | {"shards": len(shares)},
        "attacks": [
            row | {"seconds": round(sum(fact["attacks"][i]["seconds"] for fact in facts), 3)}
            for i, row in enumerate(first["attacks"])
        ],
    }


def _brief(one: Any, other: Any) -> tuple[str, str]:
    """Two values that differ; of two dicts only the first entry that does."""
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(name for name in [*one, *other] if one.get(name) != other.get(name))
        return f"{name} {one.get(name)!r}", f"{name} {other.get(name)!r}"
    return repr(one), repr(other)


def _gather(shares: list[Working], known: list[dict[str, Any]], records: Records) -> tuple[Records, list[Path]]:
    """The rows of all shares, taken into these records, and the part files that they speak of, numbered through."""
    owner = np.zeros(0, np.int32)
    paths: list[Path] = []
    for i, (share, knows) in enumerate(zip(shares, known, strict=True)):
        first = len(records)
        for row in knows["under way"]:
            records.take(json.dumps(row))
        twice: list[int] = []

        def take(line: bytes, first: int = first, twice: list[int] = twice) -> None:
            place = records.take(line)
            if place < first:
                twice.append(place)

        read_journal(share.path, take)
        if twice:
            raise ValueError(
                f"sample {int(records.table['index'][twice[0]])} is both in {shares[owner[twice[0]]]} and in {share}: "
                "each may count once; run both shards again in an empty folder"
            )
        owner = np.append(owner, np.full(len(records) - first, i, np.int32))
        parts = records.table["part"][first:]
        count = int(parts.max(initial=-1)) + 1
        parts[parts >= 0] += len(paths)
        paths += [part_of(share.path, number) for number in range(count)]
    return records, paths


def _check_whole(folder: Path, shares: list[Working], seen: list[int], facts: dict[str, Any], records: Records) -> None:
    """ValueError where the shares did not meet every sample of the data, or have lost one."""
    limits = [n for n in (facts["data"]["available"], facts["settings"]["max_samples"]) if n is not None]
    total = min(limits) if facts["data"]["available"] is not None else sum(seen)
    for share, count in zip(shares, seen, strict=True):
        if count != (due := len(range(share.number, total, share.of))):
            raise ValueError(f"{share} has met {count} samples, expected {due} of {total}: run that shard again")
    if len(records) != total:
        gone = sorted(set(range(total)) - set(records.table["index"].tolist()))
        named = f" (missing: {_listed(gone)})" if len(gone) + len(records) == total else ""
        raise ValueError(f"the shards in {folder} hold {len(records)} of {total} samples{named}: run them again")


def _listed(numbers: Iterable[int], most: int = 8) -> str:
    numbers = list(numbers)
    texts = [str(number) for number in numbers[:most]] + (["…"] if len(numbers) > most else [])
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
