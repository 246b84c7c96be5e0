"""Language-model pre-training: the recurrent network first learns to foretell the next word, which asks for no label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sparring.text.classifier import TextClassifier
from sparring.text.encoded import Encoded
from sparring.text.lengths import LengthBatches
from sparring.training.fitting import FitResult, fit
from sparring.training.losses import Batch, Loss, Seen
from sparring.training.strategy import Strategy, wide


class LanguageModel(nn.Module):
    """A classifier's embedding and recurrent layer, and a decoder: token numbers to logits over the next token (B, T − 1, V)."""

    def __init__(self, classifier: TextClassifier) -> None:
        super().__init__()
        states = getattr(classifier.model, "states", None)
        if not callable(states):
            raise ValueError(
                f"a {type(classifier.model).__name__} has no states to foretell words from: pre-training is for the zoo's lstm; "
                "others bring their own"
            )
        self.classifier = classifier
        self.decoder = nn.Linear(classifier.model.lstm.hidden_size, classifier.tokens.size)  # type: ignore[union-attr, arg-type]
        self.decoder.to(classifier.device, classifier.embedding.weight.dtype)

    def forward(self, x: Encoded | Tensor) -> Tensor:
        states: Tensor = self.classifier.model.states(self.classifier.encoded(x).ids[:, :-1])  # type: ignore[operator]
        logits: Tensor = self.decoder(states)
        return logits


class NextToken(Strategy):
    """Cross-entropy of each text's tokens from the second on, the mean over the batch's tokens. 1 pass a batch."""

    takes_tokens = True

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[Loss]:
        def foretold(seen: Seen) -> Tensor:
            assert isinstance(model, LanguageModel)
            x = model.classifier.encoded(batch.x)
            with self.precision(x.ids):
                logits = model(x)
            self.passes.forwards += len(x)
            self.passes.backwards += len(x)
            there = x.mask[:, 1:]
            answers, next_tokens = wide(logits[there]), x.ids[:, 1:][there]
            seen.add("clean", answers, next_tokens)
            return F.cross_entropy(answers, next_tokens)

        yield Loss(foretold)


def pretrain(classifier: TextClassifier, texts: Sequence[str], *, epochs: int, **settings: Any) -> FitResult:
    """Trains the embedding and the recurrent layer of a zoo `lstm` as a language model of these texts (Dai & Le 2015), in place.

    settings: of `sp.fit`; Adam with gradients clipped at 1 unless they say otherwise. ValueError for a network without
    recurrent states, and where no text has two tokens; one that has not is left out.
    """
    x = classifier.encode(texts)
    lengths = x.mask.sum(1)
    ids = x.ids[lengths > 1].cpu()
    if not len(ids):
        raise ValueError("no text has two tokens: there is no next word to foretell")
    model = LanguageModel(classifier)
    given = {"optimizer": "adam", "max_grad_norm": 1.0, "batch_size": 64, "validation": False, **settings}
    batches = LengthBatches(lengths[lengths > 1].cpu(), given["batch_size"])
    data = DataLoader(TensorDataset(ids, torch.zeros(len(ids), dtype=torch.long)), batch_sampler=batches)
    return fit(model, data, NextToken(), epochs=epochs, **given)
