"""Text models: what a classifier of texts is, and where in it an attacker takes hold."""

from sparring.text.classifier import TextClassifier
from sparring.text.encoded import Encoded
from sparring.text.tokens import build_tokenizer

__all__ = ["Encoded", "TextClassifier", "build_tokenizer"]
