"""An evaluation of texts under way: each text that the model gets right goes to every attack, one after the other.

The attacks are threats of different kinds, so none spares the next one a text: each has a robust accuracy of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from sparring.attacks.inputs import check_label_range
from sparring.borrow import Borrowed, looks_like_probabilities
from sparring.evaluation.pilot import Plan
from sparring.evaluation.progress import Progress
from sparring.evaluation.records import STARTED
from sparring.evaluation.source import Batch, Source, digest
from sparring.evaluation.store import Store
from sparring.evaluation.tally import Tally
from sparring.evaluation.texts.records import TextRecords
from sparring.objective import fooled as is_fooled
from sparring.objective import predict
from sparring.text import TextAttack
from sparring.text.attacks import Attempt, Sample
from sparring.text.attacks.attempt import check_text
from sparring.text.attacks.searches import ask


@dataclass
class TextStage:
    """One attack, as the result document tells of it."""

    attack: TextAttack
    seconds: float = 0.0
    name: str = field(init=False)
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.settings = self.attack.name, self.attack.settings()


class TextStream(Tally):
    """Pulls texts through the attacks, a batch's worth of them under way at a time, and keeps what is found."""

    shape: list[int] | None = None
    plan: Plan | None = None

    def __init__(
        self,
        model: Borrowed,
        source: Source,
        attacks: list[TextAttack],
        store: Store,
        records: TextRecords,
        device: torch.device | None,
        *,
        batch_size: int,
        seed: int,
        time_limit: float | None,
        report: Callable[[Progress], None],
    ) -> None:
        super().__init__(model, source, store, time_limit, report)
        self.records, self.device, self.batch_size, self.seed = records, device, batch_size, seed
        self.stages = [TextStage(attack) for attack in attacks]

    def go(self) -> None:
        """To the end, or until time is up (after one text at least, so that something is known)."""
        samples: Iterator[Sample] = self._met()
        for number in range(len(self.stages)):
            samples = self._attacked(number, samples)
        late = False
        for sample in samples:
            place = self.records.place(sample.index)
            assert place is not None
            self._finish(place)
            late = self.late
            if late:
                break
        self.finished = not late or self._all_known()
        self.tell(last=True)

    def _all_known(self) -> bool:
        return self.source.total is not None and self.done >= self.source.total

    def _met(self) -> Iterator[Sample]:
        """New texts that the model gets right."""
        for batch in self.source:
            texts = self._checked(batch)
            prints, index = digest(batch.x, batch.y), batch.index.tolist()
            new = [i for i in range(len(texts)) if not self.store.holds(index[i], prints[i])]
            logits = ask(self.model, [texts[i] for i in new or [0]], self.batch_size)  # of one where none is new: it
            check_label_range(batch.y, logits.shape[1])  # tells how many classes there are
            if not new:
                continue
            y = batch.y[torch.tensor(new)].long()
            prediction = predict(logits)
            if bool((prediction < 0).any()):
                bad = [index[i] for i, known in zip(new, (prediction >= 0).tolist(), strict=True) if not known]
                raise ValueError(
                    f"the model returns NaN or inf for {len(bad)} clean texts (first: text {bad[0]}): check its weights"
                )
            places = [self.records.add(index[i]) for i in new]
            table, correct = self.records.table, (prediction == y).numpy()
            columns = {
                "label": y.numpy(),
                "clean_prediction": prediction.numpy(),
                "correct": correct,
                "robust": correct,
            }
            columns |= {"clean_confidence": logits.float().softmax(1).amax(1).numpy()}
            for name, values in columns.items():
                table[name][places] = values
            table["digest"][places], table["probabilities"][places] = (
                [prints[i] for i in new],
                looks_like_probabilities(logits),
            )
            table["forwards"][places], table["state"][places] = 1, STARTED
            self.correct += int(correct.sum())
            self.records.texts.update((index[i], texts[i]) for i in new)
            for i, place, right in zip(new, places, correct.tolist(), strict=True):
                if right:
                    yield Sample(index[i], texts[i], int(batch.y[i]))
                else:
                    self._finish(place)

    def _checked(self, batch: Batch) -> list[str]:
        """The batch's texts; TypeError or ValueError, with the text's number, for what is none."""
        if not isinstance(batch.x, (list, tuple)):
            raise TypeError(f"the data yields {type(batch.x).__name__}: expected pairs (text, label) for a text model")
        for number, text in zip(batch.index.tolist(), batch.x, strict=True):
            check_text(number, text)
        if batch.y.is_floating_point() or batch.y.dtype == torch.bool:
            raise TypeError(f"labels of dtype {batch.y.dtype}: expected whole numbers, the classes")
        return list(batch.x)

    def _attacked(self, number: int, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples, once this attack is done with them."""
        stage, upstream, under_way = self.stages[number], 0.0, dict[int, Sample]()

        def arriving() -> Iterator[Sample]:
            nonlocal upstream
            while True:
                start = time.monotonic()
                sample = next(samples, None)
                upstream += time.monotonic() - start
                if sample is None:
                    return
                under_way[sample.index] = sample
                yield sample

        seed = self.seed + 1_000_003 * number  # each attack draws numbers of its own
        attempts = stage.attack.attempts(self.model, arriving(), batch_size=self.batch_size, seed=seed)
        while True:
            start, before = time.monotonic(), upstream
            attempt = next(attempts, None)
            if attempt is not None:
                sample = under_way.pop(attempt.index)
                self._note(number, sample, attempt)
            stage.seconds += time.monotonic() - start - (upstream - before)
            if attempt is None:
                return
            yield sample
            self.tell()

    def _note(self, number: int, sample: Sample, attempt: Attempt) -> None:
        """Write down what became of a text. A success counts if the model is wrong when it is asked again, alone."""
        row, stage = self.records.table[self.records.place(sample.index)], self.stages[number]
        confidence, fooled = 0.0, False
        if attempt.success:
            logits = stage.attack.answer(self.model, attempt)
            fooled = bool(is_fooled(predict(logits), torch.tensor([sample.label])))
            confidence = float(logits.double().softmax(1).amax())
        for way, name in enumerate(("forwards", "backwards")):
            row["passes"][number, way] += getattr(attempt, name)
            row[name] += getattr(attempt, name)
        row["forwards"] += attempt.success  # it was asked for once more
        row["unconfirmed"] += attempt.success and not fooled
        entry: dict[str, Any] = {"fooled": fooled, "queries": attempt.forwards, "backwards": attempt.backwards}
        self.records.entries.setdefault(sample.index, []).append(entry)
        if not fooled:
            return
        entry |= {"prediction": attempt.prediction, "confidence": confidence}
        if stage.attack.substitutes:
            entry |= {"text": attempt.text, "changed": list(attempt.changed), "words": attempt.words}
            entry |= {"similarity": attempt.similarity}
            share = len(attempt.changed) / max(attempt.words, 1)
            row["norm"] = row["distance"] = share if row["distance"] != row["distance"] else min(share, row["distance"])
        else:
            entry |= {"norm": attempt.norm}
        if row["robust"]:
            row["robust"], row["attack"] = False, number
            row["prediction"], row["confidence"] = attempt.prediction, confidence
            self.fooled += 1

    def _finish(self, place: int) -> None:
        self.store.finish(place)
        self.done += 1
