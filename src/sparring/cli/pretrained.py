"""Networks of timm and torchvision by name, with the normalisation that each was trained with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from sparring.cli.values import did_you_mean

Normalisation = tuple[Sequence[float], Sequence[float]]


def timm(name: str, arguments: dict[str, Any]) -> tuple[Any, Normalisation | None]:
    library = _library("timm")
    if not library.is_model(name.split(".")[0]):
        raise ValueError(f"--model timm:{name}: timm has no such network.{did_you_mean(name, library.list_models())}")
    arguments.setdefault("pretrained", True)
    model = call(f"timm:{name}", lambda **kwargs: library.create_model(name, **kwargs), arguments)
    trained = model.pretrained_cfg
    return model, (tuple(trained["mean"]), tuple(trained["std"]))


def torchvision(name: str, arguments: dict[str, Any]) -> tuple[Any, Normalisation | None]:
    models = _library("torchvision").models
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"--model torchvision:{name}: torchvision has no such network.{did_you_mean(name, known)}")
    pretrained = arguments.pop("pretrained", "weights" not in arguments)
    weights = models.get_model_weights(name).DEFAULT
    if pretrained:
        arguments["weights"] = weights
    model = call(f"torchvision:{name}", lambda **kwargs: models.get_model(name, **kwargs), arguments)
    preset = weights.transforms()
    return model, (tuple(preset.mean), tuple(preset.std))


def _library(name: str) -> Any:
    """timm or torchvision, or one line on why not: missing, or compiled for another torch."""
    import torch

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise ImportError(
                f"--model {name}:...: {name} is installed, but not {error.name}: pip install {error.name}"
            ) from None
        raise ImportError(f"--model {name}:... needs {name}, which is not installed: pip install {name}") from None
    except Exception as error:
        # A torchvision built for another torch fails while registering its operators, with a RuntimeError.
        raise ImportError(
            f"--model {name}:...: the installed {name} does not work with torch {torch.__version__} "
            f"({type(error).__name__}: {error}); install the {name} that belongs to this torch"
        ) from error


def call(spec: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call somebody else's code, so that whatever it raises says whose code it was."""
    try:
        model = factory(**arguments)
    except (ImportError, OSError):
        raise
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"--model {spec}: {spec}({shown}) raised {type(error).__name__}: {error}") from error
    if not callable(model):
        raise TypeError(
            f"--model {spec} gave a {type(model).__name__}; expected an nn.Module or a callable: images -> logits"
        )
    return model
