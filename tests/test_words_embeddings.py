"""PGD on embeddings: the steepest step of a linear model, and what it never moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sparring as sp
from bags import LABELS, TEXTS, bag, lstm
from sparring.borrow import borrow
from sparring.text import EmbeddingPGD


def test_a_bag_of_words_moves_by_eps_root_of_twice_its_words() -> None:
    """The gradient of the margin at each of T words is (±1, ∓1), so the best of length eps adds eps·√(2T)."""
    model = bag()
    clean = EmbeddingPGD(1e-9, steps=1, objective="margin")(model, TEXTS, LABELS).objective
    for eps in (0.01, 0.05):
        found = EmbeddingPGD(eps, steps=5, objective="margin")(model, TEXTS, LABELS)
        for text, before, after, norm in zip(TEXTS, clean, found.objective, found.norm):
            tokens = len(text.split())
            assert float(after) == pytest.approx(float(before) + eps * math.sqrt(2 * tokens), abs=1e-6)
            assert float(norm) == pytest.approx(eps, rel=1e-6)
        assert found.texts == TEXTS
        assert [len(part) for part in found.perturbations] == [len(text.split()) for text in TEXTS]  # type: ignore[arg-type]


def test_the_margin_falls_where_the_ball_reaches_it() -> None:
    model = bag()
    clean = EmbeddingPGD(1e-9, steps=1, objective="margin")(model, TEXTS[:1], LABELS[:1]).objective
    needed = -float(clean[0]) / math.sqrt(2 * 3)
    assert not EmbeddingPGD(0.99 * needed, steps=10)(model, TEXTS[:1], LABELS[:1]).success.any()
    assert EmbeddingPGD(1.01 * needed, steps=10)(model, TEXTS[:1], LABELS[:1]).success.all()


def test_what_it_finds_is_what_the_model_says() -> None:
    model = lstm()
    attack = EmbeddingPGD(2.0, steps=8, restarts=2)
    found = attack(model, TEXTS, LABELS, seed=3)
    assert int(found.success.sum()) > 0
    assert bool((found.norm <= 2.0 * (1 + 1e-9)).all())
    with borrow(model) as borrowed:
        from sparring.text.attacks import Attempt

        for i, text in enumerate(TEXTS):
            attempt = Attempt(i, text, True, 0, 0.0, 0, 0, 0, perturbation=found.perturbations[i])
            logits = attack.answer(borrowed, attempt)
            assert int(logits.argmax()) == int(found.prediction[i])
            assert (int(logits.argmax()) != LABELS[i]) == bool(found.success[i])


@pytest.mark.parametrize("restarts", [1, 3])
def test_company_and_order_do_not_matter(restarts: int) -> None:
    model, attack = lstm(), EmbeddingPGD(0.3, steps=6, restarts=restarts)
    indices = torch.tensor([5, 9, 2, 11, 7, 1])
    whole = attack(model, TEXTS, LABELS, indices=indices, seed=1)
    for batch_size in (1, 4):
        again = attack(model, TEXTS[::-1], LABELS[::-1], indices=indices.flip(0), batch_size=batch_size, seed=1)
        assert again.success.flip(0).tolist() == whole.success.tolist()
        assert again.queries.flip(0).tolist() == whole.queries.tolist()
        assert torch.allclose(again.objective.flip(0), whole.objective, atol=1e-9)


def test_steps_cost_what_they_should_and_a_success_ends_them() -> None:
    model = bag()
    standing = EmbeddingPGD(1e-6, steps=7)(model, TEXTS, LABELS)
    assert standing.queries.tolist() == [8] * 6
    assert standing.backwards == 42
    fallen = EmbeddingPGD(50.0, steps=7)(model, TEXTS, LABELS)
    assert fallen.success.all()
    assert fallen.queries.tolist() == [2] * 6
    wrong = EmbeddingPGD(1.0)(model, TEXTS[:1], [0])
    assert wrong.queries.tolist() == [1]


def test_padding_on_the_left_and_special_tokens() -> None:
    """With a Hugging Face tokenizer that pads on the left and frames the text, only the words move."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side="left",
    )

    class Mean(nn.Module):
        classes = 2

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(8, 4).double()
            self.out = nn.Linear(4, 2).double()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            weight = attention_mask[..., None].double()
            answer: torch.Tensor = self.out((self.embedding(input_ids) * weight).sum(1) / weight.sum(1))
            return answer

    model = sp.TextClassifier(Mean(), tokenizer, 2, max_length=16)
    texts = ["a good film", "bad"]
    found = EmbeddingPGD(0.5, restarts=2)(model, texts, [0, 0], seed=2)
    assert [part.shape for part in found.perturbations] == [(3, 4), (1, 4)]  # type: ignore[union-attr]
    alone = [
        EmbeddingPGD(0.5, restarts=2)(model, [text], [0], indices=torch.tensor([i]), seed=2)
        for i, text in enumerate(texts)
    ]
    for i, one in enumerate(alone):
        assert float(one.objective[0]) == pytest.approx(float(found.objective[i]), abs=1e-9)
    ranked = sp.WordSubstitution({"good": ["bad"], "film": ["bad"]}, rank="gradient", max_changed=1.0)
    deleted = sp.WordSubstitution({"good": ["bad"], "film": ["bad"]}, max_changed=1.0)
    assert ranked(model, texts, [0, 0]).success.tolist() == deleted(model, texts, [0, 0]).success.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "a length above 0"),
        ({"eps": "5"}, "a length above 0"),
        ({"eps": 1.0, "steps": 0}, "steps=0"),
        ({"eps": 1.0, "restarts": 0}, "restarts=0"),
        ({"eps": 1.0, "step_size": -1.0}, "step_size"),
        ({"eps": 1.0, "objective": "loss"}, "expected one of"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingPGD(**settings)  # type: ignore[arg-type]
