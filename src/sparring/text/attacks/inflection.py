"""English inflection: which base a word may come from, and the same form of another base.

The endings are those that WordNet's own search takes off (Fellbaum 1998, morphy); irregular forms come from its lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

NOUN, VERB, ADJECTIVE, ADVERB = "noun", "verb", "adj", "adv"

# ending, what stands there in the base, and the form that it marks
ENDINGS: dict[str, list[tuple[str, str, str]]] = {
    NOUN: [("s", "", "s"), ("ses", "s", "s"), ("xes", "x", "s"), ("zes", "z", "s"), ("ches", "ch", "s"), ("shes", "sh", "s"),
           ("men", "man", "s"), ("ies", "y", "s")],
    VERB: [("s", "", "s"), ("ies", "y", "s"), ("es", "e", "s"), ("es", "", "s"), ("ed", "e", "ed"), ("ed", "", "ed"),
           ("ied", "y", "ed"), ("ing", "e", "ing"), ("ing", "", "ing")],
    ADJECTIVE: [("er", "", "er"), ("est", "", "est"), ("er", "e", "er"), ("est", "e", "est"), ("ier", "y", "er"),
                ("iest", "y", "est")],
    ADVERB: [],
}  # fmt: skip
# verbs whose past is their base, which lists of irregular forms leave out
_UNCHANGED = frozenset(
    {"bet", "bid", "burst", "cast", "cost", "cut", "hit", "hurt", "let", "put", "quit", "read", "rid", "set"}
    | {"shed", "shut", "split", "spread", "thrust", "upset"}
)
_HISSING = re.compile(r"(?:s|x|z|ch|sh)$")
_DOUBLED = re.compile(r"^[^aeiou]*[aeiou][bdgklmnprt]$")  # stop, but not open, read or fix


def bases(word: str, part: str) -> Iterator[tuple[str, str]]:
    """The bases that `word` would be a regular form of, each with that form.

    >>> list(bases("movies", "noun"))
    [('movie', 's'), ('movy', 's')]
    """
    for ending, instead, form in ENDINGS[part]:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            yield word.removesuffix(ending) + instead, form


def irregular_form(word: str, part: str) -> str:
    """Which form an irregular word is, by its ending.

    >>> irregular_form("children", "noun"), irregular_form("made", "verb"), irregular_form("lying", "verb")
    ('s', 'ed', 'ing')
    """
    if part == VERB:
        return "ing" if word.endswith("ing") else "s" if word.endswith("s") else "ed"
    if part == ADJECTIVE:
        return "est" if word.endswith("est") else "er"
    return "s"


def inflected(base: str, part: str, form: str) -> str | None:
    """The regular form of a base; None for a comparison that takes "more" and "most".

    >>> inflected("movie", "noun", "s"), inflected("pity", "verb", "ed"), inflected("stop", "verb", "ing")
    ('movies', 'pitied', 'stopping')
    >>> inflected("funny", "adj", "est"), inflected("wonderful", "adj", "er")
    ('funniest', None)
    """
    if form == "s":
        if _HISSING.search(base):
            return base + "es"
        return base[:-1] + "ies" if re.search(r"[^aeiou]y$", base) else base + "s"
    if form == "ed" and base in _UNCHANGED:
        return base
    if part == ADJECTIVE and len(re.findall(r"[aeiouy]+", base.removesuffix("e"))) > (2 if base.endswith("y") else 1):
        return None
    if form == "ing" and base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and (form != "ing" or not base.endswith(("ee", "oe", "ye"))):
        return base[:-1] + form
    if form != "ing" and re.search(r"[^aeiou]y$", base):
        return base[:-1] + "i" + form
    return base + (base[-1] if _DOUBLED.match(base) else "") + form
