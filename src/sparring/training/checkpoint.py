"""Files of a training: weights, and the state from which it goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from sparring.evaluation.files import replacing
from sparring.wrappers import FromProbabilities, Normalized, Output

FORMAT = 1
STATE, BEST, LAST, HISTORY, TABLE = "state.pt", "best.safetensors", "last.safetensors", "history.json", "log.csv"
ADVERSARIAL = {name: name.replace(".", "_adversarial.") for name in (BEST, LAST)}  # of the other branch (bn="split")
ANEW = "start anew with resume=False (--fresh on the command line)"


def core(model: nn.Module) -> nn.Module:
    """The network inside of what torch.compile and sparring's wrappers put round it: whose weights are kept."""
    while isinstance(model, (Normalized, Output, FromProbabilities)) or hasattr(model, "_orig_mod"):
        inside = getattr(model, "_orig_mod", None) or getattr(model, "model", None)
        if not isinstance(inside, nn.Module):
            break
        model = inside
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's parameters and buffers on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in core(model).state_dict().items()}


def copied(value: Any) -> Any:
    """A copy on the CPU of what a `state_dict` holds."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return type(value)(copied(part) for part in value) if isinstance(value, (list, tuple)) else value


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As safetensors, which `zoo.load_weights` and ``sparring evaluate --weights`` read."""
    with replacing(path, "wb") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def write_json(path: Path, document: Any) -> None:
    with replacing(path) as file:
        json.dump(document, file, indent=1, allow_nan=False)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    with replacing(path, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def read_state(path: Path) -> dict[str, Any] | None:
    """The state that `write_state` wrote; None where there is none. ValueError, in one line, for anything else."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they lead the reader to
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} can't be read ({reason}): {ANEW}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no state of a training that this version wrote: {ANEW}")
    return state


def check_identity(path: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError where the folder holds a training with other settings: names the first that differs."""
    for name in now:
        if not _alike(name, earlier.get(name), now[name]):
            raise ValueError(
                f"{path.parent} holds a training with {name}={earlier.get(name)!r}, now {now[name]!r}: go on with the same "
                f"settings, choose another folder, or {ANEW}"
            )


def check_network(path: Path, earlier: Mapping[str, Any], model: nn.Module) -> None:
    """ValueError where the folder holds weights of other names or shapes: names the first that differs. Buffers may have
    any shape, and are their modules' affair."""
    named = model.state_dict()
    for name, weight in model.named_parameters():
        then = f"of shape {tuple(earlier[name].shape)}" if name in earlier else "missing"
        if name in named and then != (here := f"of shape {tuple(weight.shape)}"):
            raise ValueError(
                f"{path.parent} holds a training of another network ({name} was {then}, is {here}): choose another "
                f"folder, or {ANEW}"
            )


def _alike(name: str, a: Any, b: Any) -> bool:
    """Moments may differ by what rounding does to them, measured by the largest; everything else is the same or not."""
    if a == b or not name.startswith("moments") or not (a and b) or len(a) != len(b):
        return bool(a == b)
    if isinstance(a[0], list):
        return all(_alike(name, one, other) for one, other in zip(a, b, strict=True))
    return bool(max(abs(one - other) for one, other in zip(a, b, strict=True)) <= 1e-4 * max(map(abs, (*a, *b))))


def random_state() -> dict[str, Any]:
    """Of all the global generators, in values that torch.load(weights_only=True) reads."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  # other people's code draws from the global state
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def restore_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
