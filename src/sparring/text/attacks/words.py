"""A text as its words: which of them may be replaced, and what it reads like when they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

# Words that carry grammar rather than content, as far as they are a closed class; with the halves that tokenised
# corpora leave of contractions (ca n't, it 's).
_CLOSED = """
    a an the this that these those such some any no none each every either neither both all half many much few several
    enough more most less least other another same own
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves one ones oneself who whom whose which what whoever whatever whichever
    someone somebody something anyone anybody anything everyone everybody everything nobody nothing
    and or but nor so yet if unless until while whereas whether because since although though than as when whenever where
    wherever why how
    of in on at by for with without within about above across after against along among around before behind below beneath
    beside besides between beyond despite down during except from inside into like near off onto out outside over past per
    through throughout to toward towards under underneath up upon via
    be am is are was were been being do does did done doing have has had having can could may might must shall should will
    would ought cannot
    not never only just also too very quite rather even still already again ever here there then now once
    n't don't doesn't didn't isn't aren't wasn't weren't won't wouldn't can't couldn't shouldn't haven't hasn't hadn't
    i'm i've i'll i'd it's he's she's that's there's what's let's you're you've we're we've they're they've
    s t d ll m re ve ca wo sha don doesn didn isn aren wasn weren won wouldn couldn shouldn haven hasn hadn
    zero two three four five six seven eight nine ten eleven twelve hundred thousand million
"""
STOP_WORDS = frozenset(_CLOSED.split())


@dataclass(frozen=True)
class Words:
    """The words of a text, and where they are. What lies between them never changes.

    >>> text = Words("It's a well-made film .")
    >>> text.words
    ("It's", 'a', 'well-made', 'film')
    >>> text.replaced({3: "movie"})
    "It's a well-made movie ."
    >>> text.without(1)
    "It's well-made film ."
    """

    text: str

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each word begins and ends in the text, in characters."""
        return tuple(found.span() for found in WORD.finditer(self.text))

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(self.text[first:last] for first, last in self.spans)

    def __len__(self) -> int:
        return len(self.spans)

    def replaced(self, changes: Mapping[int, str]) -> str:
        """The text with these words in the places of those of that number."""
        parts, end = [], 0
        for i in sorted(changes):
            first, last = self.spans[i]
            parts += [self.text[end:first], changes[i]]
            end = last
        return "".join([*parts, self.text[end:]])

    def without(self, i: int) -> str:
        """The text without the word i and the space before it, or behind the first."""
        first, last = self.spans[i]
        before, after = self.text[:first], self.text[last:]
        return (before[:-1] + after) if before[-1:].isspace() else (before + after.removeprefix(" "))


def cased(word: str, like: str) -> str:
    """`word` written as `like` is: CAPITALS, a Capital, or as it stands.

    >>> cased("movie", "FILM"), cased("movie", "Film"), cased("Oscar", "award"), cased("movie", "A")
    ('MOVIE', 'Movie', 'Oscar', 'Movie')
    """
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def differing(original: str, changed: str) -> tuple[int, ...] | None:
    """The numbers of the words that differ between two texts; None where they differ in more than words.

    >>> differing("a good film.", "a fine film."), differing("a good film.", "a film.")
    ((1,), None)
    """
    a, b = Words(original), Words(changed)
    if len(a) != len(b) or WORD.sub(" ", original) != WORD.sub(" ", changed):
        return None
    return tuple(i for i, (one, other) in enumerate(zip(a.words, b.words, strict=True)) if one != other)
