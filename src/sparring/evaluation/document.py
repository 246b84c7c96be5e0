"""The result document: everything `result.json` says, in one dict."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import sparring
from sparring.evaluation.cascade import AnyAttack, name_of, settings_of
from sparring.evaluation.pilot import Plan
from sparring.evaluation.records import Records
from sparring.evaluation.source import of_texts
from sparring.evaluation.statistics import Proportion
from sparring.evaluation.warnings import judge
from sparring.threat import Threat
from sparring.wrappers import Model

if TYPE_CHECKING:
    from sparring.evaluation.stream import Stream
    from sparring.evaluation.texts.stream import TextStream

SCHEMA_VERSION = 1


def schema() -> dict[str, Any]:
    """The JSON Schema that every `result.json` of this version obeys."""
    text = resources.files("sparring.evaluation").joinpath("result.schema.json").read_text("utf-8")
    return dict(json.loads(text))


def describe_model(model: Model, info: dict[str, Any] | None) -> dict[str, Any]:
    """Name, number of parameters, and a hash of every weight and buffer (None for a plain callable).

    A model is the same whether it is compiled or not: a run that was stopped goes on either way.
    """
    about: dict[str, Any] = {
        "name": getattr(model, "__name__", type(getattr(model, "_orig_mod", model)).__name__),
        "sha256": None,
        "parameters": None,
        "spec": None,
    }
    if isinstance(model, nn.Module):
        # not state_dict(), which leaves out non-persistent buffers such as the mean and std of sp.normalized
        tensors = [*model.named_parameters(), *model.named_buffers()]
        hasher = hashlib.sha256()
        for name, tensor in tensors:
            name = name.replace("_orig_mod.", "")
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hasher.update(_bytes(tensor))
        about["sha256"] = hasher.hexdigest() if tensors else None
        about["parameters"] = sum(p.numel() for p in model.parameters())
    return about | (info or {})


def describe_threat(threat: Threat) -> dict[str, Any]:
    eps = float(threat.eps.max()) if isinstance(threat.eps, Tensor) else float(threat.eps)
    return {
        "norm": threat.norm,
        "eps": eps if math.isfinite(eps) else None,
        "eps_typed": threat.typed,
        "bounds": None if threat.bounds is None else list(threat.bounds),
        "masked": threat.mask is not None,
    }


def fingerprint(
    model: dict[str, Any],
    threat: Threat,
    attacks: list[AnyAttack],
    seed: int,
    available: int | None,
    max_samples: int | None,
) -> dict[str, Any]:
    """What must be the same for an evaluation to go on where an earlier one was."""
    about = describe_threat(threat)
    about |= {
        name: hashlib.sha256(_bytes(part)).hexdigest()
        for name, part in (("eps_values", threat.eps), ("mask", threat.mask))
        if isinstance(part, Tensor)
    }
    return {
        "model": model["sha256"] or model["name"],
        "threat": about,
        "attacks": [{"name": name_of(attack), "settings": settings_of(attack)} for attack in attacks],
        "seed": seed,
        "number of samples": available,
        "max_samples": max_samples,
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def describe(
    *,
    run: Stream | TextStream,
    model: dict[str, Any],
    threat: dict[str, Any],
    seed: int,
    data: Any,
    data_info: dict[str, Any] | None,
    class_names: list[str] | None,
    identity: dict[str, Any],
    checkup: dict[str, int] | None = None,
) -> dict[str, Any]:
    """What a run knows beside the samples' records, keyed as in the document that `summarize` makes of both."""
    dataset = getattr(data, "dataset", data)
    names = class_names or getattr(dataset, "classes", None)
    about_data: dict[str, Any] = {
        "name": getattr(dataset, "name", None)
        or (_kind(data) if isinstance(data, (tuple, list)) else type(dataset).__name__),
        "available": run.source.available,
        "shape": run.shape,
        "classes": run.model.classes or 2,
        "class_names": list(names) if names is not None else None,
        "spec": getattr(dataset, "spec", None),
    }
    first = next(run.model.model.parameters(), None) if isinstance(run.model.model, nn.Module) else None
    device = run.device or (torch.device("cpu") if first is None else first.device)
    return {
        "finished": run.finished,
        "seconds": round(run.seconds, 3),
        "seed": seed,
        "tool": {"name": "sparring", "version": sparring.__version__},
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "compiled": run.model.layout.compiled,
        },
        "settings": {"batch_size": run.batch_size, "time_limit": run.time_limit, "max_samples": run.source.limit},
        "threat": threat,
        "model": {**model, "passes": run.model.cost},
        "data": about_data | (data_info or {}),
        "attacks": [
            {
                "name": stage.name,
                "settings": stage.settings,
                "access": getattr(stage.attack, "access", None),
                "seconds": round(stage.seconds, 3),
            }
            for stage in run.stages
        ],
        "access": run.model.access,
        "plan": None if run.plan is None else run.plan.to_json(),
        "checkup": checkup,
        "identity": identity,
    }


def _kind(data: Any) -> str:
    return "texts" if of_texts(data[0]) else "tensors"  # a pair of lists, or a list of pairs


def summarize(
    facts: dict[str, Any], records: Records, gallery: list[dict[str, Any]], shown: int | None = None
) -> dict[str, Any]:
    """The document: the facts of one run, or of many that shared the work, and what its records, sorted, add up to.

    shown: examples that the gallery was chosen from (default: those in it), two answers of the model each.
    """
    table = records.table
    total, right, robust = len(table), int(table["correct"].sum()), int(table["robust"].sum())
    cost = facts["model"]["passes"]
    met = cost * total * (Plan.from_json(facts["plan"]).looks if facts["plan"] else 1)
    shown = 2 * cost * (len(gallery) if shown is None else shown)
    stage_passes = table["passes"].sum(axis=0, dtype=np.int64)
    forwards, backwards = int(table["forwards"].sum()), int(table["backwards"].sum())
    checkup = facts["checkup"] or {}
    checked = [checkup.get(way, 0) for way in ("forwards", "backwards")]
    pilot = [(facts["plan"] or {}).get(way, 0) for way in ("forwards", "backwards")]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "data": {"sha256": records.data_sha256(), "samples": total, **facts["data"]},
        "clean_accuracy": Proportion(right, total).to_dict(),
        "robust_accuracy": Proportion(robust, total).to_dict(),
        "attacks": _attacks(facts["attacks"], records),
        "passes": {
            "forwards": forwards + shown + checked[0] + pilot[0],
            "backwards": backwards + checked[1] + pilot[1],
            "clean": met,
            "distance": forwards - met - int(stage_passes[:, 0].sum()),
            "distance_backwards": backwards - int(stage_passes[:, 1].sum()),
            "gallery": shown,
            "pilot": pilot[0],
            "pilot_backwards": pilot[1],
            "checkup": checked[0],
            "checkup_backwards": checked[1],
        },
        "queries": {
            "most": int(table["forwards"].max(initial=0)),
            "mean": float(table["forwards"].mean()) if total else 0.0,
        },
        "per_class": per_class(records, facts["data"]["class_names"]),
        "curve": curve(records, facts["threat"]["eps"]),
        "gallery": gallery,
        "warnings": [
            asdict(warning)
            for warning in judge(
                records,
                classes=facts["data"]["classes"],
                attacks=facts["attacks"],
                checkup=facts["checkup"],
                plan=facts["plan"],
            )
        ],
        "files": {},
    }


def _attacks(attacks: list[dict[str, Any]], records: Records) -> list[dict[str, Any]]:
    table, rows = records.table, []
    standing = int(table["correct"].sum())
    for i, attack in enumerate(attacks):
        fallen = int((table["attack"] == i).sum())
        rows.append(
            {
                "name": attack["name"],
                "settings": attack["settings"],
                "access": attack["access"],
                "attacked": int((table["passes"][:, i, 0] > 0).sum()),
                "fooled": fallen,
                "robust_accuracy": Proportion(standing - fallen, len(table)).to_dict(),
                "forwards": int(table["passes"][:, i, 0].sum(dtype=np.int64)),
                "backwards": int(table["passes"][:, i, 1].sum(dtype=np.int64)),
                "seconds": attack["seconds"],
            }
        )
        standing -= fallen
    return rows


def per_class(records: Records, names: list[str] | None) -> list[dict[str, Any]]:
    table, rows = records.table, []
    for label in np.unique(table["label"]).tolist():
        mine = table[table["label"] == label]
        name = names[label] if names is not None and label < len(names) else None
        counts = {"samples": len(mine), "correct": int(mine["correct"].sum()), "robust": int(mine["robust"].sum())}
        rows.append({"label": label, "name": name, **counts})
    return rows


def curve(records: Records, eps: float | None, points: int = 21) -> list[dict[str, Any]]:
    """Accuracy against eps: at each eps, the share of samples with no example at that distance or nearer.

    Beyond the run's eps, in as many steps again, where a search for the smallest perturbation has told about it.
    """
    table = records.table
    distance = np.where(np.isnan(table["distance"]), np.inf, table["distance"])
    if eps is None:
        eps = float(distance[np.isfinite(distance)].max(initial=0.0))
    rows, grid = [], np.linspace(0.0, eps, points)
    farthest = float(distance[np.isfinite(distance)].max(initial=0.0))
    if farthest > eps * (1 + 1e-6):
        grid = np.concatenate([grid, np.linspace(eps, farthest, points)[1:]])
    for at in grid:
        # an example found at eps may sit there but for rounding
        standing = table["correct"] & (distance > at * (1 + 1e-6))
        share = Proportion(int((table["robust"] if at == eps else standing).sum()), len(table))
        rows.append({"eps": float(at), "value": share.value, "low": share.low, "high": share.high})
    return rows
