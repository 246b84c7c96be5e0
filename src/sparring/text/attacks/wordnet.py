"""Synonyms and parts of speech from WordNet's own files, such as Debian's package `wordnet-base` installs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparring.text.attacks import inflection
from sparring.text.attacks.inflection import ADJECTIVE, ADVERB, NOUN, VERB
from sparring.text.attacks.words import WORD

PARTS = (NOUN, VERB, ADJECTIVE, ADVERB)
PLACES = ("/usr/share/wordnet", "/usr/share/wordnet/dict", "/usr/local/share/wordnet", "/usr/local/WordNet-3.0/dict")


class WordNet:
    """The synonyms of a word are the other words of its synsets, the more frequent senses first, in the word's own form.

    folder: where `data.noun`, `index.noun` and the others are (version 3 of the format); left out: $WNSEARCHDIR, or where
    systems put them. FileNotFoundError, in one line, where they are not.

    Asked for the parts of speech of a text's words it gives all that a word can be, whatever stands around it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = _find(folder)
        self._offsets: dict[str, dict[str, list[int]]] = {part: self._index(part) for part in PARTS}
        self._irregular: dict[str, dict[str, list[str]]] = {part: self._exceptions(part) for part in PARTS}
        self._forms: dict[str, dict[tuple[str, str], set[str]]] = {part: {} for part in PARTS}
        for part, words in self._irregular.items():
            for word, bases in words.items():
                for base in bases:
                    self._forms[part].setdefault((base, inflection.irregular_form(word, part)), set()).add(word)
        self._data = {part: (self.folder / f"data.{part}").read_bytes() for part in PARTS}
        self.of = lru_cache(1 << 16)(self._of)

    def describe(self) -> dict[str, Any]:
        """What it is, for a result."""
        hasher = hashlib.sha256(b"".join(hashlib.sha256(self._data[part]).digest() for part in PARTS))
        return {"synonyms": "wordnet", "path": str(self.folder), "sha256": hasher.hexdigest()}

    def _of(self, word: str) -> tuple[str, ...]:
        """The synonyms of a word in lower case, each once, single words only."""
        found: dict[str, None] = {}
        for part, base, form in self._readings(word):
            for offset in self._offsets[part][base]:
                for other in self._synset(part, offset):
                    shaped = other if form is None else self._shaped(other, part, form)
                    if shaped is not None and shaped.lower() != word and WORD.fullmatch(shaped):
                        found.setdefault(shaped)
        return tuple(found)

    def tags(self, words: Sequence[str]) -> list[frozenset[str]]:
        """For each word the parts of speech that it can be; none for a word that WordNet does not know."""
        return [frozenset(part for part, _, _ in self._readings(word.lower())) for word in words]

    def _readings(self, word: str) -> Iterator[tuple[str, str, str | None]]:
        """Part of speech, base and form (None: the base itself) of each way to read the word."""
        for part in PARTS:
            known, seen = self._offsets[part], set()
            if word in known:
                seen.add(word)
                yield part, word, None
            irregular = [(base, inflection.irregular_form(word, part)) for base in self._irregular[part].get(word, ())]
            for base, form in irregular or inflection.bases(word, part):
                if base in known and base not in seen:
                    seen.add(base)
                    yield part, base, form

    def _shaped(self, base: str, part: str, form: str) -> str | None:
        """That form of a base; None where it has none, or an irregular one that is two (took, taken)."""
        irregular = self._forms[part].get((base, form))
        if irregular is not None:
            return next(iter(irregular)) if len(irregular) == 1 else None
        return inflection.inflected(base, part, form)

    def _synset(self, part: str, offset: int) -> list[str]:
        data = self._data[part]
        fields = data[offset : data.index(b"\n", offset)].decode("utf-8").split(" ")
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        return [word.partition("(")[0].replace("_", " ") for word in words]  # (a), (p): where an adjective may stand

    def _index(self, part: str) -> dict[str, list[int]]:
        offsets = {}
        for line in self._lines(f"index.{part}"):
            if not line.startswith(" "):  # the licence
                lemma, _, senses, pointers, *rest = line.split()
                offsets[lemma.replace("_", " ")] = [
                    int(n) for n in rest[int(pointers) + 2 : int(pointers) + 2 + int(senses)]
                ]
        return offsets

    def _exceptions(self, part: str) -> dict[str, list[str]]:
        words: dict[str, list[str]] = {}
        for line in self._lines(f"{part}.exc"):
            word, *bases = line.split()
            words.setdefault(word, []).extend(bases)
        return words

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        try:
            return path.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a file of WordNet ({error.reason} at byte {error.start})") from None


def _find(folder: str | os.PathLike[str] | None) -> Path:
    given = folder or os.environ.get("WNSEARCHDIR")
    places = [Path(given)] if given else [Path(place) for place in PLACES]
    needed = [f"{kind}.{part}" for kind in ("index", "data") for part in PARTS] + [f"{part}.exc" for part in PARTS]
    for place in places:
        missing = [name for name in needed if not (place / name).is_file()]
        if not missing:
            return place
        if given:
            raise FileNotFoundError(f"{place} holds no WordNet: {missing[0]} is missing")
    raise FileNotFoundError(
        "WordNet is not to be found: install Debian's wordnet-base, or give the folder of its data.noun and index.noun"
    )
