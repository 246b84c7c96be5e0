"""A bag of words: a text classifier whose logits are a sum over words, so that the best attack is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparring.text import TextClassifier, build_tokenizer

GOOD = {
    "good": 2.0,
    "fine": 1.0,
    "great": -0.5,
    "nice": 1.0,
    "lovely": 1.5,
    "film": 0.1,
    "movie": -0.2,
    "story": 0.1,
    "tale": -0.3,
}
BAD = {"bad": -2.0, "poor": -1.0, "boring": -1.0, "dull": 0.5, "awful": -1.5, "weak": -0.2}
SYNONYMS = {
    "good": ["fine", "great"], "film": ["movie"], "bad": ["poor", "weak"], "boring": ["dull"], "story": ["tale"],
    "lovely": ["nice"], "awful": ["bad", "weak"],
}  # fmt: skip
TEXTS = [
    "a good film",
    "a bad film",
    "the good story is lovely",
    "bad and boring story",
    "Good , lovely FILM !",
    "an awful tale .",
]
LABELS = [1, 0, 1, 0, 1, 0]


class Bag(nn.Module):
    """logits (B, 2) = (−s, s) / 2, s the sum of the words' weights; what is added to the vectors adds up, too."""

    classes = 2

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 2, padding_idx=0).double()
        nn.init.zeros_(self.embedding.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        summed: Tensor = (self.embedding(input_ids) * attention_mask[..., None]).sum(1)
        return summed


def bag(weights: Mapping[str, float] | None = None, more: Iterable[str] = ()) -> TextClassifier:
    """The classifier with these weights (default: those above), in float64; other words weigh nothing."""
    weights = GOOD | BAD if weights is None else weights
    tokenizer = build_tokenizer([" ".join(weights), *TEXTS, *more])
    model = Bag(tokenizer.get_vocab_size())
    with torch.no_grad():
        for word, weight in weights.items():
            model.embedding.weight[tokenizer.token_to_id(word)] = torch.tensor([-weight / 2, weight / 2]).double()
    return TextClassifier(model, tokenizer, ["negative", "positive"])


def lstm(texts: Iterable[str] = TEXTS, seed: int = 0) -> TextClassifier:
    """An untrained LSTM over these texts, in float64."""
    from sparring import zoo

    tokenizer = build_tokenizer([*texts, " ".join(GOOD | BAD)])
    torch.manual_seed(seed)
    network = zoo.build(
        "lstm", vocabulary=tokenizer.get_vocab_size(), embedding=8, hidden=8, dense=6, pooling="mean"
    ).double()
    with torch.no_grad():
        network.out.weight.mul_(8)
    return TextClassifier(network, tokenizer, ["negative", "positive"])
