"""Tokenisers: one of our own making from the `tokenizers` library, or a Hugging Face one, asked in the same way."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[EOS]"
FILE = "tokenizer.json"
ENDLESS = 1 << 20  # Hugging Face's "no limit" is a number beyond all bounds


def needed(name: str) -> Any:
    """A module of the extra `text`. ImportError, in one line, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"text needs {name}: pip install 'sparring[text]'") from error


def build_tokenizer(texts: Iterable[str], size: int = 20_000, *, lowercase: bool = True, min_count: int = 1) -> Any:
    """A word-level `tokenizers.Tokenizer` whose vocabulary are the most frequent words of these texts.

    Words are parted at spaces and punctuation; an [EOS] is put behind every text. size: at most so many entries, with [PAD]
    (0), [UNK] (1) and [EOS] (2). min_count: rarer words are unknown. Raises ValueError where the texts hold no word.

    >>> tokenizer = build_tokenizer(["A good film", "A bad film!"])
    >>> tokenizer.encode("a GOOD idea").tokens
    ['a', 'good', '[UNK]', '[EOS]']
    """
    library = needed("tokenizers")
    if size < 4:
        raise ValueError(f"size={size!r}: expected room for [PAD], [UNK], [EOS] and a word, at least 4")
    tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=[PAD, UNKNOWN, END], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < 4:
        raise ValueError("the texts hold no word: nothing to make a vocabulary of")
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = library.processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return tokenizer


class Tokens:
    """What a classifier asks of a tokeniser, whoever made it.

    pad_id: of padding. fill: what stands for padding in a table of token numbers; −1 where pad_id is also a token of texts, as
    with pad = eos. unknown_id: of words that are not in the vocabulary; None where it splits those up.
    special_ids: (n,) of tokens that are no part of a text; unknown words are. left: padding side.
    limit: the longest text in tokens that it says its model takes; None where it says nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.own = type(tokenizer).__module__.split(".")[0] == "tokenizers"
        self.limit: int | None = None
        self.left = False
        self.unknown_id: int | None = None
        if self.own:
            self.unknown_id = tokenizer.token_to_id(UNKNOWN)
            special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
            special -= {tokenizer.token_to_id(UNKNOWN)}
            pad = tokenizer.token_to_id(PAD)
            self.size = int(tokenizer.get_vocab_size())
        elif callable(tokenizer) and hasattr(tokenizer, "all_special_ids"):
            special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
            pad = tokenizer.pad_token_id
            self.left = tokenizer.padding_side == "left"
            self.limit = tokenizer.model_max_length if tokenizer.model_max_length < ENDLESS else None
            self.size = len(tokenizer)
        else:
            raise TypeError(
                f"tokenizer is {type(tokenizer).__name__}: expected a tokenizers.Tokenizer (build_tokenizer makes one) or a "
                "Hugging Face tokenizer"
            )
        if pad is None:
            raise ValueError(
                "the tokenizer has no padding token: set one, as in tokenizer.pad_token = tokenizer.eos_token"
            )
        self.pad_id = int(pad)
        ends = (
            ()
            if self.own
            else (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id)
        )
        self.fill = -1 if self.pad_id in ends else self.pad_id
        self.special_ids: Tensor = torch.tensor(sorted(special), dtype=torch.long)

    def rows(self, texts: Sequence[str], limit: int | None) -> tuple[list[list[int]], int]:
        """Token numbers of each text, of at most `limit` tokens, special ones included; and how many texts were cut."""
        if self.own:
            found = [list(each.ids) for each in self.tokenizer.encode_batch(list(texts))]
            ends = 1 if found and found[0] and found[0][-1] in set(self.special_ids.tolist()) else 0
            long = [i for i, row in enumerate(found) if limit is not None and len(row) > limit]
            for i in long:
                assert limit is not None
                found[i] = [*found[i][: limit - ends], *found[i][len(found[i]) - ends :]]
            return found, len(long)
        if limit is None:
            return list(self.tokenizer(list(texts), verbose=False)["input_ids"]), 0
        found = list(self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"])
        full = [texts[i] for i, row in enumerate(found) if len(row) >= limit]
        whole = self.tokenizer(full, verbose=False)["input_ids"] if full else []
        return found, sum(len(row) > limit for row in whole)

    def save(self, folder: Path) -> None:
        if self.own:
            self.tokenizer.save(str(folder / FILE))
        else:
            self.tokenizer.save_pretrained(folder)
