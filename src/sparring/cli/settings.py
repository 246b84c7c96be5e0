"""Settings that commands share, each a frozen dataclass: its fields are the options, their docstrings the help."""

# No `from __future__ import annotations` here: cyclopts resolves inherited annotations in the subclass's module.

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from sparring.cli.values import Number, plain

EVERY = Parameter(group=Group("Every command", sort_key=9))
MODEL = Parameter(group=Group("Model", sort_key=1))
DATA = Parameter(group=Group("Data", sort_key=2))
THREAT = Parameter(group=Group("Threat", sort_key=3))
TEXT = Parameter(group=Group("Texts", sort_key=4))
RUN = Parameter(group=Group("Run", sort_key=5))

MANY = Parameter(consume_multiple=True)
"""One option takes all the values that follow: ``--model-args width=4 depth=2``."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every command understands."""

    config: Annotated[Path | None, EVERY] = None
    """YAML file with settings, one 'option: value' a line; options typed here win over the file."""
    print_config: Annotated[bool, EVERY] = False
    """Print the resolved settings as YAML, ready for --config, and stop."""
    json: Annotated[bool, EVERY] = False
    """The result as JSON on stdout; everything else goes to stderr."""
    debug: Annotated[bool, EVERY] = False
    """Show the traceback of an error."""

    def document(self) -> dict[str, Any]:
        """The settings that decide the result, keyed as in a --config file."""
        spoken = {f.name for f in fields(Settings)}
        return {f.name.replace("_", "-"): plain(getattr(self, f.name)) for f in fields(self) if f.name not in spoken}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """How to get the model. Commands that can do without narrow or widen ``model`` themselves."""

    model: Annotated[str | None, MODEL] = None
    """package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, or the name of a zoo network."""
    model_args: Annotated[list[str], MODEL, MANY] = field(default_factory=list)
    """Arguments of the factory: key=value ..."""
    weights: Annotated[Path | None, MODEL] = None
    """State dict to load: .safetensors, or what torch.load(weights_only=True) reads."""
    unsafe_pickle: Annotated[bool, MODEL] = False
    """Allow a full pickle as --weights. It can run any code: only for files that you made."""
    normalize: Annotated[tuple[str, str] | None, MODEL] = None
    """MEAN STD, one number or one a channel ('.485,.456,.406 .229,.224,.225'): the model gets (x - mean) / std."""
    output: Annotated[str | None, MODEL] = None
    """Which output holds the logits, for a model that returns a dict, tuple or object."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Where the images come from."""

    data: Annotated[str | None, DATA] = None
    """Image folder (one sub-folder a class), .npz with x and y, idx(.gz), CIFAR-10 batches, or a name:
    fashion-mnist, mnist, cifar10, gtsrb."""
    split: Annotated[str, DATA] = "test"
    """Which part of a named data set."""
    size: Annotated[int | None, DATA] = None
    """Side in pixels to which images of a folder are resized."""
    skip_bad: Annotated[bool, DATA] = False
    """Skip images that cannot be read, and name them, instead of stopping."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """Texts instead of images."""

    task: Annotated[Literal["images", "text"], TEXT] = "images"
    """text: --data is a .csv or .tsv with a column of texts and one of labels, or sms-spam, rotten-tomatoes, sst2, imdb,
    ag-news; --model is a folder of a text classifier."""
    text_column: Annotated[str | None, TEXT] = None
    """Column of the texts, by name or number; left out, it is found."""
    label_column: Annotated[str | None, TEXT] = None
    """Column of the labels."""
    encoding: Annotated[str, TEXT] = "utf-8"
    """Of the table: utf-8, latin-1, cp1252, ..."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SeedSettings(Settings):
    """Where, and with which draws."""

    seed: Annotated[int, RUN] = 0
    """All randomness is drawn from it."""
    device: Annotated[str, RUN] = "auto"
    """cpu, cuda, cuda:1, mps; auto takes the fastest there is."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SubjectSettings(DataSettings, ModelSettings):
    """A model and its images, both of which must be given."""

    model: Annotated[str, MODEL] = field()
    """package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, or the name of a zoo network."""
    data: Annotated[str, DATA] = field()
    """Image folder (one sub-folder a class), .npz with x and y, idx(.gz), CIFAR-10 batches, or a name:
    fashion-mnist, mnist, cifar10, gtsrb."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ThreatSettings(Settings):
    """What the attacker may do, where l0 is no choice."""

    norm: Annotated[Literal["linf", "l2", "l1"], THREAT] = "linf"
    """How the attacker's change is measured."""
    eps: Annotated[Number | None, THREAT] = None
    """Largest change, for images in [0, 1]; left out: 8/255 for linf, 0.5 for l2, 12 for l1."""


Norm = Literal["linf", "l2", "l1", "l0"]
