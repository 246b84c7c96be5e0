"""The experiments' trained networks: one recipe each, trained once and kept.

They lie as safetensors in `$SPARRING_CACHE` (default `~/.cache/sparring`), under a name that holds a hash of the
recipe, of the training data and of the torch version, so that a changed recipe never finds an old network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparring import data, zoo
from sparring.attacks import FGSM
from sparring.experiments.record import Progress
from sparring.threat import Linf
from sparring.training import MaxNorm, Mixed, Standard, fit

TRAINER_VERSION = 2
"""Raised when the training loop changes what it computes."""


@dataclass(frozen=True)
class Recipe:
    """How a network is made: what it is, and how long and how fast it learns.

    fgsm: train half on clean samples and half on FGSM examples of this eps (no random start), or None.
    """

    network: str
    epochs: int
    lr: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    weight_decay: float = 0.0
    max_norm: float | None = None
    augment: bool = False
    fgsm: float | None = None
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        return {**vars(self), "arguments": dict(self.arguments)}


SOFTMAX = Recipe("softmax", epochs=6, lr=1e-3)
MAXOUT = Recipe(
    "maxout", epochs=15, lr=2e-3, max_norm=2.0, arguments={"units": 240, "pieces": 4, "dropout": (0.2, 0.3)}
)
"""Chosen by the error on the last 5,000 training images of MNIST, before any test image was looked at."""
CONV_MAXOUT = Recipe("conv-maxout", epochs=4, lr=1.5e-3, batch_size=64, arguments={"width": 16, "dropout": (0.0, 0.1)})
"""Chosen for its cost: some minutes on one core."""


def fgsm_trained(recipe: Recipe, eps: float) -> Recipe:
    """The same network trained on FGSM examples, without dropout, under which it would not learn them."""
    return replace(recipe, fgsm=eps, epochs=8, arguments={**recipe.arguments, "dropout": (0.0, 0.0)})


def trained(
    recipe: Recipe, x: Tensor, y: Tensor, classes: int, *, progress: Progress | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of that recipe for images x (N, C, H, W) in [0, 1] with labels y (N,), in eval mode; its settings.

    From the cache where it is there; else it is trained and kept. ValueError for a damaged file in the cache, by name.
    """
    settings = {**recipe.settings(), "in_channels": x.shape[1], "size": x.shape[2], "classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = zoo.build(recipe.network, in_channels=x.shape[1], size=x.shape[2], classes=classes, **recipe.arguments)
    key = {**settings, "trainer": TRAINER_VERSION, "torch": str(torch.__version__), "data": fingerprint(x, y)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache() / f"{recipe.network}-{digest}.safetensors"
    if path.is_file():
        _load(model, path)
        return model.eval(), settings
    fit(
        model,
        (x, y),
        Standard() if recipe.fgsm is None else Mixed(FGSM(Linf(recipe.fgsm)), seed=recipe.seed),
        validation=False,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer="adam",
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        callbacks=[] if recipe.max_norm is None else [MaxNorm(recipe.max_norm)],
        augment="mirror-shift" if recipe.augment else None,
        seed=recipe.seed,
        progress=False if progress is None else (lambda now: progress(now.text, now.fraction)),
    )
    _keep(model, path, key)
    return model.eval(), settings


def cache() -> Path:
    """Where trained networks are kept: `$SPARRING_CACHE`, or `~/.cache/sparring`."""
    return Path(os.environ.get("SPARRING_CACHE") or Path.home() / ".cache" / "sparring")


def fingerprint(x: Tensor, y: Tensor) -> str:
    """A hash of the samples' values, shapes and labels."""
    digest = hashlib.sha256(repr((tuple(x.shape), str(x.dtype))).encode())
    for part in (x, y):
        digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _load(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not the network that its name says ({reason}): delete it to train anew") from error


def _keep(model: nn.Module, path: Path, key: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(model.state_dict(), partial, metadata={"recipe": json.dumps(key, sort_keys=True)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_pair(name: str) -> tuple[data.LabelledImages, data.LabelledImages]:
    """The (train, test) parts of a data set, with a line on what else there is where it is missing."""
    try:
        return data.open(name, "train"), data.open(name, "test")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (fashion-mnist:bundled is always here)") from error
