"""Word substitution: a text says the same in other words, and the model says something else."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparring.borrow import Borrowed
from sparring.checks import check_whole
from sparring.objective import fooled, margin, predict
from sparring.text.attacks.attempt import Attempt, Sample, TextAttack
from sparring.text.attacks.encoder import Encoder
from sparring.text.attacks.searches import Alike, Logits, Question, Saliency, Search, ask, run
from sparring.text.attacks.synonyms import SynonymSource, sources
from sparring.text.attacks.tagging import Tagger, compatible
from sparring.text.attacks.words import STOP_WORDS, Words, cased, differing

SIMILARITY = 0.8


@dataclass(frozen=True)
class WordSubstitution(TextAttack):
    """Greedy substitution of words by synonyms, the most important words first. After TextFooler, Jin et al. (2020).

    Each word's importance is what the model loses without it; in that order every word is tried with each of its synonyms.
    One that fools ends the search, else the one that raises the margin most is kept, if any does. Capitals stay as they
    are, and so does all that lies between words. Nothing is random.

    synonyms: a mapping {word: [synonyms]}, a file of them, `sparring.text.Synonyms`, `sparring.text.WordNet`, or a list of
    those. rank: "deletion" (a query for each word) or "gradient" (one backward, to first order the same).
    queries: the most forwards that a text may cost; None: as many as it takes. max_changed: the largest share of a text's
    words that may be changed. candidates: the most synonyms that are tried for a word.
    tagger: what tells parts of speech, as `sparring.text.PatternTagger()` or `sparring.text.WordNet()`: a synonym must be
    what the word was; None: not checked.
    encoder: what makes sentences vectors, as `sparring.text.SentenceEncoder()`: the changed text's must have a cosine of
    `min_similarity` (default 0.8) or more to the original's; None: not checked, and `similarity` is the share of words
    kept. stop_words: never changed, in lower case.
    """

    synonyms: Any
    rank: str = "deletion"
    queries: int | None = None
    max_changed: float = 0.25
    candidates: int = 50
    tagger: Tagger | None = None
    encoder: Encoder | None = None
    min_similarity: float | None = None
    stop_words: frozenset[str] = field(default=STOP_WORDS, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "synonyms", sources(self.synonyms))
        object.__setattr__(self, "stop_words", frozenset(self.stop_words))
        if self.rank not in ("deletion", "gradient"):
            raise ValueError(f"WordSubstitution(rank={self.rank!r}): expected 'deletion' or 'gradient'")
        check_whole("WordSubstitution", candidates=self.candidates)
        if self.queries is not None:
            check_whole("WordSubstitution", queries=self.queries)
        if not 0 < self.max_changed <= 1:
            raise ValueError(f"WordSubstitution(max_changed={self.max_changed!r}): expected a share above 0, up to 1")
        if self.min_similarity is not None and self.encoder is None:
            raise ValueError("WordSubstitution(min_similarity=…) needs encoder=, as sparring.text.SentenceEncoder()")
        if self.encoder is not None and self.min_similarity is None:
            object.__setattr__(self, "min_similarity", SIMILARITY)
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(
                f"WordSubstitution(min_similarity={self.min_similarity!r}): expected a cosine, from −1 to 1"
            )

    @property
    def access(self) -> str:
        return "gradients" if self.rank == "gradient" else "scores"

    @property
    def measure(self) -> str:
        return "share of words kept (no sentence encoder was given)" if self.encoder is None else "cosine of sentences"

    def settings(self) -> dict[str, Any]:
        own: tuple[SynonymSource, ...] = self.synonyms
        return {
            "synonyms": [source.describe() for source in own],
            "rank": self.rank,
            "queries": self.queries,
            "max_changed": self.max_changed,
            "candidates": self.candidates,
            "part of speech": "not checked" if self.tagger is None else self.tagger.describe(),
            "similarity": "not checked"
            if self.encoder is None
            else {**self.encoder.describe(), "at least": self.min_similarity},
            "stop words": "sparring's" if self.stop_words == STOP_WORDS else sorted(self.stop_words),
        }

    def attempts(
        self, model: Borrowed, samples: Iterable[Sample], *, batch_size: int = 64, seed: int = 0
    ) -> Iterator[Attempt]:
        return run(model, samples, self._search, batch_size=batch_size, encoder=self.encoder)

    def answer(self, model: Borrowed, attempt: Attempt) -> Tensor:
        return ask(model, [attempt.text], 1)

    def wrong_with(self, original: str, changed: str) -> str | None:
        """What is wrong with a text as an example of this attack's; None where nothing is."""
        numbers = differing(original, changed)
        if numbers is None:
            return "differ from their originals in more than words"
        words, now = Words(original), Words(changed).words
        if len(numbers) > self.most(len(words)):
            return f"have more than {self.max_changed:.0%} of their words changed"
        options = self._options(words)
        if any(now[i] not in options.get(i, ()) for i in numbers):
            return "hold words that are no synonyms of the original's"
        return None

    def most(self, words: int) -> int:
        """How many of so many words may be changed."""
        return math.floor(self.max_changed * words + 1e-9)

    def _search(self, sample: Sample) -> Search:
        """One text's search: yields questions, is sent the answers, returns what it came to."""
        words, label = Words(sample.text), torch.tensor([sample.label])
        state = _State(sample.text, self.queries)
        logits = yield from state.ask([sample.text])
        state.take(logits[0], label, sample.text, {})
        alike: float | None = 1.0
        if not state.success and self.most(len(words)):
            options = self._options(words)
            for i in (yield from self._ranked(sample, words, list(options), state)):
                if len(state.changes) == self.most(len(words)) or not state.left:
                    break
                changes = [{**state.changes, i: other} for other in self._tagged(words, state.changes, i, options[i])]
                texts = [words.replaced(each) for each in changes]
                cosines: Tensor | None = None
                if self.encoder is not None and texts:
                    cosines = yield Alike(texts, sample.text)
                    keep = [k for k, cosine in enumerate(cosines.tolist()) if cosine >= (self.min_similarity or 0.0)]
                    changes, texts, cosines = [changes[k] for k in keep], [texts[k] for k in keep], cosines[keep]
                texts = texts[: state.left]
                if not texts:
                    continue
                logits = yield from state.ask(texts)
                k = _best(logits, label, cosines)
                if state.take(logits[k], label, texts[k], changes[k]) and cosines is not None:
                    alike = float(cosines[k])
                if state.success:
                    break
        if self.encoder is None:
            alike = 1 - len(state.changes) / max(1, len(words))
        return Attempt(
            sample.index, state.text, state.success, state.prediction, state.margin, 0, 0, len(words),
            changed=tuple(sorted(state.changes)), similarity=alike,
        )  # fmt: skip

    def _options(self, words: Words) -> dict[int, list[str]]:
        """For each word that may be changed its synonyms, as they would be written there."""
        options: dict[int, list[str]] = {}
        for i, word in enumerate(words.words):
            lower = word.lower()
            if lower in self.stop_words:
                continue
            found = {cased(other, word): None for source in self.synonyms for other in source.of(lower)}
            found.pop(word, None)
            if found:
                options[i] = list(found)[: self.candidates]
        return options

    def _tagged(self, words: Words, changes: dict[int, str], i: int, others: list[str]) -> list[str]:
        """Those that are, in the text as it is now, the part of speech that the word was."""
        if self.tagger is None:
            return others
        now = [changes.get(k, word) for k, word in enumerate(words.words)]
        was = self.tagger.tags(words.words)[i]
        return [other for other in others if compatible(self.tagger.tags([*now[:i], other, *now[i + 1 :]])[i], was)]

    def _ranked(
        self, sample: Sample, words: Words, numbers: list[int], state: _State
    ) -> Generator[Question, Tensor, list[int]]:
        """The words, the most important first. Where the budget is short, half of it goes into ranking the first of them, and the
        others come behind, as they stand."""
        if len(numbers) < 2 or not state.left:
            return numbers
        if self.rank == "gradient":
            state.asked += 1
            rise = yield Saliency(sample.text, sample.label)
            return sorted(numbers, key=lambda i: -float(rise[i]))
        enough = state.left > len(numbers)
        looked = numbers if enough else numbers[: state.left // 2]
        if not looked:
            return numbers
        logits = yield from state.ask([words.without(i) for i in looked])
        values = margin(logits, torch.full((len(looked),), sample.label)).nan_to_num(-torch.inf).tolist()
        value = dict(zip(looked, values, strict=True))
        return sorted(looked, key=lambda i: -value[i]) + numbers[len(looked) :]


class _State:
    """How far one text's search has come."""

    def __init__(self, text: str, queries: int | None) -> None:
        self.text, self.budget, self.asked = text, queries, 0
        self.changes: dict[int, str] = {}
        self.margin, self.prediction, self.success = -math.inf, -1, False

    @property
    def left(self) -> int:
        """Queries that may still be asked."""
        return 1 << 30 if self.budget is None else self.budget - self.asked

    def ask(self, texts: list[str]) -> Generator[Question, Tensor, Tensor]:
        self.asked += len(texts)
        return (yield Logits(texts))

    def take(self, logits: Tensor, label: Tensor, text: str, changes: dict[int, str]) -> bool:
        """Go on from this text, where it is the first or better than the last; whether it is."""
        prediction, value = predict(logits[None]), float(margin(logits[None], label))
        wrong = bool(fooled(prediction, label))
        first = self.prediction == -1 and not self.changes
        if not (first or wrong or value > self.margin):
            return False
        self.text, self.changes, self.margin = text, changes, value if value == value else -math.inf
        self.prediction, self.success = int(prediction), wrong
        return True


def _best(logits: Tensor, label: Tensor, cosines: Tensor | None) -> int:
    """Of the texts that fool the most similar, or where nobody measured that the one with the largest margin; of none that
    fools the latter."""
    values = margin(logits, label.expand(len(logits))).double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    wrong = fooled(predict(logits), label.expand(len(logits)))
    if bool(wrong.any()):
        score = values if cosines is None else cosines[: len(values)].double()
        return int(torch.where(wrong, score, -torch.inf).argmax())
    return int(values.argmax())
