"""`TextResult`: the verdict on a text model, and the texts that prove it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.statistics import Proportion
from sparring.evaluation.texts.records import Entry, TextRecords


class TextResult(EvaluationResult):
    """What `evaluate` found about a text model; as `EvaluationResult`, and:

    `robust_accuracy` is under all attacks together, `accuracy_under(attack)` under one of them. `examples` iterates over
    (index, original, adversarial), the texts with words changed that fool the model. What an attack on embeddings adds is
    not kept: it is found again from the seed.
    """

    @property
    def records(self) -> TextRecords:
        return cast(TextRecords, self._records)

    def accuracy_under(self, attack: int | str) -> Proportion:
        """The robust accuracy under one attack alone: its number, or its name. ValueError for one that was not run."""
        names = [row["name"] for row in self.attacks]
        if isinstance(attack, str):
            if names.count(attack) != 1:
                raise ValueError(f"attack {attack!r}: expected one of {', '.join(names)}, or its number")
            attack = names.index(attack)
        if not 0 <= attack < len(names):
            raise ValueError(f"attack {attack}: expected a number from 0 to {len(names) - 1}")
        share = self.attacks[attack]["alone"]["robust_accuracy"]
        return Proportion(share["count"], share["total"])

    def accuracy_at(self, eps: float) -> Proportion:
        """The accuracy if no larger share of a text's words than this may be changed, by the substitutions that were tried.

        An upper bound. ValueError for a share beyond what they were allowed, or where none was tried.
        """
        limit = self.document["threat"]["eps"] if self.curve else None
        if limit is None or not 0 <= eps <= limit:
            looked = "no attack of this run changes words" if limit is None else f"expected a share from 0 to {limit:g}"
            raise ValueError(f"accuracy_at({eps}): {looked}")
        return Proportion(int((self.distance > eps * (1 + 1e-9)).sum()), len(self.distance))

    def __repr__(self) -> str:
        each = [f"under {row['name']} {self.accuracy_under(number)}" for number, row in enumerate(self.attacks)]
        return f"TextResult(clean {self.clean_accuracy}, at most: {', '.join(each)}, under all {self.robust_accuracy})"

    @property
    def examples(self) -> Iterator[tuple[int, str, str]]:  # type: ignore[override]
        for index in self.index.tolist():
            for entry in self.records.entries.get(index, []):
                if entry["fooled"] and "text" in entry:
                    yield index, self.records.texts[index], entry["text"]

    def picture(self, index: int) -> tuple[str, str | None]:  # type: ignore[override]
        """A text, and the one with the fewest words changed that fools (None: only its embeddings did).

        KeyError where this text was not fooled.
        """
        fooled: list[Entry] = [entry for entry in self.records.entries.get(index, []) if entry["fooled"]]
        if not fooled:
            raise KeyError(f"text {index} was not fooled: there is no example of it")
        written = [entry for entry in fooled if "text" in entry]
        nearest: Any = min(written, key=lambda entry: len(entry["changed"]), default={"text": None})
        return self.records.texts[index], nearest["text"]
