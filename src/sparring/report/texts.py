"""What a report on texts shows in its own way: words that were taken out and put in, and each attack by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.text.attacks.words import Words

_AROUND = 24  # words that are shown on each side of a change in a long text
_LONG = 120

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """Part of a text: "kept", "removed", "inserted", or "gap", a stretch that is left out."""

    kind: str
    text: str


def pieces(original: str, changed: str | None, numbers: Sequence[int]) -> list[Piece]:
    """The two texts as one, with the words of these numbers taken out and put in; changed: None where no word was.

    >>> [(piece.kind, piece.text) for piece in pieces("a good film.", "a fine film.", [1])]
    [('kept', 'a '), ('removed', 'good'), ('inserted', 'fine'), ('kept', ' film.')]
    """
    words = Words(original)
    new = words.words if changed is None else Words(changed).words
    found, end = [], 0
    for number in numbers if changed is not None else ():
        first, last = words.spans[number]
        found += [
            Piece("kept", original[end:first]),
            Piece("removed", words.words[number]),
            Piece("inserted", new[number]),
        ]
        end = last
    found.append(Piece("kept", original[end:]))
    long = len(words) > _LONG
    return [
        part
        for i, piece in enumerate(found)
        for part in (_shortened(piece, i == 0, i + 1 == len(found)) if long else [piece])
        if part.text
    ]


def _shortened(piece: Piece, first: bool, last: bool) -> Iterator[Piece]:
    """A long stretch that was kept, without its middle (its beginning, its end) where nothing happens near."""
    words = Words(piece.text)
    head, tail = (0 if first and not last else _AROUND), (0 if last and not first else _AROUND)
    if piece.kind != "kept" or len(words) <= head + tail + 6:
        yield piece
        return
    begin = words.spans[head - 1][1] if head else 0
    end = words.spans[len(words) - tail][0] if tail else len(piece.text)
    yield Piece("kept", piece.text[:begin])
    yield Piece("gap", f" … {len(words) - head - tail} words … ")
    yield Piece("kept", piece.text[end:])


def threat(document: Document) -> str:
    """What the attackers were allowed to do, in words; that of each attack, as they are of different kinds."""
    said: dict[str, None] = {}
    for attack in document["attacks"]:
        settings = attack["settings"]
        if "max_changed" in settings:
            limits = [
                f"put synonyms in the places of up to {settings['max_changed']:.0%} of a text's words",
                "parts of speech were not checked"
                if settings.get("part of speech") == "not checked"
                else "parts of speech stay",
                "likeness of the sentences was not checked"
                if settings.get("similarity") == "not checked"
                else f"the sentences' vectors keep a cosine of {settings['similarity']['at least']:g}",
            ]
            said.setdefault(f"{limits[0]} ({limits[1]}, {limits[2]})")
        elif "eps" in settings:
            said.setdefault(
                f"move the vectors of a text's words by up to {settings['eps']:g} in Euclidean length (L2), all in all"
            )
        else:
            said.setdefault(f"do what {attack['name']} does")
    return f"The attacker may {'; or '.join(said)}." if said else "No attack was run."


def lead(document: Document) -> str:
    """What the gallery shows."""
    written = [bool(entry["changed"]) for entry in document["gallery"]]
    embeddings = "Texts that the network classified correctly, and whose embeddings were perturbed: their words are as they were."
    if not any(written):
        return embeddings
    others = "" if all(written) else "; where there are none, only the text's embeddings were perturbed"
    return (
        "Texts that the network classified correctly, and that needed the fewest other words to be fooled. Words that were "
        f"taken out are struck through, those put in their places are underlined{others}."
    )


def meta(document: Document, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is told below a text."""
    rows = [("Text", str(entry["index"])), ("Fooled by", str(entry["attack"])), ("Queries", f"{entry['queries']:,}")]
    if not entry["changed"]:
        return [*rows, ("Norm of what was added", f"{entry['norm']:.3g}")]
    rows.append(("Words changed", f"{len(entry['changed'])} ({entry['norm']:.0%})"))
    measured = any(isinstance(row["settings"].get("similarity"), dict) for row in document["attacks"])
    if measured and entry.get("similarity") is not None:
        rows.append(("Cosine", f"{entry['similarity']:.2f}"))
    return rows
