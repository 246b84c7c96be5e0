"""Where pictures and numbers go: to each of a Trainer's loggers, in the way that it shows pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from sparring.inspection import style

FOLDER = "pictures"


def show(trainer: Any, name: str, figure: Figure, step: int) -> None:
    """Gives the figure, called `name` (parts may be divided by /), to every logger of the first process; others do nothing.

    TensorBoard, Weights & Biases and MLflow show pictures themselves. For all others, `CSVLogger` among them, and where there
    is no logger, it becomes a PNG: pictures/NAME-STEP.png in the logger's folder, else in the Trainer's `default_root_dir`.
    Nothing is written under `fast_dev_run`. The figure belongs to no registry, so nothing is left open.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    pixels = style.rendered(figure)
    for logger in trainer.loggers or [None]:
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        if "TensorBoardLogger" in kinds:
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        elif "WandbLogger" in kinds:
            logger.log_image(key=name, images=[_picture(pixels)], step=step)
        elif "MLFlowLogger" in kinds:
            logger.experiment.log_image(logger.run_id, _picture(pixels), f"{name}-{step:07d}.png")
        else:
            style.save(figure, _folder(trainer, logger) / FOLDER / f"{name}-{step:07d}.png")


def note(trainer: Any, numbers: Mapping[str, float]) -> None:
    """Gives numbers to every logger, once, at this step. (`LightningModule.log` would give them again at every later one.)"""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(numbers), step=int(trainer.global_step))


def _picture(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _folder(trainer: Any, logger: Any) -> Path:
    for place in (getattr(logger, "log_dir", None), getattr(logger, "save_dir", None)):
        if place:
            return Path(place)
    return Path(trainer.default_root_dir)
