"""Attacks built again from the settings that a result holds."""

from __future__ import annotations

from typing import Any

from sparring.text.attacks.attempt import TextAttack
from sparring.text.attacks.embeddings import EmbeddingPGD
from sparring.text.attacks.encoder import SentenceEncoder
from sparring.text.attacks.substitution import WordSubstitution
from sparring.text.attacks.synonyms import Synonyms
from sparring.text.attacks.tagging import PatternTagger
from sparring.text.attacks.wordnet import WordNet


def recorded(name: str, settings: dict[str, Any]) -> TextAttack | None:
    """The attack of that name and settings (`TextAttack.settings`); None where it can't be had again: one of the user's own, or
    with synonyms, a tagger or an encoder that are not what they were, or not to be found."""
    if name == "EmbeddingPGD":
        return EmbeddingPGD(**settings)
    if name != "WordSubstitution" or settings["stop words"] != "sparring's":
        return None
    try:
        own: dict[str, Any] = {key: settings[key] for key in ("rank", "queries", "max_changed", "candidates")}
        own |= {"tagger": _tagger(settings["part of speech"])}
        if isinstance(settings["similarity"], dict):
            own |= {"encoder": SentenceEncoder(), "min_similarity": settings["similarity"]["at least"]}
        built = WordSubstitution([_opened(source) for source in settings["synonyms"]], **own)
    except (OSError, ValueError, ImportError):
        return None
    return built if built.settings() == settings else None


def _opened(about: dict[str, Any]) -> Synonyms | WordNet:
    if not about["path"]:
        raise ValueError("these synonyms were no file")
    return WordNet(about["path"]) if about["synonyms"] == "wordnet" else Synonyms.read(about["path"])


def _tagger(about: Any) -> PatternTagger | WordNet | None:
    if not isinstance(about, dict):
        return None
    return PatternTagger() if about.get("tagger") == "pattern" else WordNet(about["path"])
