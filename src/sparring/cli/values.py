"""The kinds of value that a person types, numbers such as ``8/255``. Nothing here imports torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import App, Token
    from cyclopts.argument import ArgumentCollection


NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}


def as_float(text: str | float) -> float:
    """The value of a number as people write it: ``0.03``, ``1e-3`` or ``8/255``.

    >>> round(as_float("8/255"), 4)
    0.0314

    Raises:
        ValueError: it is neither a finite number nor a fraction of two.
    """
    parts = str(text).split("/")
    try:
        value = float(parts[0]) if len(parts) == 1 else float(parts[0]) / float(parts[1])
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if len(parts) > 2 or not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number; write it as 0.03, 1e-3 or 8/255")
    return value


def _number(kind: Any, tokens: Sequence[Token]) -> str:
    text = tokens[0].value.strip()
    as_float(text)
    return text


if TYPE_CHECKING:
    Number = str
else:
    # A name of its own, so that --help says `--eps NUMBER` and not `--eps STR`.
    Number = Annotated[type("Number", (str,), {}), Parameter(converter=_number)]
"""A number kept as it was typed, so that ``8/255`` reaches the result document as ``8/255``."""


def check_whole(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A cyclopts config source that fills in nothing: options that count take no fractions (cyclopts would round them).

    Raises:
        ValueError: one does; the line names the option.
    """
    for argument in arguments:
        kinds = {argument.hint, *get_args(argument.hint)}
        if int not in kinds or float in kinds:
            continue
        for token in argument.tokens:
            text = token.value.strip()
            if "." in text and not _is_whole(text):
                raise ValueError(f"{token.keyword or argument.name} {text}: expected a whole number")


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return True  # which is said where it is converted


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` Did you mean 'linf'?`` with a leading space, or nothing when no known name is near, or it is one of them.

    >>> did_you_mean("lnif", ["linf", "l2"])
    " Did you mean 'linf'?"
    """
    names = list(known)
    if given in names:
        return ""
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


def plain(value: Any) -> Any:
    """``value`` as YAML and JSON can hold it: tuples become lists, paths become text."""
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
