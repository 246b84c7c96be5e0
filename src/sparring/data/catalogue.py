"""The data sets known by name: what they contain and where copies of them usually lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Known:
    """A data set known by name.

    `places`: where under a root its files may lie, in the order of preference.
    `torchvision`: the class that downloads it.
    """

    classes: tuple[str, ...]
    places: tuple[str, ...]
    torchvision: str

    def download(self, split: str) -> str:
        """The command that gets it."""
        which = f"split='{split}'" if self.torchvision == "GTSRB" else f"train={split == 'train'}"
        return f"python -c \"from torchvision.datasets import *; {self.torchvision}('data', {which}, download=True)\""


SIGNS = (
    *(f"speed limit {v} km/h" for v in (20, 30, 50, 60, 70, 80)),
    "end of speed limit 80 km/h",
    "speed limit 100 km/h",
    "speed limit 120 km/h",
    "no overtaking",
    "no overtaking by lorries",
    "right of way at the next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "danger",
    "bend to the left",
    "bend to the right",
    "double bend",
    "uneven road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic lights",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "ice or snow",
    "wild animals crossing",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by lorries",
)

CATALOGUE = {
    "fashion-mnist": Known(
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        places=("fashion-mnist", "FashionMNIST/raw", "fashion-mnist/FashionMNIST/raw"),
        torchvision="FashionMNIST",
    ),
    "mnist": Known(
        classes=tuple("0123456789"),
        places=("mnist", "MNIST/raw", "mnist/MNIST/raw"),
        torchvision="MNIST",
    ),
    "cifar10": Known(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        places=("cifar10", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
        torchvision="CIFAR10",
    ),
    "gtsrb": Known(classes=SIGNS, places=("gtsrb32", "gtsrb", "gtsrb/GTSRB", "GTSRB"), torchvision="GTSRB"),
}
NAMES = tuple(CATALOGUE)


def roots() -> list[Path]:
    """Where data sets are looked for: $SPARRING_DATA, ./data, torch's caches, the system's data sets.

    Raises:
        FileNotFoundError: $SPARRING_DATA is set to what is no folder.
    """
    found = []
    if chosen := os.environ.get("SPARRING_DATA"):
        if not Path(chosen).is_dir():
            raise FileNotFoundError(f"SPARRING_DATA={chosen}: no such folder; correct it or unset it")
        found.append(Path(chosen))
    cache = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    return [*found, Path("data"), cache / "datasets", cache, Path("/usr/share/datasets")]


def candidates(name: str) -> Iterator[Path]:
    """The existing folders that may hold the named data set, best first."""
    for root in roots():
        for place in CATALOGUE[name].places:
            if (root / place).is_dir():
                yield root / place
