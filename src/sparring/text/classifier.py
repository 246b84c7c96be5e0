"""`TextClassifier`: a network and its tokeniser, which together answer to texts."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparring.borrow import borrow
from sparring.text.encoded import Encoded
from sparring.text.frequency import FrequencyNormalizedEmbedding, count_tokens, find_embedding, install
from sparring.text.tokens import FILE, Tokens, needed

FORMAT = 1
DOCUMENT, WEIGHTS = "text.json", "model.safetensors"
LONGEST = 400  # tokens, where neither tokeniser nor network names a limit


class TextClassifier(nn.Module):
    """A network of token numbers and the tokeniser that it was made with.

    model: called as model(input_ids=(B, T) int64, attention_mask=(B, T) int64), gives logits (B, C), or an object with
    `.logits`: `zoo.build("lstm", …)`, or any Hugging Face model for sequence classification. tokenizer: a
    `tokenizers.Tokenizer` (`build_tokenizer` makes one) or a Hugging Face one. classes: their names, or how many; left out:
    what the model says. max_length: longer texts are cut to so many tokens, with a warning; left out: what tokeniser and
    model can take. embedding: the layer that turns token numbers into vectors; left out: it is found.

    A module itself: `classifier(encoded)` are logits with a graph, `sp.fit` trains it, `state_dict` is the network's.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        classes: Sequence[str] | int | None = None,
        *,
        max_length: int | None = None,
        embedding: nn.Embedding | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {type(model).__name__}: expected an nn.Module that takes input_ids")
        self.model = model
        self.tokens = Tokens(tokenizer)
        self.classes = _classes(model, classes)
        limits = (self.tokens.limit, _positions(model))
        known = [limit for limit in limits if limit is not None]
        self.max_length = max_length or (min(known) if known else LONGEST)
        if self.max_length < 3 or any(self.max_length > limit for limit in known):
            raise ValueError(
                f"max_length={max_length!r}: expected 3 tokens or more"
                + (f", and no more than the model takes, {min(known)}" if known else "")
            )
        self._told = (embedding,)  # a tuple, so that it is no child
        if self.tokens.size > self.embedding.num_embeddings:
            raise ValueError(
                f"the tokenizer has {self.tokens.size} tokens and the model's embedding {self.embedding.num_embeddings}: they "
                "were not made for each other"
            )
        self._warned = False

    @property
    def tokenizer(self) -> Any:
        return self.tokens.tokenizer

    @property
    def embedding(self) -> nn.Embedding:
        """The layer that turns token numbers into vectors."""
        told = self._told[0]
        return find_embedding(self.model) if told is None else told

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Token numbers, attention mask and special-token mask of these texts, padded to the longest, on the model's device.

        Texts beyond `max_length` tokens are cut, which a warning says once. TypeError for what are no texts.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts: expected a list of strings")
        rows, cut = self.tokens.rows(texts, self.max_length)
        if cut and not self._warned:
            self._warned = True
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than {self.max_length} tokens: what comes after is not read",
                stacklevel=2,
            )
        return Encoded.pad(rows, self.tokens.pad_id, self.tokens.special_ids, left=self.tokens.left).to(self.device)

    def tensors(self, texts: Sequence[str], labels: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """`numbers` of texts, and their classes (N,), on the CPU: data for `sp.fit`."""
        y = torch.as_tensor(labels, dtype=torch.long)
        if y.shape != (len(texts),):
            raise ValueError(
                f"{len(texts)} texts and labels of shape {tuple(y.shape)}: expected a class number for each"
            )
        return self.numbers(texts), y

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Token numbers (N, T), padded to the longest, on the CPU: with −1 where the tokenizer pads with a token that texts
        hold (pad = eos)."""
        x = self.encode(texts)
        return x.ids.masked_fill(~x.mask, self.tokens.fill).cpu()

    def lengths(self, numbers: Tensor) -> Tensor:
        """(N,) tokens of each text of `numbers`, which `LengthBatches` takes."""
        return (numbers != self.tokens.fill).sum(1)

    def encoded(self, x: Encoded | Tensor) -> Encoded:
        """Token numbers (B, T), padded at one end as `numbers` does it, as a batch; columns of nothing but padding are left out.

        ValueError where it can't be told which of them are padding.
        """
        if isinstance(x, Encoded):
            return x
        tokens = self.tokens
        edge = x[:, :2] if tokens.left else x[:, -2:]
        if tokens.fill != tokens.pad_id and edge.shape[1] == 2 and bool((edge == tokens.pad_id).all(1).any()):
            raise ValueError(
                f"texts end in {tokens.pad_id}, which is padding and a token of texts: pad with {tokens.fill}, as "
                "TextClassifier.numbers does, or give an Encoded with its mask"
            )
        return Encoded.of_ids(x, tokens.pad_id, tokens.special_ids, left=tokens.left, fill=tokens.fill)

    def forward(self, x: Encoded | Tensor) -> Tensor:
        """Logits (B, C), in the module's own mode, with a graph where gradients are on."""
        answer = self.model(**self.encoded(x).inputs())
        logits: Tensor = answer if isinstance(answer, Tensor) else answer.logits
        return logits

    def normalize_embedding(self, texts: Sequence[str]) -> None:
        """Puts a `FrequencyNormalizedEmbedding`, with the frequencies of these texts, in the place of the embedding layer: for
        a network that is yet to learn."""
        rows, _ = self.tokens.rows(texts, self.max_length)
        made = install(self.model, count_tokens(rows, self.embedding.num_embeddings), self.embedding)
        self._told = (None,) if self._told[0] is None else (made,)

    @torch.no_grad()
    def vector_length(self) -> float:
        """L2 length of a word vector, the root mean square over the vocabulary: what sizes of perturbations compare with."""
        vectors = self.embedding(torch.arange(self.tokens.size, device=self.device))
        return float(vectors.double().square().sum(1).mean().sqrt())

    def logits(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Logits (N, C) of texts, in evaluation mode and without a graph, on the CPU.

        Texts of like lengths go together, so that little padding is computed.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers = torch.zeros(len(texts), len(self.classes))
        with borrow(self), torch.no_grad():
            for start in range(0, len(order), batch_size):
                some = order[start : start + batch_size]
                logits = self(self.encode([texts[i] for i in some])).cpu()
                answers = answers.to(torch.promote_types(answers.dtype, logits.dtype))
                answers[torch.tensor(some)] = logits.to(answers.dtype)
        return answers

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes a folder that `load` reads: safetensors, the tokeniser and JSON. Files that lie there are replaced.

        ValueError for a network that is neither of the zoo nor of Hugging Face: a folder can't say how to build it.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        settings = getattr(self.model, "settings", None)
        pretrained: Any = getattr(self.model, "save_pretrained", None)
        if pretrained is None and not isinstance(settings, dict):
            raise ValueError(
                f"a {type(self.model).__name__} can't be built again from a folder: expected a network of sparring.zoo or of "
                "Hugging Face; keep its state_dict yourself"
            )
        normalized = isinstance(self.embedding, FrequencyNormalizedEmbedding)
        if pretrained is not None and normalized:
            raise ValueError("a Hugging Face folder has no place for the frequencies of a normalised embedding")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as made:
            new = Path(made)
            self.tokens.save(new)
            if pretrained is not None:
                with _without_bars():
                    pretrained(new)
            else:
                state = self.model.state_dict()
                save_file({name: part.detach().cpu().contiguous() for name, part in state.items()}, new / WEIGHTS)
            document = {
                "format": FORMAT,
                "network": settings if pretrained is None else "huggingface",
                "normalized": normalized,
                "tokenizer": "tokenizers" if self.tokens.own else "huggingface",
                "classes": self.classes,
                "max_length": self.max_length,
            }
            (new / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False), "utf-8")
            for file in sorted(new.iterdir(), key=lambda file: file.name == DOCUMENT):  # the document comes last
                os.replace(file, path / file.name)
        return path

    @classmethod
    def pretrained(
        cls, folder: str | os.PathLike[str], classes: Sequence[str] | int, *, max_length: int | None = None
    ) -> TextClassifier:
        """A Hugging Face model and tokeniser from a folder, with a new head for these classes where it has none for as many."""
        count = classes if isinstance(classes, int) else len(classes)
        library = needed("transformers")
        with _without_bars():
            model = library.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=count, ignore_mismatched_sizes=True, local_files_only=True
            )
        names = [str(i) for i in range(count)] if isinstance(classes, int) else list(classes)
        model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, names, max_length=max_length)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TextClassifier:
        """The classifier that `save` wrote, or a Hugging Face folder of a model for sequence classification; in eval mode.

        FileNotFoundError or ValueError, in one line, for a folder that holds none.
        """
        path = Path(folder)
        if not (path / DOCUMENT).is_file():
            if (path / "config.json").is_file():
                return cls(*_pretrained(path)).eval()
            raise FileNotFoundError(f"{path}: no text classifier: expected {DOCUMENT}, or Hugging Face's config.json")
        try:
            document = json.loads((path / DOCUMENT).read_text("utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, expected {FORMAT}")
            classes, limit, network = document["classes"], document["max_length"], document["network"]
            if network == "huggingface":
                model, tokenizer = _pretrained(path)
            else:
                from sparring import zoo

                model, tokenizer = zoo.build(**network), None
                if document["normalized"]:
                    install(model, torch.ones(find_embedding(model).num_embeddings))  # the counts are in the file
                model = zoo.load_weights(model, path / WEIGHTS)
            if document["tokenizer"] == "tokenizers":
                tokenizer = needed("tokenizers").Tokenizer.from_file(str(path / FILE))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path / DOCUMENT}: not a text classifier that this version wrote ({error})") from error
        return cls(model, tokenizer, classes, max_length=limit).eval()

    def __repr__(self) -> str:
        return f"TextClassifier({type(self.model).__name__}, {self.tokens.size} tokens, classes={self.classes})"


def _classes(model: nn.Module, given: Sequence[str] | int | None) -> list[str]:
    config = getattr(model, "config", None)
    count = getattr(config, "num_labels", None) or getattr(model, "classes", None)
    if given is None:
        names = getattr(config, "id2label", None)
        if names is not None:
            return [str(names[i]) for i in sorted(names)]
        given = count
    if given is None:
        raise ValueError(f"{type(model).__name__} does not say how many classes it knows: give classes=")
    names = [str(i) for i in range(given)] if isinstance(given, int) else [str(name) for name in given]
    if len(names) < 2:
        raise ValueError(f"classes={given!r}: expected two or more")
    if count is not None and count != len(names):
        raise ValueError(f"classes={given!r}: the model has {count}")
    return names


def _positions(model: nn.Module) -> int | None:
    """The longest text that the network has positions for."""
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    offset = getattr(config, "pad_token_id", 0) or 0
    shifted = any("position_embeddings" in name and getattr(module, "padding_idx", None) is not None
                  for name, module in model.named_modules())  # fmt: skip
    return int(positions) - (offset + 1 if shifted else 0)  # RoBERTa counts positions from behind the padding's number


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hugging Face shows a bar for files that are read in a moment."""
    logging = needed("transformers.utils.logging")
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _pretrained(path: Path) -> tuple[nn.Module, Any]:
    library = needed("transformers")
    with _without_bars():
        model = library.AutoModelForSequenceClassification.from_pretrained(path, local_files_only=True)
    return model, library.AutoTokenizer.from_pretrained(path, local_files_only=True)
