"""Readers of labelled images, `open(spec)`, `read_image`, `save_png`; of texts, `open_texts(spec)`; and what comes bundled."""

from sparring.data.bundle import imagenet_classes, photograph
from sparring.data.catalogue import NAMES
from sparring.data.dataset import LabelledImages
from sparring.data.images import read_image, save_png
from sparring.data.labels import few_labels
from sparring.data.moons import two_moons
from sparring.data.opening import open
from sparring.data.text import TEXT_NAMES, LabelledTexts, open_texts

__all__ = [
    "NAMES",
    "TEXT_NAMES",
    "LabelledImages",
    "LabelledTexts",
    "few_labels",
    "imagenet_classes",
    "open",
    "open_texts",
    "photograph",
    "read_image",
    "save_png",
    "two_moons",
]
