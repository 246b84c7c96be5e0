"""Labelled texts: data sets known by name, and tables of one's own."""

from __future__ import annotations

import lzma
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.data.bundle import BUNDLED
from sparring.data.catalogue import roots
from sparring.data.textfile import Row, TableError, read_lines, read_table

DEFAULT = "sms-spam"
SPLITS = ("train", "validation", "test")
PARTS = (0.8, 0.9, 1.0)  # where train, validation and test end, in data sets that come in one piece
SENTIMENT = ("negative", "positive")


@dataclass(frozen=True)
class LabelledTexts:
    """texts (N) and their labels (N), numbers of `classes`. skipped: rows that were left out, and why. spec: how to open it
    again."""

    texts: list[str]
    labels: list[int]
    classes: list[str]
    name: str
    spec: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> tuple[str, int]:
        return self.texts[number], self.labels[number]

    def __repr__(self) -> str:
        return f"<LabelledTexts {self.name}: {len(self):,} in {', '.join(self.classes)}>"

    def first(self, count: int | None) -> LabelledTexts:
        """At most so many of them."""
        return LabelledTexts(self.texts[:count], self.labels[:count], self.classes, self.name, self.spec, self.skipped)


def open_texts(
    spec: str | os.PathLike[str],
    split: str = "train",
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str = "utf-8",
    skip_bad: bool = False,
    classes: list[str] | None = None,
) -> LabelledTexts:
    """Open labelled texts by name or path.

    Args:
        spec: one of `TEXT_NAMES`, or a .csv, .tsv or .txt table (also as .xz), whose first row may name the columns.
        split: "train", "validation" or "test", of a named data set; a table is one piece, whatever the split.
        text_column, label_column: of a table, by name or number (from 0); left out, they are found.
        encoding: of a table.
        skip_bad: leave rows without a text or a label out and list them in `.skipped`, instead of raising.
        classes: their names, in the order of their numbers; left out, the table's labels in order. A label beyond them raises.

    Raises:
        FileNotFoundError: nothing there; says where it was looked for.
        ValueError: rows that can't be read, a column that is not there, fewer than two classes; says where.

    >>> texts = open_texts("sms-spam", "test")
    >>> texts, texts.classes[texts.labels[0]]
    (<LabelledTexts sms-spam (test): 558 in ham, spam>, 'spam')
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    name = os.fspath(spec)
    told = {"spec": name, "split": split, "encoding": encoding, "skip_bad": skip_bad}
    told |= {"text_column": text_column, "label_column": label_column, "classes": classes}
    if name in SETS:
        given = [part for part in ("text_column", "label_column", "classes") if told[part] is not None]
        if given:
            raise ValueError(f"{name} brings its own columns and classes: leave {given[0]} out")
        texts, labels, known = SETS[name](split)
        return LabelledTexts(texts, labels, list(known), f"{name} ({split})", told)
    path = _file(name)
    try:
        rows, skipped = read_table(path, text_column, label_column, encoding, skip_bad, classes=classes or ())
    except TableError as error:
        raise ValueError(f"{path}: {error}") from None
    found = sorted({row.label for row in rows}, key=_as_number)
    if classes is None and len(found) < 2:
        raise ValueError(f"{path}: every row has the label {found[0]!r}: expected two classes or more")
    classes = found if classes is None else classes
    strange = [row for row in rows if row.label not in classes]
    if strange:
        raise ValueError(
            f"{path}: row {strange[0].number} has label {strange[0].label!r}: expected one of {', '.join(classes)}"
        )
    if len(found) == len(rows) > 20:
        raise ValueError(f"{path}: every row has a label of its own: is the right column meant? Name it (label_column)")
    told["spec"] = str(path.resolve())
    return LabelledTexts(
        [row.text for row in rows], [classes.index(row.label) for row in rows], classes, path.name, told, tuple(skipped)
    )


def open_unlabelled_texts(
    spec: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str = "utf-8",
    skip_bad: bool = False,
) -> tuple[list[str], tuple[str, ...]]:
    """Texts alone, and rows that were left out: the training part of a named set, a table with or without labels, which
    nobody reads, or a .txt file of one text a line.

    label_column: a table's column that is no text, if it is there. The rest is as for `open_texts`, errors too.

    >>> texts, skipped = open_unlabelled_texts("sms-spam")
    >>> len(texts), skipped
    (4458, ())
    """
    name = os.fspath(spec)
    if name in SETS:
        return SETS[name]("train")[0], ()
    path = _file(name)
    try:
        if path.name.removesuffix(".xz").endswith(".txt"):
            return read_lines(path, encoding), ()
        rows, skipped = read_table(path, text_column, label_column, encoding, skip_bad, labelled=False)
    except TableError as error:
        raise ValueError(f"{path}: {error}") from None
    return [row.text for row in rows], tuple(skipped)


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file, nor a known name ({', '.join(TEXT_NAMES)})")
    return path


def _as_number(label: str) -> tuple[bool, int, str]:
    return not label.isdigit(), int(label) if label.isdigit() else 0, label


Named = tuple[list[str], list[int], tuple[str, ...]]


def _parted(texts: list[str], labels: list[int], split: str) -> tuple[list[str], list[int]]:
    """The split of data that come in one piece: of each class the first 80%, the next 10%, the last 10%."""
    number = SPLITS.index(split)
    counts, passed = Counter(labels), Counter[int]()
    chosen: list[int] = []
    for i, label in enumerate(labels):
        low = 0.0 if number == 0 else PARTS[number - 1]
        if int(low * counts[label]) <= passed[label] < int(PARTS[number] * counts[label]):
            chosen.append(i)
        passed[label] += 1
    return [texts[i] for i in chosen], [labels[i] for i in chosen]


def _sms(split: str) -> Named:
    with lzma.open(BUNDLED / "SMSSpamCollection.xz", "rt", encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("\t", 1) for line in file]
    labels = [("ham", "spam").index(label) for label, _ in pairs]
    return *_parted([text for _, text in pairs], labels, split), ("ham", "spam")


def _rotten(split: str) -> Named:
    """4,264, 533 and 534 of each class, in the files' order (Hugging Face's split has one more of each to train on)."""
    files = [_place("rt-polarity.neg"), _place("rt-polarity.pos")]
    texts: list[str] = []
    labels: list[int] = []
    for label, file in enumerate(files):
        lines = file.read_text("utf-8").splitlines()
        texts += [line.strip() for line in lines]
        labels += [label] * len(lines)
    return *_parted(texts, labels, split), SENTIMENT


def _sst2(split: str) -> Named:
    file = _place(f"sst2_{'dev' if split == 'validation' else split}.tsv")
    pairs = [line.rsplit("\t", 1) for line in file.read_text("utf-8").splitlines()]
    return [text for text, _ in pairs], [int(label) for _, label in pairs], SENTIMENT


def _imdb(where: str) -> Callable[[str], Named]:
    def read(split: str) -> Named:
        file = _place(where.format("test" if split == "test" else "train"))
        with lzma.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            rows = [line.rstrip("\n").split("\t", 3) for line in lines]
        texts, labels = [row[3].replace("<br />", " ") for row in rows], [int(row[0]) for row in rows]
        if split == "test":
            return texts, labels, SENTIMENT
        held = set(range(9, len(rows), 10))  # the official data have no validation part: every tenth training review
        chosen = [i for i in range(len(rows)) if (i in held) == (split == "validation")]
        return [texts[i] for i in chosen], [labels[i] for i in chosen], SENTIMENT

    return read


def _ag_news(split: str) -> Named:
    rows, _ = read_table(
        _place(f"ag_news_{'test' if split == 'test' else 'train'}.csv"), "1", "0", "utf-8", False, more=("2",)
    )
    texts, labels = [row.text for row in rows], [int(row.label) - 1 for row in rows]
    if split != "test":
        chosen = [i for i in range(len(rows)) if (i % 10 == 9) == (split == "validation")]
        texts, labels = [texts[i] for i in chosen], [labels[i] for i in chosen]
    return texts, labels, ("World", "Sports", "Business", "Sci/Tech")


def _places(name: str) -> Iterator[Path]:
    for root in roots():
        yield from (root / "text" / name, root / name)


def _place(name: str) -> Path:
    for path in _places(name):
        if path.is_file():
            return path
    unset = "" if os.environ.get("SPARRING_DATA") else " (SPARRING_DATA is unset)"
    raise FileNotFoundError(
        f"{name} was not found: looked for it under {', '.join(map(str, roots()))}, in text/ too{unset}"
    )


SETS: dict[str, Callable[[str], Named]] = {
    "sms-spam": _sms,
    "rotten-tomatoes": _rotten,
    "sst2": _sst2,
    "imdb": _imdb("imdb/imdb_{}.tsv.xz"),
    "imdb-sample": _imdb("imdb_{}_2000.tsv.xz"),
    "ag-news": _ag_news,
}
TEXT_NAMES = tuple(SETS)

__all__ = ["TEXT_NAMES", "LabelledTexts", "Row", "open_texts", "open_unlabelled_texts"]
