"""Readers of labelled images: `open(spec)`, `read_image`, `save_png`, and what comes bundled."""

from sparring.data.bundle import imagenet_classes, photograph
from sparring.data.catalogue import NAMES
from sparring.data.dataset import LabelledImages
from sparring.data.images import read_image, save_png
from sparring.data.opening import open

__all__ = ["NAMES", "LabelledImages", "imagenet_classes", "open", "photograph", "read_image", "save_png"]
