"""Which word does each token come from?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparring.text.classifier import TextClassifier


def word_of_token(classifier: TextClassifier, text: str, spans: Sequence[tuple[int, int]], width: int) -> Tensor:
    """(width,) int64: the number of the word that each token of the encoded text lies in, −1 where it lies in none.

    spans: where the words are in the text. width: tokens that `classifier.encode` makes of it, all of which it sees.
    ValueError for a tokeniser that does not say where its tokens come from.
    """
    tokens = classifier.tokens
    if tokens.own:
        found = list(tokens.tokenizer.encode(text).offsets)
    else:
        if not tokens.tokenizer.is_fast:
            raise ValueError(
                "rank='gradient' needs to know where tokens come from, which only fast tokenizers tell: use rank='deletion'"
            )
        found = tokens.tokenizer(text, truncation=True, max_length=classifier.max_length, return_offsets_mapping=True)[
            "offset_mapping"
        ]
    owner = torch.full((width,), -1, dtype=torch.int64)
    for place, (first, last) in enumerate(found[:width]):
        inside = (i for i, (begin, end) in enumerate(spans) if last > first and first < end and last > begin)
        owner[place] = next(inside, -1)
    if tokens.own and len(found) > width:
        owner[-1] = -1  # a text that was cut ends with its end token
    return owner
