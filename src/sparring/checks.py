"""One clear line for settings that there can't be."""

from __future__ import annotations

import math


def check_whole(owner: str, least: int = 1, **values: object) -> None:
    """ValueError where one of these settings is no whole number, or one below `least`. owner: whose they are; "" for nobody's."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            given = f"{name}={value!r}"
            raise ValueError(f"{f'{owner}({given})' if owner else given}: expected a whole number, at least {least}")


def check_positive(owner: str, **values: object) -> None:
    """ValueError where one of these settings is no finite number above 0; None, which leaves the choice to us, may be."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(f"{owner}({name}={value!r}): expected a number above 0")
