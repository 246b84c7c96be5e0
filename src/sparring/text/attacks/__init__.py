"""Attacks on texts: other words in their places, or a perturbation of their embeddings."""

from sparring.text.attacks.attempt import AdversarialTexts, Attempt, Sample, TextAttack
from sparring.text.attacks.embeddings import EmbeddingPGD
from sparring.text.attacks.encoder import SentenceEncoder
from sparring.text.attacks.substitution import WordSubstitution
from sparring.text.attacks.synonyms import Synonyms
from sparring.text.attacks.tagging import PatternTagger
from sparring.text.attacks.wordnet import WordNet

__all__ = [
    "AdversarialTexts",
    "Attempt",
    "EmbeddingPGD",
    "PatternTagger",
    "Sample",
    "SentenceEncoder",
    "Synonyms",
    "TextAttack",
    "WordNet",
    "WordSubstitution",
]
