"""A learned attack in one safetensors file: its tensors, and its settings and threat as JSON in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from sparring.evaluation.files import replacing
from sparring.learned.fitting import FitRecord
from sparring.threat import Threat

if TYPE_CHECKING:
    from sparring.learned.base import LearnedAttack

Kind = TypeVar("Kind", bound="LearnedAttack")
MASK = "threat.mask"


def save(path: Path, attack: LearnedAttack) -> Path:
    settings, threat = attack.settings(), attack.threat
    about = {
        "attack": attack.name,
        "settings": {name: value for name, value in settings.items() if name not in ("fit", "sha256")},
        "fit": settings["fit"],
        "threat": {"norm": threat.norm, "eps": threat.eps, "typed": threat.typed, "bounds": threat.bounds},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in attack.tensors().items()}
    if threat.mask is not None:
        tensors[MASK] = threat.mask.cpu().contiguous()
    with replacing(path, "wb") as file:
        file.write(to_bytes(tensors, {"sparring": json.dumps(about)}))
    return path


def load(path: Path, cls: type[Kind]) -> Kind:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            about: Any = json.loads((file.metadata() or {}).get("sparring", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about is None:
            raise ValueError(f"no attack: weights without settings; expected what {cls.__name__}.save wrote")
        if about["attack"] != cls.__name__:
            raise ValueError(f"a {about['attack']}: load it with sp.{about['attack']}.load")
        settings, threat, fit = about["settings"], about["threat"], about["fit"]
        if settings["autocast"] is not None:
            settings["autocast"] = getattr(torch, settings["autocast"])
        bounds = None if threat["bounds"] is None else tuple(threat["bounds"])
        known = Threat(threat["norm"], threat["eps"], bounds, tensors.pop(MASK, None), threat["typed"])
        record = None if fit is None else FitRecord(**fit | {"fooled": tuple(fit["fooled"])})
        return cls.restored(known, settings, record).holding(tensors)
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path}: not readable as a saved {cls.__name__}, or cut short ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
