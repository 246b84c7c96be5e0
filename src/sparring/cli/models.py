"""From what a person typed to a model: a factory in a module or a file, timm, torchvision, or the zoo."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparring.cli import pretrained
from sparring.cli.pretrained import Normalisation
from sparring.cli.settings import ModelSettings
from sparring.cli.values import as_float, did_you_mean

if TYPE_CHECKING:
    import torch

FORMS = "package.module:factory, file.py:factory, timm:NAME, torchvision:NAME or a zoo name"


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, then MPS, then the CPU. ValueError for a device that this machine lacks."""
    import torch

    from sparring.evaluation.placing import own_device

    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = own_device(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"--device {name}: not usable here; expected auto, cpu, cuda, cuda:N or mps") from None
    return device


def load(settings: ModelSettings, device: torch.device) -> Any:
    """The model that the settings describe: built, weights loaded, output and normalisation chosen, in eval mode.

    Raises:
        ValueError, TypeError, FileNotFoundError, ImportError: one line on what was given and what is expected.
    """
    from torch import nn

    import sparring
    from sparring import zoo

    if settings.model is None:
        raise ValueError(f"--model is missing; give {FORMS}")
    arguments = parse_arguments(settings.model_args)
    weights = _existing(settings.weights)
    if weights is not None and settings.model.startswith(("timm:", "torchvision:")):
        arguments.setdefault("pretrained", False)
    model, own = build(settings.model, arguments)
    if weights is not None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"--weights needs an nn.Module, but {settings.model} gave a {type(model).__name__}")
        zoo.load_weights(model, weights, unsafe_pickle=settings.unsafe_pickle)
    if settings.output is not None:
        model = sparring.output(model, int(settings.output) if settings.output.isdecimal() else settings.output)
    normalisation = channels(settings.normalize) if settings.normalize else own
    if normalisation is not None:
        model = sparring.normalized(model, *normalisation)
    return model.eval().to(device) if isinstance(model, nn.Module) else model


def spec(settings: ModelSettings) -> dict[str, Any]:
    """What a result folder remembers, to load the same model again; keyed like the settings."""
    keys = ("model", "model-args", "weights", "normalize", "output")
    document = settings.document()
    if settings.weights is not None:
        document["weights"] = str(settings.weights.expanduser().resolve())
    return {key: document[key] for key in keys if document[key] not in (None, [])}


def parse_arguments(pairs: Sequence[str], option: str = "--model-args") -> dict[str, Any]:
    """``["width=4", "name=x"]`` as keyword arguments; values are read as YAML, so ``true`` and ``[1, 2]`` work.

    >>> parse_arguments(["width=4", "bias=false"])
    {'width': 4, 'bias': False}
    """
    import yaml

    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{option} {pair!r}: expected key=value, such as width=4")
        try:
            arguments[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            arguments[key] = value
    return arguments


def channels(pair: tuple[str, str]) -> tuple[list[float], list[float]]:
    """MEAN and STD as typed, each one number or a comma-separated one a channel."""
    try:
        mean, std = ([as_float(part) for part in text.split(",")] for text in pair)
    except ValueError as error:
        raise ValueError(f"--normalize MEAN STD: {error}") from None
    if min(std) <= 0:
        raise ValueError(f"--normalize {pair[0]} {pair[1]}: STD must be above 0")
    return mean, std


def build(spec: str, arguments: dict[str, Any]) -> tuple[Any, Normalisation | None]:
    """A model by its spec, and the normalisation that it was trained with where its source tells."""
    prefix, _, name = spec.partition(":")
    if prefix == "timm" and name:
        return pretrained.timm(name, arguments)
    if prefix == "torchvision" and name:
        return pretrained.torchvision(name, arguments)
    if ":" in spec:
        return _factory(spec, arguments), None
    return _zoo(spec, arguments), None


def _zoo(name: str, arguments: dict[str, Any]) -> Any:
    from sparring import zoo

    known = zoo.names()
    if name not in known:
        hint = did_you_mean(name, known) or f" Zoo: {', '.join(known)}."
        raise ValueError(f"--model {name!r} is no zoo network.{hint} A model is {FORMS}")
    return pretrained.call(name, lambda **kwargs: zoo.build(name, **kwargs), arguments)


def _factory(spec: str, arguments: dict[str, Any]) -> Any:
    place, _, name = spec.rpartition(":")
    module = _module_from_file(Path(place)) if place.endswith(".py") else _module(place)
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            public = [known for known in vars(target) if not known.startswith("_")]
            raise ValueError(f"--model {spec}: {place} has no {part!r}.{did_you_mean(part, public)}")
        target = getattr(target, part)
    from torch import nn

    if isinstance(target, nn.Module):
        if arguments:
            raise ValueError(f"--model {spec} is a finished model and takes no --model-args")
        return target
    if not callable(target):
        raise TypeError(f"--model {spec} is a {type(target).__name__}; expected a function or class that makes a model")
    return pretrained.call(spec, target, arguments)


def _module(name: str) -> ModuleType:
    _see(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            near = did_you_mean(name, [*(p.stem for p in Path.cwd().glob("*.py")), *sys.stdlib_module_names])
            raise ValueError(
                f"--model: no module named {error.name!r} (looked in {Path.cwd()} and the Python path).{near}"
            ) from None
        raise ImportError(f"--model: importing {name} failed: {error}") from error
    except Exception as error:
        raise ImportError(f"--model: importing {name} raised {type(error).__name__}: {error}") from error


def _module_from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        near = did_you_mean(path.name, [n for n in _names(path.parent) if n.endswith(".py")])
        raise FileNotFoundError(f"--model: no file {path}.{near}")
    _see(path.resolve().parent)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Registered under its name, as pickling and dataclasses inside the file expect.
    sys.modules.setdefault(path.stem, module)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ImportError(f"--model: running {path} raised {type(error).__name__}: {error}") from error
    return module


def _see(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _existing(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    path = weights.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--weights {weights}: no such file.{did_you_mean(path.name, _names(path.parent))}")
    return path


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*")]
