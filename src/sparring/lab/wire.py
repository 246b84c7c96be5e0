"""What goes to the page: server-sent events of small JSON, pictures in them as deflated bytes."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.inspection.pixels import pixels
from sparring.lab.networks import Network
from sparring.lab.watching import Answer, Frame

PREVIEW = 256  # pixels a side, at most
LEVELS = 15


def preview(x: Tensor) -> Tensor:
    """(C, H, W), no larger than what a page shows."""
    side = max(x.shape[1:])
    if side <= PREVIEW:
        return x
    height, width = (max(1, round(n * PREVIEW / side)) for n in x.shape[1:])
    return F.interpolate(x[None], (height, width), mode="area")[0]


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 1)).decode("ascii")


def picture(x: Tensor) -> dict[str, Any]:
    """{width, height, channels, data}: the pixels of x (C, H, W) as 8 bits, (H, W, C)."""
    shown = pixels(preview(x))
    height, width = shown.shape[:2]
    channels = shown.shape[2] if shown.ndim == 3 else 1
    return {"width": width, "height": height, "channels": channels, "data": packed(shown.tobytes())}


def change(original: Tensor, moved: Tensor) -> dict[str, Any]:
    """{scale, data}: the perturbation, (H, W, C), as whole numbers from −15 to 15 of which each is scale / 15."""
    delta = preview(moved.float() - original.float())
    if delta.shape[0] not in (1, 3):
        delta = delta.mean(0, keepdim=True)
    scale = float(delta.abs().max())
    steps = (delta * (LEVELS / scale) if scale > 0 else delta).round().to(torch.int8)
    return {"scale": scale, "data": packed(steps.permute(1, 2, 0).contiguous().numpy().tobytes())}


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def top(network: Network, logits: Tensor, also: tuple[int | None, ...] = ()) -> dict[str, Any]:
    """The five likeliest classes, and the probabilities of those that are followed."""
    share = logits.float().softmax(0)
    return {
        "top": [[label, number(p)] for label, p in network.top(logits)],
        "followed": [None if label is None else number(float(share[label])) for label in also],
    }


def frame(network: Network, original: Tensor, seen: Frame, also: tuple[int | None, ...]) -> dict[str, Any]:
    return {
        "at": seen.at,
        "objective": number(seen.objective),
        "fooled": seen.fooled,
        "norm": number(seen.norm),
        **top(network, seen.logits, also),
        "change": change(original, seen.x),
    }


def answer(network: Network, found: Answer, also: tuple[int | None, ...]) -> dict[str, Any]:
    return {
        "success": found.success,
        "fools": found.fools,
        "norm": number(found.norm),
        "success_8bit": found.success_8bit,
        "norm_8bit": number(found.norm_8bit),
        **top(network, found.logits, also),
        "top_8bit": top(network, found.logits_8bit)["top"],
    }


def event(kind: str, document: dict[str, Any]) -> bytes:
    """One server-sent event, but for its id."""
    body = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {body}\n\n".encode()
