"""What part of speech is each word of a text?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sparring.text.attacks.inflection import ADJECTIVE, ADVERB, NOUN, VERB

_COARSE = {"NN": NOUN, "VB": VERB, "JJ": ADJECTIVE, "RB": ADVERB}


class Tagger(Protocol):
    """What tells parts of speech: `PatternTagger`, `WordNet`, or anything of the user's own with these two methods."""

    def tags(self, words: Sequence[str]) -> list[frozenset[str]]:
        """For each of a text's words, in order, the parts of speech that it may be there; none where nobody knows."""

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON."""


class PatternTagger:
    """One part of speech for each word, from its neighbours: the rules of Pattern (De Smedt and Daelemans 2012), as the
    package `textblob` carries them. Nothing is downloaded. ImportError, in one line, where it is not installed."""

    def __init__(self) -> None:
        try:
            from textblob.en import tag
        except ImportError as error:
            raise ImportError("parts of speech need textblob: pip install 'sparring[words]'") from error
        self._tag = tag

    def tags(self, words: Sequence[str]) -> list[frozenset[str]]:
        if not words:
            return []
        tagged = self._tag(" ".join(words), tokenize=False)
        return [frozenset({_COARSE.get(tag[:2], tag)}) for _, tag in tagged]

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"tagger": "pattern", "version": version("textblob")}


def compatible(tags: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two words may be the same part of speech."""
    return bool(tags & others)
