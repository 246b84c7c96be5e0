"""Text models: what a classifier of texts is, and where in it an attacker takes hold."""

from sparring.text.attacks import (
    AdversarialTexts,
    EmbeddingPGD,
    PatternTagger,
    SentenceEncoder,
    Synonyms,
    TextAttack,
    WordNet,
    WordSubstitution,
)
from sparring.text.classifier import TextClassifier
from sparring.text.encoded import Encoded
from sparring.text.frequency import FrequencyNormalizedEmbedding, count_tokens, find_embedding
from sparring.text.lengths import LengthBatches
from sparring.text.perturber import EmbeddingPerturber, Perturbed
from sparring.text.tokens import build_tokenizer

__all__ = [
    "AdversarialTexts",
    "EmbeddingPGD",
    "EmbeddingPerturber",
    "Encoded",
    "FrequencyNormalizedEmbedding",
    "LengthBatches",
    "PatternTagger",
    "Perturbed",
    "SentenceEncoder",
    "Synonyms",
    "TextAttack",
    "TextClassifier",
    "WordNet",
    "WordSubstitution",
    "build_tokenizer",
    "count_tokens",
    "find_embedding",
]
