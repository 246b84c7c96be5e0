"""What attacks on texts share: being called, and what they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.borrow import Borrowed, borrow
from sparring.objective import check_label_range
from sparring.text.classifier import TextClassifier


@dataclass(frozen=True)
class Sample:
    """A text to attack. index: what stands for it, and what random draws are keyed by."""

    index: int
    text: str
    label: int


@dataclass(frozen=True)
class Attempt:
    """What became of one text.

    success: the prediction is wrong. prediction: −1 where the logits were not finite. objective: what was maximised.
    changed: the numbers of the words that differ, of `words` in all. similarity: to the original, from what the
    attack measures it by. norm: of what was added to the embeddings. forwards, backwards: what it cost.
    perturbation: (T, D), what was added to the vectors of the text's words.
    """

    index: int
    text: str
    success: bool
    prediction: int
    objective: float
    forwards: int
    backwards: int
    words: int
    changed: tuple[int, ...] = ()
    similarity: float | None = None
    norm: float | None = None
    perturbation: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AdversarialTexts:
    """What an attack on B texts returns.

    texts: the best found for each; of one that was not fooled, the one nearest to it. success: (B,) bool, the model's
    prediction is wrong. prediction: (B,) int64. objective: (B,) what was maximised; of substituted words the
    margin, best other logit − the label's, positive where it is fooled.
    changed: for each text the numbers of the words that differ, counted from 0; words: (B,) how many it has.
    queries: (B,) forwards that each text cost; forwards, backwards: in all.
    similarity: (B,) float, by what `measure` says; NaN where the attack changes no words.
    norm: (B,) of what an attack in embedding space adds (its texts are the originals), else NaN; perturbations: what it adds,
    (T, D) for the T words' tokens of each text, or None.
    """

    texts: list[str]
    success: Tensor
    prediction: Tensor
    objective: Tensor
    changed: list[tuple[int, ...]]
    words: Tensor
    queries: Tensor
    similarity: Tensor
    measure: str
    norm: Tensor
    perturbations: list[Tensor | None]
    forwards: int
    backwards: int

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return (
            f"AdversarialTexts({int(self.success.sum())} of {len(self)} succeeded, {self.forwards} forwards, "
            f"{self.backwards} backwards)"
        )


class TextAttack:
    """An attack on texts: called as attack(model, texts, y), and run by `evaluate` one sample after the other.

    Samples do not know of each other: each gets what it would get alone.
    """

    substitutes: ClassVar[bool] = True  # whether its examples are texts

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def access(self) -> str:
        """What it asks of the model: "gradients" or "scores"."""
        return "scores"

    @property
    def measure(self) -> str:
        """What its `similarity` is."""
        return ""

    def settings(self) -> dict[str, Any]:
        """What this attack was set to, as JSON, for a result file."""
        raise NotImplementedError

    def attempts(
        self, model: Borrowed, samples: Iterable[Sample], *, batch_size: int = 64, seed: int = 0
    ) -> Iterator[Attempt]:
        """What became of the samples, in the order in which they are done. model: a borrowed `TextClassifier`."""
        raise NotImplementedError

    def answer(self, model: Borrowed, attempt: Attempt) -> Tensor:
        """Logits (1, C), on the CPU: what the model says when it is asked again, and about this text alone; one forward."""
        raise NotImplementedError

    def __call__(
        self,
        model: TextClassifier,
        texts: Sequence[str],
        y: Any,
        *,
        indices: Tensor | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> AdversarialTexts:
        """Attack texts with labels y (B,), also those that the model gets wrong to begin with (at once a success).

        indices: (B,) numbers that random draws are keyed by (default 0 … B − 1). batch_size: questions to the model at once.
        TypeError or ValueError, in one line, for a model, texts or labels that can't be used.
        """
        check_model(model)
        labels = checked(texts, y, len(model.classes))
        numbers = list(range(len(texts))) if indices is None else [int(i) for i in indices]
        if len(numbers) != len(texts):
            raise ValueError(f"{len(numbers)} indices for {len(texts)} texts: expected one for each")
        if len(set(numbers)) < len(numbers):
            raise ValueError("indices holds the same number twice: expected one of its own for each text")
        samples = [Sample(*each) for each in zip(numbers, texts, labels, strict=True)]
        with borrow(model, seed=seed) as borrowed:
            attempts = self.attempts(borrowed, samples, batch_size=batch_size, seed=seed)
            found = {attempt.index: attempt for attempt in attempts}
        return _collected([found[i] for i in numbers], self.measure)


def check_model(model: Any) -> None:
    """TypeError for what is no text classifier."""
    if not isinstance(model, TextClassifier):
        raise TypeError(
            f"the model is a {type(model).__name__}: expected sparring.text.TextClassifier(model, tokenizer), which holds both"
        )


def checked(texts: Any, y: Any, classes: int) -> list[int]:
    """The labels of these texts as a list; TypeError or ValueError, in one line, for what can't be attacked."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"texts is {type(texts).__name__}: expected a list of strings")
    for i, text in enumerate(texts):
        check_text(i, text)
    try:
        labels = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"y is {type(y).__name__}: expected whole numbers (B,), one for each text") from None
    if labels.ndim != 1 or len(labels) != len(texts):
        raise ValueError(f"y of shape {tuple(labels.shape)} for {len(texts)} texts: expected ({len(texts)},)")
    if len(labels) and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(f"y of dtype {labels.dtype}: expected whole numbers, the classes")
    check_label_range(labels, classes)
    return [int(label) for label in labels]


def check_text(number: int, text: Any) -> None:
    """TypeError or ValueError for what is no text, or has nothing in it."""
    if not isinstance(text, str):
        hint = ": decode it first, as in text.decode('utf-8')" if isinstance(text, bytes) else ""
        raise TypeError(f"text {number} is {type(text).__name__}, expected a string{hint}")
    if not text.strip():
        raise ValueError(f"text {number} is empty: take it out, there is nothing in it to attack")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"text {number} holds half a character (a surrogate): read it in its own encoding")


def _collected(attempts: list[Attempt], measure: str) -> AdversarialTexts:
    def column(name: str, dtype: torch.dtype) -> Tensor:
        values = [getattr(attempt, name) for attempt in attempts]
        return torch.tensor([float("nan") if value is None else value for value in values], dtype=dtype)

    queries = column("forwards", torch.int64)
    return AdversarialTexts(
        texts=[attempt.text for attempt in attempts],
        success=column("success", torch.bool),
        prediction=column("prediction", torch.int64),
        objective=column("objective", torch.float64),
        changed=[attempt.changed for attempt in attempts],
        words=column("words", torch.int64),
        queries=queries,
        similarity=column("similarity", torch.float64),
        measure=measure,
        norm=column("norm", torch.float64),
        perturbations=[attempt.perturbation for attempt in attempts],
        forwards=int(queries.sum()),
        backwards=int(column("backwards", torch.int64).sum()),
    )
