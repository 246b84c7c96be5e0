"""Text models: encoding, the perturbation of embeddings, normalised embeddings, the LSTM, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparring as sp
from sparring import zoo
from sparring.noise import Noise
from sparring.text import EmbeddingPerturber, Encoded, FrequencyNormalizedEmbedding, TextClassifier, build_tokenizer
from sparring.text.frequency import count_tokens, install

TEXTS = ["a good film , really good", "bad", "what a bad film this is , a bad one", "good good"]


def classifier(**args: Any) -> TextClassifier:
    tokenizer = build_tokenizer(TEXTS)
    size = {"embedding": 5, "hidden": 6, "dense": 4} | args
    network = zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), **size)
    return TextClassifier(network, tokenizer, ["bad", "good"]).double()


# encoding


def test_encoding_says_where_words_are() -> None:
    x = classifier().encode(["good film", "what ?", ""])
    assert x.mask.tolist() == [[True, True, True], [True, True, True], [True, False, False]]
    assert x.words.tolist() == [[True, True, False], [True, True, False], [False, False, False]]  # [EOS] is no word
    assert x.ids[1, 1] == 1, "an unknown word"


def test_logits_do_not_depend_on_batches_padding_or_order() -> None:
    model = classifier()
    whole = model.logits(TEXTS)
    assert torch.allclose(model.logits(TEXTS, batch_size=1), whole, atol=1e-12)
    assert torch.allclose(model.logits(TEXTS[::-1]).flip(0), whole, atol=1e-12)
    ids = torch.nn.functional.pad(model.encode(TEXTS).ids, (0, 7))
    assert torch.allclose(model.eval()(ids), whole, atol=1e-12)
    assert not model.logits([]).numel()


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model = classifier(dropout=0.5).train()
    first = model.logits(TEXTS)
    assert torch.equal(first, model.logits(TEXTS)), "no dropout"
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("left", [False, True])
@given(rows=st.lists(st.lists(st.integers(3, 9), min_size=0, max_size=6), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_token_numbers_alone_tell_the_masks(left: bool, rows: list[list[int]]) -> None:
    special = torch.tensor([0, 2])
    rows = [[*row, 2] for row in rows]
    x = Encoded.pad(rows, 0, special, left=left)
    again = Encoded.of_ids(torch.nn.functional.pad(x.ids, (2, 0) if left else (0, 2)), 0, special, left=left)
    for a, b in ((x.ids, again.ids), (x.mask, again.mask), (x.special, again.special)):
        assert torch.equal(a, b)
    assert int(x.words.sum()) == sum(len(row) - 1 for row in rows)


def test_long_texts_are_cut_and_it_is_said_once() -> None:
    model = TextClassifier(classifier().model, build_tokenizer(TEXTS), max_length=4)
    with pytest.warns(UserWarning, match="2 of 4 texts are longer than 4 tokens"):
        x = model.encode(TEXTS)
    assert x.ids.shape == (4, 4)
    assert (x.ids[[0, 2], -1] == 2).all(), "[EOS] stays"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(TEXTS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: classifier().encode("good"), "texts: expected a list of strings"),
        (lambda: classifier().encode(["good", None]), "texts: expected a list of strings"),
        (lambda: TextClassifier(nn.Linear(2, 2), build_tokenizer(TEXTS), 2), "it has none"),
        (lambda: TextClassifier(classifier().model, object()), "tokenizer is object: expected"),
        (lambda: TextClassifier(classifier().model, build_tokenizer(TEXTS), ["a", "b", "c"]), "the model has 2"),
        (lambda: TextClassifier(classifier().model, build_tokenizer(TEXTS), ["a"]), "expected two or more"),
        (
            lambda: TextClassifier(classifier().model, build_tokenizer([*TEXTS, "more words here"])),
            "not made for each other",
        ),
        (lambda: TextClassifier(classifier().model, build_tokenizer(TEXTS), max_length=1), "expected 3 tokens or more"),
        (lambda: classifier().tensors(TEXTS, [0, 1]), "4 texts and labels of shape (2,)"),
        (lambda: build_tokenizer(["", " "]), "the texts hold no word"),
        (lambda: EmbeddingPerturber(classifier(), "lstm"), "has no such part"),
        (lambda: EmbeddingPerturber(classifier(), "model.lstm"), "is LSTM: expected an nn.Embedding"),
        (lambda: TextClassifier.load("/nowhere"), "no text classifier: expected text.json"),
        (lambda: zoo.build("lstm", pooling="max"), "pooling='max': expected"),
    ],
)
def test_what_cannot_be_gets_one_line(make: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as raised:
        make()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# folders


@pytest.mark.parametrize("normalized", [False, True])
def test_a_folder_brings_everything_back(tmp_path: Path, normalized: bool) -> None:
    model = classifier(pooling="mean").float()
    if normalized:
        model.normalize_embedding(TEXTS)
    again = TextClassifier.load(model.save(tmp_path / "model"))
    assert again.classes == ["bad", "good"]
    assert isinstance(again.embedding, FrequencyNormalizedEmbedding) == normalized
    assert torch.equal(again.logits([*TEXTS, "strange words"]), model.logits([*TEXTS, "strange words"]))
    assert {file.suffix for file in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_damaged_folder_gets_one_line(tmp_path: Path) -> None:
    folder = classifier().save(tmp_path / "model")
    document = json.loads((folder / "text.json").read_text())
    for damage in ("{", json.dumps({"format": 1}), json.dumps({**document, "format": 9})):
        (folder / "text.json").write_text(damage)
        with pytest.raises(ValueError):
            TextClassifier.load(folder)
    (folder / "text.json").write_text(json.dumps(document))
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        TextClassifier.load(folder)


# perturbations


def test_an_embedding_that_did_not_run_is_told() -> None:
    model = classifier()
    x = model.encode(TEXTS)
    perturber = EmbeddingPerturber(model, nn.Embedding(20, 5))
    with pytest.raises(RuntimeError, match="did not run in the model's forward"), perturber.adding(None, x):
        model(x)
    with (
        pytest.raises(ValueError, match="a perturbation for"),
        EmbeddingPerturber(model).adding(torch.zeros(4, 1, 5), x),
    ):
        model(x)
    assert not model.embedding._forward_hooks, "nothing stays behind"


def test_a_compiled_model_is_refused() -> None:
    """It would go on without the perturbation, or with the first one."""
    model = classifier()
    model.model._compiled_call_impl = model.model.forward  # what .compile() leaves there
    with (
        pytest.raises(ValueError, match="a compiled model does not see hooks"),
        EmbeddingPerturber(model).adding(None, TEXTS),
    ):
        raise AssertionError


def test_noise_belongs_to_the_word_and_not_to_the_padding() -> None:
    perturber = EmbeddingPerturber(classifier())
    words = torch.tensor([[False, True, True, False], [True, True, True, True]])
    moved = torch.tensor([[True, True, False, False, False, False], [True, True, True, True, False, False]])
    noise = Noise(3, torch.tensor([7, 9]))
    a, b = perturber.normal(noise, words, "x"), perturber.normal(noise, moved, "x")
    assert torch.equal(a[0, 1:3], b[0, :2])
    assert torch.equal(a[1], b[1, :4])
    assert not a[0, [0, 3]].any()


def test_steps_have_their_length_over_the_whole_sequence() -> None:
    perturber = EmbeddingPerturber(classifier())
    words = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    g = (
        torch.randn(3, 3, 5, dtype=torch.float64)
        * torch.tensor([1e-200, 1e200, 1.0], dtype=torch.float64)[:, None, None]
    )
    r = perturber.steepest(g, words, 3.0)
    assert torch.allclose(r.flatten(1).norm(dim=1), torch.tensor([3.0, 3.0, 0.0]).double())
    expected = g[1, 0] / g[1, 0].abs().max()
    assert torch.allclose(r[1, 0], 3 * expected / expected.norm())


# normalised embeddings


def test_normalised_embeddings_have_mean_0_and_variance_1_over_the_corpus() -> None:
    rows = [[3, 4, 4, 5], [3, 3, 6]]
    layer = FrequencyNormalizedEmbedding(8, 4, count_tokens(rows, 8), padding_idx=0).double()
    vectors = layer(torch.tensor([token for row in rows for token in row]))
    assert torch.allclose(vectors.mean(0), torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(vectors.var(0, unbiased=False), torch.ones(4).double(), atol=1e-12)
    assert not layer(torch.tensor([0])).any()


def test_padding_is_no_word_of_the_corpus() -> None:
    counts = torch.tensor([0.0, 1, 5, 2, 3])
    layer = FrequencyNormalizedEmbedding(5, 3, counts, padding_idx=0)
    padded = FrequencyNormalizedEmbedding(5, 3, counts + torch.tensor([90.0, 0, 0, 0, 0]), padding_idx=0)
    with torch.no_grad():
        layer.weight[0] = 7.0  # would move the mean
        padded.weight.copy_(layer.weight)
    assert torch.equal(padded.counts, counts)
    assert torch.equal(padded(torch.arange(5)), layer(torch.arange(5)))


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_growing_the_weights_changes_nothing(scale: float, shift: float, seed: int) -> None:
    """So a network can't make eps small; and the loss's gradient has no part along that change."""
    generator = torch.Generator().manual_seed(seed)
    layer = FrequencyNormalizedEmbedding(6, 3, torch.tensor([0.0, 1, 5, 2, 0, 3])).double()
    layer.weight.data = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 4], [5, 3, 2]])
    before = layer(tokens)
    value = (before * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)).sum()
    (gradient,) = torch.autograd.grad(value, layer.weight)
    assert abs((gradient * layer.weight.detach()).sum().item()) < 1e-8 * max(1.0, gradient.abs().max().item())
    with torch.no_grad():
        layer.weight.mul_(scale).add_(shift)
    assert torch.allclose(layer(tokens), before, atol=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_large_corpus_in_half_precision(half: torch.dtype) -> None:
    """65,504 is float16's largest number; a corpus has more words than that, and rare ones that are few of them."""
    layer = FrequencyNormalizedEmbedding(5, 3, torch.tensor([0.0, 1, 500_000, 200_003, 30_000]), padding_idx=0)
    tokens = torch.arange(5)
    before = layer(tokens)
    after = layer.to(half)(tokens)
    assert after.dtype == half
    assert torch.allclose(after.float(), before, atol=0.05, rtol=0.02)
    assert layer.counts.tolist() == [0, 1, 500_000, 200_003, 30_000]
    assert torch.allclose(layer.float()(tokens), before, atol=0.05, rtol=0.02), "and back"


def test_gradients_of_a_normalised_embedding() -> None:
    layer = FrequencyNormalizedEmbedding(5, 3, torch.tensor([0.0, 1, 5, 2, 3]), padding_idx=0).double()
    tokens = torch.tensor([[1, 2, 0], [4, 3, 2]])

    def out(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (tokens,))

    assert torch.autograd.gradcheck(out, (layer.weight.detach().requires_grad_(True),))


@pytest.mark.parametrize("counts", [torch.zeros(4), torch.tensor([1.0, 0, 0, 0]), torch.ones(3), -torch.ones(4)])
def test_counts_that_cannot_be(counts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="counts"):
        FrequencyNormalizedEmbedding(4, 2, counts)


def test_it_takes_the_place_of_the_embedding_that_the_model_tells() -> None:
    """Or of any that `get_input_embeddings` tells: the model is given, not imported, so that this stays fast."""

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = nn.ModuleDict({"words": nn.Embedding(12, 8), "positions": nn.Embedding(5, 8)})

        def get_input_embeddings(self) -> nn.Module:
            return self.bert["words"]

    model = Told()
    layer = install(model, torch.ones(12))
    assert model.get_input_embeddings() is layer


# learning


def test_a_normalised_embedding_takes_the_place_of_the_one_that_was_told() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word, self.place, self.out = nn.Embedding(40, 4), nn.Embedding(40, 4), nn.Linear(4, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            places = torch.arange(input_ids.shape[1])
            logits: torch.Tensor = self.out((self.word(input_ids) + self.place(places)).mean(1))
            return logits

    net = Two()
    model = TextClassifier(net, build_tokenizer(TEXTS), 2, embedding=net.word)
    model.normalize_embedding(TEXTS)
    assert isinstance(net.word, FrequencyNormalizedEmbedding)
    assert model.embedding is net.word
    assert type(net.place) is nn.Embedding
    assert EmbeddingPerturber(model).embedding is net.word


def test_the_lstm_is_what_its_page_says() -> None:
    """Dropout: one mask for all of a text's tokens. Pooling: the state after the last token, or the mean of all."""
    model = classifier(dropout=0.5, embedding=64).train().model
    seen = []
    model.lstm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ids = torch.tensor([[3, 4, 5], [3, 3, 3]])
    model(ids, torch.ones_like(ids))
    dropped = seen[0] == 0
    assert (dropped == dropped[:, :1]).all()
    assert 0.2 < dropped.double().mean() < 0.8
    assert not torch.equal(dropped[0], dropped[1]), "each text has its own"
    for pooling in ("last", "mean"):
        model = classifier(pooling=pooling).eval().model
        states = model.states(ids[:1, :2])
        pooled = states[:, -1] if pooling == "last" else states.mean(1)
        mask = torch.tensor([[1, 1, 0]])
        assert torch.allclose(model(ids[:1], mask), model.out(torch.relu(model.dense(pooled))), atol=1e-12)


def test_fit_learns_texts_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Stopped by time and started again: the same weights, with dropout and an average."""
    texts = [f"{word} film {i % 7}" for i, word in enumerate(["good", "bad"] * 40)]
    y = [1, 0] * 40

    def train(folder: Path, *limits: float | None) -> TextClassifier:
        model = None
        for limit in limits:
            tokenizer = build_tokenizer(texts)
            network = zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), embedding=8, hidden=8, pooling="mean")
            model = TextClassifier(network, tokenizer)
            strategy = sp.TextAdversarial(0.5).with_(sp.VirtualAdversarial(0.5, xi=0.1), sp.EMA(0.9))
            sp.fit(
                model, model.tensors(texts, y), strategy, epochs=8, batch_size=16, optimizer="adam", lr=0.02, out=folder,
                max_grad_norm=1.0, unlabelled=model.tensors(texts[:32], y[:32])[0], unlabelled_batch_size=8, time_limit=limit,
                save_every=0.0, loggers=[],
            )  # fmt: skip
        assert model is not None
        return model

    straight = train(tmp_path / "a", None)
    broken = train(tmp_path / "b", 0.15, 0.15, None)
    for a, b in zip(straight.parameters(), broken.parameters()):
        assert torch.equal(a, b)
    assert (straight.logits(texts).argmax(1) == torch.tensor(y)).double().mean() > 0.9


def test_pretraining_foretells_words_and_moves_what_the_classifier_keeps() -> None:
    from sparring.training.language import pretrain

    texts = ["one two three four five six"] * 16 + ["two three four five six one"] * 16
    tokenizer = build_tokenizer(texts)
    network = zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), embedding=8, hidden=16, dropout=0.0)
    model = TextClassifier(network, tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = pretrain(model, texts, epochs=25, lr=0.02, batch_size=8)
    assert result.history[-1].accuracy > 0.8
    moved = {name.split(".")[1] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"embedding", "lstm"}


def test_padding_is_no_next_word() -> None:
    from sparring.training.language import LanguageModel, NextToken

    language = LanguageModel(classifier(dropout=0.0)).double()
    rows = [language.classifier.encode([text]).ids for text in TEXTS]
    answers = torch.cat([language(row)[0] for row in rows])
    expected = nn.functional.cross_entropy(answers, torch.cat([row[0, 1:] for row in rows]))
    batch = sp.Batch(language.classifier.encode(TEXTS).ids, torch.zeros(len(TEXTS), dtype=torch.long))
    (found,) = [loss.value for loss in NextToken()(language, batch)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_texts_without_a_next_word_are_no_hindrance_to_pretraining() -> None:
    from sparring.training.language import pretrain

    model = classifier()
    result = pretrain(model, [*TEXTS, "\u200b", "\u200b"], epochs=1, batch_size=1)  # nothing but [EOS]
    assert result.finished
    with pytest.raises(ValueError, match="no text has two tokens"):
        pretrain(model, ["\u200b"], epochs=1)


@pytest.mark.parametrize("strategy", [sp.FreeLB(start=1e-9, step_size=1e-9), sp.TextAdversarial(1e-9), sp.SMART()])
def test_in_mixed_precision_and_its_loss_is_told_as_it_is(strategy: Any) -> None:
    """The loss told is that of a text, not its K-th part; bf16 learns on any CPU."""
    model = classifier(dropout=0.0).float()
    x, y = model.tensors(TEXTS * 4, [1, 0, 0, 1] * 4)
    with torch.no_grad():
        clean = torch.nn.functional.cross_entropy(model.eval()(x), y).item()
    given = {"validation": False, "batch_size": 16, "lr": 1e-9}
    for precision, tolerance in ((None, 1e-4), ("bf16", 2e-2)):
        result = sp.fit(model, (x, y), strategy.with_(), epochs=1, precision=precision, **given)
        assert result.history[-1].loss == pytest.approx(clean, abs=tolerance)
