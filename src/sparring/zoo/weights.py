"""Reading weights safely: safetensors, or a torch file of tensors only; a full pickle must be asked for."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which checkpoints keep their weights
PREFIXES = ("module.", "_orig_mod.")  # what DataParallel, DDP and torch.compile put before every name
SHOWN = 3  # names in a message
# How reading damaged bytes can fail; all mean the same.
DAMAGED = (
    *(SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError),
    *(ImportError, IndexError, TypeError, struct.error, OverflowError, MemoryError),
)
Model = TypeVar("Model", bound=nn.Module)


def load_weights(model: Model, path: str | os.PathLike[str], unsafe_pickle: bool = False) -> Model:
    """Load a file's weights into the model and return the model. All or nothing: on an error the model is as before.

    Args:
        model: an nn.Module.
        path: .safetensors, or a state dict as torch.save wrote it, also as {"state_dict": …} and with "module."
            before the names.
        unsafe_pickle: also accept a file that can run any code when it is read, such as a whole pickled module.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, cut short, a pickle without `unsafe_pickle`, or weights of another network;
            the message names the first keys.
    """
    path = Path(path)
    return fit(model, read(path, unsafe_pickle), path)


def read(path: Path, unsafe_pickle: bool = False) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU; raises as `load_weights`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path, unsafe_pickle)
    except pickle.UnpicklingError as error:
        if unsafe_pickle:
            raise ValueError(f"{path}: not readable as weights ({_first_line(error)})") from error
        raise ValueError(
            f"{path}: holds more than tensors, or is no weights file; reading it as a full pickle runs "
            "whatever code is in it: only for a source that you trust, with unsafe_pickle=True (--unsafe-pickle)"
        ) from error
    except DAMAGED as error:
        raise ValueError(f"{path}: not readable as weights, or cut short ({_first_line(error)})") from error
    return _tensors(content, path)


def fit(model: Model, weights: Mapping[str, Tensor], path: Path) -> Model:
    """Copy tensors into the model if names and shapes are the same, else raise ValueError and change nothing."""
    own = model.state_dict()
    # Files from before BatchNorm counted its batches have no such counter; nothing is computed from it.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{what} {', '.join(keys[:SHOWN])}{f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("misshaped:", shapes))
        if keys
    ]
    if problems:
        raise ValueError(f"{path}: not the weights of this {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(dict(weights), strict=False)
    return model


def _load(path: Path, unsafe_pickle: bool) -> Any:
    with warnings.catch_warnings():  # on a foreign pickle torch warns of its protocol before it refuses it
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of a checkpoint or a module, without wrappers' prefixes."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping | nn.Module):
            content = content[key]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: holds {type(content).__name__}, expected tensors by name (a state dict)")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key!r} is {type(value).__name__}, expected tensors by name (a state dict)")
        tensors[key] = value
    for prefix in PREFIXES * 2:  # they nest in either order
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
