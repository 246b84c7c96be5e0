"""Many searches at once: each asks and waits as if it were alone, and what they ask goes to the model together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.objective import margin
from sparring.text.attacks.alignment import word_of_token
from sparring.text.attacks.attempt import Attempt, Sample
from sparring.text.attacks.encoder import Encoder, similarity
from sparring.text.attacks.words import Words
from sparring.text.perturber import EmbeddingPerturber


@dataclass(frozen=True)
class Logits:
    """What does the model say to these texts? Answered by (N, C); N forwards."""

    texts: list[str]


@dataclass(frozen=True)
class Saliency:
    """How much would the margin rise, to first order, if each word's vectors were zero? Answered by (words,) float64; a
    forward and a backward."""

    text: str
    label: int


@dataclass(frozen=True)
class Alike:
    """How much are these texts like that one? Answered by cosines (N,)."""

    texts: list[str]
    original: str


Question = Logits | Saliency | Alike
Search = Generator[Question, Tensor, Attempt]


@dataclass
class _Asking:
    search: Search
    question: Question
    forwards: int = 0
    backwards: int = 0

    @property
    def waiting(self) -> int:
        """How many forwards its question takes."""
        return (
            len(self.question.texts) if isinstance(self.question, Logits) else int(isinstance(self.question, Saliency))
        )


def run(
    model: Borrowed,
    samples: Iterable[Sample],
    start: Callable[[Sample], Search],
    *,
    batch_size: int,
    encoder: Encoder | None = None,
) -> Iterator[Attempt]:
    """Each sample's search, to its end; new ones begin as long as those under way do not fill a batch."""
    source, asking = iter(samples), list[_Asking]()
    while True:
        while sum(each.waiting for each in asking) < batch_size and (sample := next(source, None)) is not None:
            search = start(sample)
            asking.append(_Asking(search, next(search)))
        if not asking:
            return
        answers = _answered(model, [each.question for each in asking], batch_size, encoder)
        still: list[_Asking] = []
        for each, answer in zip(asking, answers, strict=True):
            each.forwards += each.waiting
            each.backwards += isinstance(each.question, Saliency)
            try:
                each.question = each.search.send(answer)
                still.append(each)
            except StopIteration as stop:
                yield replace(stop.value, forwards=each.forwards, backwards=each.backwards)
        asking = still


def _answered(model: Borrowed, questions: list[Question], batch_size: int, encoder: Encoder | None) -> list[Tensor]:
    answers: list[Tensor] = [torch.empty(0)] * len(questions)
    asked = {i: question.texts for i, question in enumerate(questions) if isinstance(question, Logits)}
    logits = ask(model, [text for texts in asked.values() for text in texts], batch_size)
    for i, part in zip(asked, torch.split(logits, [len(texts) for texts in asked.values()]), strict=True):
        answers[i] = part
    for i, question in enumerate(questions):
        if isinstance(question, Alike):
            assert encoder is not None
            vectors = encoder([*question.texts, question.original])
            answers[i] = similarity(vectors[:-1], vectors[-1])
    salient = [i for i, question in enumerate(questions) if isinstance(question, Saliency)]
    for first in range(0, len(salient), batch_size):
        some = salient[first : first + batch_size]
        for i, answer in zip(some, _saliency(model, [questions[i] for i in some]), strict=True):
            answers[i] = answer
    return answers


def ask(model: Borrowed, texts: list[str], batch_size: int) -> Tensor:
    """Logits (N, C), on the CPU, one forward each. Texts of like lengths go together, so that little padding is computed."""
    classifier: Any = model.model
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [
        model.look(classifier.encode([texts[i] for i in order[first : first + batch_size]])).cpu()
        for first in range(0, len(order), batch_size)
    ]
    if not found:
        return torch.zeros(0, len(classifier.classes))
    return torch.cat(found)[torch.tensor(order).argsort()]


def _saliency(model: Borrowed, questions: list[Any]) -> Iterator[Tensor]:
    classifier: Any = model.model
    encoded = classifier.encode([question.text for question in questions])
    with torch.enable_grad(), EmbeddingPerturber(classifier).adding(None, encoded) as seen:
        logits = model.call(encoded, {})
    value = margin(logits, torch.tensor([question.label for question in questions], device=logits.device))
    (gradient,) = torch.autograd.grad(value.sum(), seen.delta)
    model.backwards += len(questions)
    assert seen.vectors is not None
    rises = -(gradient.double() * seen.vectors.double()).sum(-1).cpu()
    for question, rise, real in zip(questions, rises, encoded.mask.cpu(), strict=True):
        words = Words(question.text)
        owner = word_of_token(classifier, question.text, words.spans, int(real.sum()))
        known = owner >= 0
        yield torch.zeros(len(words), dtype=torch.float64).index_add(0, owner[known], rise[real][known])
