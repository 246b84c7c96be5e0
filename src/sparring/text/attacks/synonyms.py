"""Where an attack takes the words from that it puts in the places of others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sparring.text.attacks.words import WORD

PPDB = Path("text") / "ppdb_synonyms.txt"


@runtime_checkable
class SynonymSource(Protocol):
    """What knows synonyms: `Synonyms`, `WordNet`, or anything of the user's own with these two methods."""

    def of(self, word: str) -> Sequence[str]:
        """Single words that may stand for this one, given in lower case, the best first."""

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON, so that a result says what it rests on."""


class Synonyms:
    """Synonyms from a mapping {word: [synonyms]}, as it stands: from one word to another, and not back.

    Words are looked up in lower case; what is not a single word is left out. TypeError for what is no such mapping.

    >>> Synonyms({"good": ["fine", "first-rate", "of quality"]}).of("good")
    ('fine', 'first-rate')
    """

    def __init__(self, table: Mapping[str, Sequence[str]], *, name: str = "own", path: str | None = None) -> None:
        if not isinstance(table, Mapping):
            raise TypeError(f"synonyms are {type(table).__name__}: expected a mapping such as {{'good': ['fine']}}")
        words: dict[str, dict[str, None]] = {}
        for word, others in table.items():
            listed = isinstance(others, (list, tuple, set, frozenset)) and all(isinstance(o, str) for o in others)
            if not isinstance(word, str) or not listed:
                raise TypeError(f"the synonyms of {word!r} are {others!r}: expected a list of words")
            ordered = sorted(others) if isinstance(others, (set, frozenset)) else others
            found = words.setdefault(word.lower(), {})
            found.update((o, None) for o in ordered if WORD.fullmatch(o) and o.lower() != word.lower())
        self._table = {word: tuple(found) for word, found in words.items() if found}
        self.name, self.path = name, path

    def of(self, word: str) -> tuple[str, ...]:
        return self._table.get(word, ())

    def __len__(self) -> int:
        """How many words have synonyms."""
        return len(self._table)

    def __repr__(self) -> str:
        return f"Synonyms({self.name}, {len(self)} words)"

    def describe(self) -> dict[str, Any]:
        content = json.dumps(self._table, sort_keys=True, ensure_ascii=False).encode()
        return {"synonyms": self.name, "path": self.path, "sha256": hashlib.sha256(content).hexdigest()}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Synonyms:
        """From a file in UTF-8: JSON {word: [synonyms]}, or two words a line that may stand for each other, as PPDB has them.

        FileNotFoundError or ValueError, in one line, for a file that is not there or is something else.
        """
        path = Path(path).expanduser()
        try:
            text = path.read_text("utf-8")
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"no synonyms file {path}: expected JSON {{word: [synonyms]}}, or pairs") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 (byte {error.start}): save it in that encoding") from None
        where = str(path.resolve())
        if text.lstrip().startswith("{"):
            try:
                return cls(json.loads(text), name=path.name, path=where)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
        return cls(_both_ways(path, text.splitlines()), name=path.name, path=where)

    @classmethod
    def ppdb(cls, path: str | os.PathLike[str] | None = None) -> Synonyms:
        """The pairs of the Paraphrase Database (Pavlick et al. 2015) that counter-fitting (Mrkšić et al. 2016) used.

        path: the file `ppdb_synonyms.txt`; left out: text/ppdb_synonyms.txt in $SPARRING_DATA.
        """
        if path is None:
            folder = os.environ.get("SPARRING_DATA")
            if not folder:
                raise FileNotFoundError(
                    "no synonyms file: give the path of ppdb_synonyms.txt, or set SPARRING_DATA to the folder that holds "
                    f"{PPDB}"
                )
            path = Path(folder) / PPDB
        return cls.read(path)


def _both_ways(path: Path, lines: Iterable[str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(f"{path}, line {number}: {line.strip()[:40]!r} is not a pair of words")
        for word, other in (words, words[::-1]):
            table.setdefault(word, []).append(other)
    if not table:
        raise ValueError(f"{path} holds no synonyms: expected JSON {{word: [synonyms]}}, or two words a line")
    return table


def sources(given: Any) -> tuple[SynonymSource, ...]:
    """What a user gives for synonyms as a tuple of sources: one, several, a mapping or the path of a file."""
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("synonyms=[]: expected at least one source")
        return tuple(source for each in given for source in sources(each))
    if isinstance(given, SynonymSource):
        return (given,)
    if isinstance(given, Mapping):
        return (Synonyms(given),)
    if isinstance(given, (str, os.PathLike)):
        return (Synonyms.read(given),)
    raise TypeError(
        f"synonyms={given!r}: expected a mapping {{word: [synonyms]}}, a file of them, sparring.text.Synonyms or WordNet"
    )
