"""The examples that a report shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.evaluation.parts import Parts
from sparring.evaluation.placing import to_device
from sparring.wrappers import AttackedInput

MOST = 12


def gallery(store: Parts, model: Borrowed, names: list[str], device: torch.device | None) -> list[dict[str, Any]]:
    """The fooled samples nearest to their originals, with the model's five best guesses before and after.

    names: the attacks'. The store's records must be sorted. Two forwards a sample.
    """
    if isinstance(model.model, AttackedInput):  # the examples do not hold its other inputs
        return []
    table = store.records.table
    places = sorted(store.fooled(), key=lambda place: (float(table["distance"][place]), place))[:MOST]
    shown = []
    for place, (index, original, adversarial) in zip(places, store.examples(places), strict=True):
        logits = model.look(to_device(torch.stack([original, adversarial]), device))
        row = table[place]
        before, after = (_guesses(row_logits) for row_logits in logits)
        shown.append(
            {
                "index": index,
                "label": int(row["label"]),
                "attack": names[int(row["attack"])],
                "norm": float(row["norm"]),
                "distance": float(row["distance"]),
                "before": before,
                "after": after,
            }
        )
    return shown


def _guesses(logits: Tensor, most: int = 5) -> list[dict[str, Any]]:
    chances, classes = logits.float().softmax(0).topk(min(most, len(logits)))
    return [
        {"label": label, "probability": chance}
        for label, chance in zip(classes.tolist(), chances.tolist(), strict=True)
    ]
