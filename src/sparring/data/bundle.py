"""What comes with the package: a subset of Fashion-MNIST, a photograph, the names of ImageNet's classes.

Origins and licences stand beside the files, in `bundled/LICENSE-*`.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"


def photograph() -> Path:
    """A photograph of a cat (CC0), 451×300 JPEG."""
    return BUNDLED / "chelsea.jpg"


def imagenet_classes() -> list[str]:
    """The 1,000 classes of ILSVRC-2012 by their index, each by the first word of its WordNet 3.0 synset, all different.

    >>> imagenet_classes()[388], imagenet_classes()[288], len(set(imagenet_classes()))
    ('giant panda', 'leopard', 1000)
    """
    return (BUNDLED / "imagenet-classes.txt").read_text(encoding="utf-8").splitlines()
