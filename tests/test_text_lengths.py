"""Batches of texts of like length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from sparring import zoo
from sparring.text import LengthBatches, TextClassifier, build_tokenizer

TEXTS = [" ".join(["good" if i % 2 else "bad"] * (1 + i % 9)) for i in range(70)]
LABELS = [i % 2 for i in range(70)]


def classifier() -> TextClassifier:
    tokenizer = build_tokenizer(TEXTS)
    return TextClassifier(zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), embedding=8, hidden=8), tokenizer)


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=300), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99)
)
def test_every_text_comes_once_and_no_batch_is_a_rest(lengths: list[int], size: int, window: int, seed: int) -> None:
    torch.manual_seed(seed)
    sampler = LengthBatches(lengths, size, window)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert max(map(len, batches)) <= size
    tail = len(lengths) % (size * window) or size * window  # the last window alone may have smaller ones
    assert min(map(len, batches)) >= min(size, tail // -(-tail // size))


def test_padding_is_what_sorting_leaves_and_company_changes() -> None:
    lengths = torch.randint(1, 60, (640,), generator=torch.Generator().manual_seed(0))
    sampler = LengthBatches(lengths, 16)
    torch.manual_seed(0)
    first, second = list(sampler), list(sampler)
    cost = sum(len(batch) * int(lengths[batch].max()) for batch in first)
    best = sum(16 * int(part[0]) for part in lengths.sort(descending=True).values.split(16))
    assert cost == best < 1.05 * int(lengths.sum())
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    torch.manual_seed(0)
    assert list(sampler) == first
    means = [float(lengths[batch].float().mean()) for batch in first]
    assert means != sorted(means), "short and long batches come mixed"
    narrow = list(LengthBatches(lengths, 16, window=1))
    assert sum(len(batch) * int(lengths[batch].max()) for batch in narrow) > 1.5 * int(lengths.sum()), "chance alone"


def test_lengths_are_those_of_the_texts_wherever_the_padding_is() -> None:
    model = classifier()
    tokens = [2 + i % 9 for i in range(70)]  # the words, and [EOS]
    x = model.numbers(TEXTS)
    assert model.lengths(x).tolist() == tokens
    assert model.lengths(x.flip(1)).tolist() == tokens


def test_fit_learns_in_such_batches_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    def train(folder: Path, *limits: float | None) -> tuple[TextClassifier, Any]:
        for limit in limits:
            model = classifier()
            x, y = model.tensors(TEXTS, LABELS)
            loader = DataLoader(TensorDataset(x, y), batch_sampler=LengthBatches(model.lengths(x), 8))
            result = sp.fit(
                model, loader, sp.TextAdversarial(0.1), epochs=6, optimizer="adam", lr=0.02, out=folder, loggers=[],
                time_limit=limit, save_every=0.0, validation=False,
            )  # fmt: skip
        return model, result

    (straight, result), (broken, _) = train(tmp_path / "a", None), train(tmp_path / "b", 0.05, 0.05, None)
    assert result.history[-1].accuracy > 0.95
    for a, b in zip(straight.parameters(), broken.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("lengths", "settings", "said"),
    [
        ([], {}, r"lengths of shape \(0,\): expected one number a text, and a text at least"),
        (torch.ones(2, 2), {}, r"lengths of shape \(2, 2\)"),
        ([1, 2], {"batch_size": 0}, r"LengthBatches\(batch_size=0\): expected a whole number, at least 1"),
        ([1, 2], {"window": 1.5}, r"LengthBatches\(window=1.5\)"),
    ],
)
def test_what_cannot_be_gets_one_line(lengths: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LengthBatches(lengths, **{"batch_size": 2, **settings})


def test_lengths_of_words_or_of_other_texts_get_one_line() -> None:
    with pytest.raises(TypeError, match="lengths of list: expected one number a text"):
        LengthBatches(["a"], 2)  # type: ignore[list-item]
    model = classifier()
    x, y = model.tensors(TEXTS[:9], LABELS[:9])
    loader = DataLoader(TensorDataset(x, y), batch_sampler=LengthBatches(list(range(1, 71)), 8))
    with pytest.raises(ValueError, match="the loader's sampler draws sample 69 of 9: it is another data set's"):
        sp.fit(model, loader, sp.Standard(), epochs=1, validation=False)
