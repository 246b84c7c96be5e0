"""Docstrings are plain text with a few Markdown backticks; Sphinx reads reStructuredText. This turns one into the other.

`name: what it is` at the beginning of a sentence becomes a field of the parameter list, where the object has such a parameter
or attribute. Doctests and indented blocks stay as they are.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import sparring

WIDTH = 108  # a line that ends well before it, at the end of a sentence, was ended on purpose
_CODE = re.compile(r"`([^`]+)`")
_NAMES = r"\w+(?: \([^)]*\))?(?:, \w+(?: \([^)]*\))?)*"
_MARK = re.compile(rf"(?:^|(?<=[.;:)] ))({_NAMES}): ")


def _escaped(text: str) -> str:
    text = re.sub(r"([\\*|])", r"\\\1", text)
    return re.sub(r"_(?!\w)", r"\\_", text)


def _code(found: re.Match[str]) -> str:
    text = found[1]
    name = re.match(r"(?:sp\.|sparring\.)?(\w+)$", text)
    if name and name[1] in sparring.__all__:
        return f":py:obj:`{text} <sparring.{name[1]}>`"
    return f"``{text}``"


def inline(text: str) -> str:
    """A paragraph's text with its code marked and everything else taken literally."""
    parts, end = [], 0
    for found in _CODE.finditer(text):
        parts.append(_escaped(text[end : found.start()]))
        glued = found.end() < len(text) and text[found.end()].isalnum()
        parts.append(_code(found) + ("\\ " if glued else ""))
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """The blocks of a docstring: split at empty lines, and where a sentence ends a line that had room for more."""
    block: list[str] = []
    for line in lines:
        start = block[-1].startswith(">>>") if block else False
        doctest = bool(block) and (start or block[0].startswith(">>>"))
        word = line.split(" ", 1)[0]
        roomy = bool(block) and block[-1].endswith((".", ":")) and len(block[-1]) + 1 + len(word) < WIDTH
        turn = (
            bool(block)
            and not doctest
            and (line.startswith(">>>") or line.startswith(" ") != block[-1].startswith(" "))
        )
        if not line.strip() or turn or (roomy and not doctest and not line.startswith(" ")):
            if block:
                yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def known_names(thing: Any) -> set[str]:
    """What a sentence of its docstring may define: parameters, fields, properties and attributes."""
    names: set[str] = set()
    with contextlib.suppress(TypeError, ValueError):
        names |= set(inspect.signature(thing).parameters)
    if inspect.isclass(thing):
        names |= {f.name for f in fields(thing)} if is_dataclass(thing) else set()
        names |= {name for name in dir(thing) if not name.startswith("_")}
        for kind in thing.__mro__:
            names |= set(getattr(kind, "__annotations__", {}))
    return names


def rest(lines: list[str], names: set[str]) -> list[str]:
    """The docstring in reStructuredText."""
    out: list[str] = []
    listing = False
    for block in paragraphs(lines):
        if block[0].startswith(">>>"):
            out += ["", *block, ""]
            listing = False
            continue
        if block[0].startswith(" "):
            out += ["", "::", "", *(f"   {line}" for line in block), ""]
            listing = False
            continue
        text = " ".join(line.strip() for line in block)
        marks = [m for m in _MARK.finditer(text) if set(re.findall(r"\w+", re.sub(r"\([^)]*\)", "", m[1]))) <= names]
        lead = text[: marks[0].start()] if marks else text
        if lead.strip():
            out += ["", inline(lead.strip()), ""]
            listing = False
        for mark, following in zip(marks, [*marks[1:], None]):
            said = text[mark.end() : following.start() if following else len(text)].strip()
            if not listing:
                out.append("")
                listing = True
            out.append(f":param {_escaped(mark[1])}: {inline(said)}")
    return [*out, ""]


def setup(app: Any) -> None:
    def convert(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        lines[:] = rest(list(lines), known_names(thing))

    app.connect("autodoc-process-docstring", convert)
