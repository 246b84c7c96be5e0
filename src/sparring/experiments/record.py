"""What every experiment shares: how its results are written, and the check of an optimiser's settings."""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparring.inspection import style

Progress = Callable[[str, float], None]
"""progress(message, fraction done)"""


def part(progress: Progress | None, name: str, start: float, length: float, whole: float) -> Progress | None:
    """The progress of a part that goes from `start` to `start + length`, of `whole`, and is called `name`."""
    if progress is None:
        return None
    return lambda message, done: progress(f"{name}: {message}", (start + done * length) / whole)


class Result(Protocol):
    """What an experiment returns."""

    @property
    def rows(self) -> list[dict[str, Any]]: ...

    def to_json(self) -> dict[str, Any]: ...

    def figure(self) -> Figure: ...


def document(experiment: str, seed: int, settings: Mapping[str, Any], **measured: Any) -> dict[str, Any]:
    """A JSON-able dict: what was run, with what, and what came out. Numbers that are not finite become null."""
    versions = {
        "sparring": version("sparring"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    head = {"experiment": experiment, "seed": seed, "settings": dict(settings), "versions": versions}
    plain: dict[str, Any] = _plain({**head, **measured})
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write(result: Result, name: str, out: str | os.PathLike[str]) -> list[Path]:
    """NAME.png, NAME.svg and numbers.json in the folder `out`, each whole or not at all."""
    folder = Path(out)
    figure = result.figure()
    written = [style.save(figure, folder / f"{name}{suffix}") for suffix in (".png", ".svg")]
    target = folder / "numbers.json"
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return [*written, target]


def check_settings(optimizer: type[torch.optim.Optimizer], settings: Mapping[str, Any]) -> None:
    """ValueError that names the settings an optimiser has, where one is given that it has not."""
    known = [name for name in inspect.signature(optimizer).parameters if name not in ("params", "lr")]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"{optimizer.__name__} has no setting {unknown[0]!r}: it has {', '.join(known)}")


def dress_across(axes: Axes) -> None:
    """The common look, with lines that help to read values across instead of upwards."""
    style.dress(axes)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=style.GRID, linewidth=0.8, linestyle="-")
