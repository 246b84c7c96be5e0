"""Tables of texts and labels: .csv, .tsv, also compressed; the columns are told or found."""

from __future__ import annotations

import csv
import io
import lzma
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEXT_COLUMNS = ("text", "sentence", "review", "content", "message", "comment", "body", "tweet", "document", "phrase")
LABEL_COLUMNS = ("label", "class", "sentiment", "category", "target", "polarity", "labels", "y", "spam")
FIELD = 1 << 24  # characters of one text
NAME = 40  # characters of a column's name, at most
FEW = 100  # classes: with more of them, one that comes once is nothing strange


class TableError(ValueError):
    """A table that can't be read, without its path."""


@dataclass(frozen=True)
class Row:
    """number: of the row in the file, from 1."""

    number: int
    text: str
    label: str


def read_table(
    path: Path,
    text_column: str | None,
    label_column: str | None,
    encoding: str,
    skip_bad: bool,
    more: Sequence[str] = (),
    classes: Sequence[str] = (),
    labelled: bool = True,
) -> tuple[list[Row], list[str]]:
    """Rows of a table, and those that were left out. more: columns that are joined to the text. classes: those that are known.
    labelled: False for texts alone, whose column of labels, if there is one, is not read.

    TableError, in one line, for what can't be read.
    """
    numbered = _rows(_decoded(path, encoding), path)
    table = [row for _, row in numbered]
    if not table:
        raise TableError("it is empty")
    if not labelled and label_column not in table[0]:
        label_column = None  # told for another table
    header = _header(table, text_column, label_column)
    names = table[0] if header else None
    body = table[1:] if header else table
    if not body:
        raise TableError("it has a header and no rows")
    width = len(table[0])
    label = _column(label_column, names, LABEL_COLUMNS, width, "label")
    text = _column(text_column, names, TEXT_COLUMNS, width, "text")
    if text is None or (labelled and label is None):
        text, label = _guess(body, names, text, label, labelled)
    if labelled and not header:
        _check_first(body, text, label, classes)
    columns = [text, *(int(name) for name in more)]
    needed = columns if label is None or not labelled else [label, *columns]
    rows: list[Row] = []
    bad: list[str] = []
    for number, row in numbered[1:] if header else numbered:
        if len(row) <= max(needed) or any(part.strip() for part in row[width:]):
            commas = ": quote texts that hold commas" if len(row) > width and not path.name.endswith(".tsv") else ""
            bad.append(f"row {number} has {len(row)} columns, expected {width}{commas}")
            continue
        content = " ".join(row[i].strip() for i in columns).strip()
        what = row[label].strip() if labelled and label is not None else ""
        if not content or (labelled and not what):
            bad.append(f"row {number} has an empty {'label' if content else 'text'}")
            continue
        rows.append(Row(number, content, what))
    if bad and not skip_bad:
        others = f" (and {len(bad) - 1} more rows are like it)" if len(bad) > 1 else ""
        raise TableError(f"{bad[0]}{others}; skip_bad (--skip-bad) leaves such rows out")
    if not rows:
        raise TableError(f"none of its {len(body)} rows can be used; {bad[0]}")
    return rows, bad


def _decoded(path: Path, encoding: str) -> str:
    try:
        raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    except lzma.LZMAError as error:
        raise TableError(f"it can't be decompressed ({error})") from None
    try:
        content = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TableError(
            f"line {line} is no {encoding} (byte {raw[error.start]:#04x}): save it as UTF-8, or say which encoding it has "
            "(--encoding latin-1, cp1252, utf-16)"
        ) from None
    except LookupError:
        raise TableError(f"encoding={encoding!r} is none that Python knows: utf-8, latin-1, cp1252, …") from None
    if "\0" in content:
        raise TableError("it holds zero bytes: no text, or UTF-16 (--encoding utf-16)")
    return content


def _rows(content: str, path: Path) -> list[tuple[int, list[str]]]:
    """Each row that is not empty, and its number in the file."""
    name = path.name.removesuffix(".xz")
    first = content.split("\n", 1)[0]
    tabs = name.endswith((".tsv", ".tab")) or (not name.endswith(".csv") and "\t" in first)
    csv.field_size_limit(FIELD)
    try:
        if tabs:
            table = [line.rstrip("\r").split("\t") for line in content.split("\n")]
        else:
            semicolons = first.count(";") > first.count(",")
            table = list(
                csv.reader(io.StringIO(content, newline=""), delimiter=";" if semicolons else ",", strict=True)
            )
    except csv.Error as error:
        raise TableError(f"not a table of comma-separated values ({error}): quote texts that hold commas") from None
    return [(number, row) for number, row in enumerate(table, 1) if any(part.strip() for part in row)]


def _header(table: Sequence[Sequence[str]], *told: str | None) -> bool:
    """Whether the first row names the columns: with a name that was told, or a usual one that does not come again below it
    (a label may well be called "spam")."""
    if any(name is not None and not name.isdigit() for name in told):
        return True
    usual = TEXT_COLUMNS + LABEL_COLUMNS
    named = [i for i, part in enumerate(table[0]) if part.strip().lower() in usual]
    return any(all(i >= len(row) or row[i] != table[0][i] for row in table[1:]) for i in named)


def _column(told: str | None, names: Sequence[str] | None, usual: Sequence[str], width: int, what: str) -> int | None:
    """The column that was told, or that is called as usual; None where neither."""
    known = [] if names is None else [name.strip().lower() for name in names]
    if told is not None and told.lower() in known:
        return known.index(told.lower())
    if told is not None:
        if told.isdigit() and int(told) < width:
            return int(told)
        columns = ", ".join(map(str, names)) if names is not None else f"0 to {width - 1}"
        raise TableError(f"there is no column {told!r} for the {what}: it has {columns}")
    return next((known.index(name) for name in usual if name in known), None)


def _guess(
    body: Sequence[Sequence[str]], names: Sequence[str] | None, text: int | None, label: int | None, labelled: bool
) -> tuple[int, int | None]:
    """Of the columns that are not known: the text is the one with the most letters, the label the one with fewest values."""
    whole = [row for row in body if len(row) == len(body[0])]
    columns = [[row[i] for row in whole] for i in range(len(body[0]))]
    free = [i for i in range(len(columns)) if i not in (label, text)]
    if len(free) < (labelled and label is None) + (text is None):
        shown = ", ".join(map(str, names)) if names is not None else f"{len(columns)} column"
        raise TableError(f"it has {shown}: expected a column of texts{' and one of labels' if labelled else ''}")
    if text is None:
        text = max(free, key=lambda i: sum(map(len, columns[i])))
        free.remove(text)
    if labelled and label is None:
        label = min(free, key=lambda i: len(set(columns[i])))
    return text, label


def _check_first(body: Sequence[Sequence[str]], text: int, label: int | None, classes: Sequence[str]) -> None:
    """TableError where the first row of a table without a header may well be one: a short text, and a label, no number, that
    does not come again, while each of the others does. Else a column's name would be a class."""
    assert label is not None
    if len(body[0]) <= max(text, label):
        return
    name, first = body[0][text].strip(), body[0][label].strip()
    others = Counter(row[label].strip() for row in body[1:] if len(row) > label and row[label].strip())
    alone = bool(first) and first not in others and first not in classes and not re.fullmatch(r"[-+.\d]+", first)
    if alone and len(name) <= NAME and 0 < len(others) <= FEW and min(others.values()) > 1:
        columns = f"--text-column {shlex.quote(name)} --label-column {shlex.quote(first)}"
        raise TableError(
            f"row 1 looks like a header, as no other row has its label, {first!r}: name the columns ({columns}), or take the "
            "row out"
        )


def read_lines(path: Path, encoding: str) -> list[str]:
    """The lines of a file that are not empty. TableError, in one line, for what can't be read."""
    lines = [line.strip() for line in _decoded(path, encoding).splitlines() if line.strip()]
    if not lines:
        raise TableError("it is empty")
    return lines
