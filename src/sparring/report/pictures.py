"""The pictures of the gallery: tensors as PNG data URIs, 1-D samples as drawn lines."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from sparring.inspection import pixels as px

_LARGEST = 448
_SMALL = 96


@dataclass(frozen=True)
class Panel:
    """One picture: ``uri`` of a PNG with its size in pixels, or ``lines`` (SVG polyline points, 100 x 60 units)."""

    title: str
    width: int = 0
    height: int = 0
    uri: str = ""
    lines: tuple[str, ...] = ()
    pixelated: bool = False


def panels(original: Tensor, adversarial: Tensor, bounds: tuple[float, float]) -> tuple[list[Panel], str]:
    """Original, amplified perturbation and adversarial example of one sample, and a note (or "") on how they are shown.

    A shape that is neither an image nor a signal gives no panels, and a note that says so.

    Raises:
        ValueError: the two shapes differ.
    """
    if original.shape != adversarial.shape:
        raise ValueError(
            f"picture() gave an original of shape {tuple(original.shape)} and an adversarial example of shape "
            f"{tuple(adversarial.shape)}: both must be one sample of the same shape"
        )
    kind = px.layout(original.shape)
    if kind == "none":
        return [], f"No picture: samples of shape {tuple(original.shape)} are neither images nor signals."
    factor = px.amplification(original, adversarial, bounds)
    change = px.amplified(original, adversarial, factor, bounds)
    titles = ("original", f"perturbation ×\u00a0{factor:g}", "adversarial")
    shown = [_panel(title, sample, kind, bounds) for title, sample in zip(titles, (original, change, adversarial))]
    notes = []
    if kind == "image":
        if original.ndim == 3 and original.shape[0] not in (1, 3, 4):
            notes.append(f"The mean of the {original.shape[0]} channels.")
        if max(original.shape[-2:]) > _LARGEST:
            notes.append(f"Shown smaller than its {original.shape[-1]} × {original.shape[-2]} pixels.")
    return shown, " ".join(notes)


def _panel(title: str, sample: Tensor, kind: str, bounds: tuple[float, float]) -> Panel:
    if kind == "line":
        return Panel(title, lines=_lines(sample, bounds))
    image = Image.fromarray(px.pixels(sample, bounds))
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return Panel(title, image.width, image.height, uri, pixelated=max(image.size) <= _SMALL)


def _lines(sample: Tensor, bounds: tuple[float, float]) -> tuple[str, ...]:
    low, high = bounds
    rows = px.signal(sample)
    across = 100 / max(rows.shape[1] - 1, 1)
    heights = 59 - 58 * (rows - low) / (high - low)
    return tuple(" ".join(f"{i * across:.4g},{y:.4g}" for i, y in enumerate(row)) for row in heights)
