"""`verify` for text models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.borrow import Borrowed, borrow
from sparring.evaluation.claims import check_files, check_totals
from sparring.evaluation.placing import placed
from sparring.evaluation.records import DONE
from sparring.evaluation.source import Source, digest
from sparring.evaluation.texts.document import describe_classifier, totals, word_curve
from sparring.evaluation.texts.records import Entry
from sparring.evaluation.texts.result import TextResult
from sparring.evaluation.texts.run import resolve
from sparring.evaluation.verifier import Verification
from sparring.noise import Noise
from sparring.objective import fooled, predict
from sparring.text import TextAttack, TextClassifier, WordSubstitution
from sparring.text.attacks import Sample
from sparring.text.attacks.recorded import recorded
from sparring.text.attacks.searches import ask
from sparring.text.attacks.words import Words, differing


def verify_texts(
    result: TextResult,
    model: TextClassifier,
    data: Any,
    *,
    attacks: Any,
    samples: int,
    indices: Tensor | None,
    seed: int,
    batch_size: int,
    device: torch.device | str | None,
) -> Verification:
    """Hashes, totals, and what the model says: to every text with changed words that is said to fool it, and to the originals;
    the perturbations of embeddings are found again. With data, that it is the same, and an attack on texts called robust."""
    report = Verification()
    report.lies += check_files(result)
    report.checked.append(f"hashes of {len(result.document['files'])} files")
    report.lies += [*check_totals(result), *_check_own_totals(result)]
    report.checked.append(f"totals over {len(result.index)} texts")
    again = _Again(result, report, model, batch_size)
    again.weights()
    with placed(model, device), borrow(model) as borrowed:
        again.originals(borrowed)
        again.substituted(borrowed)
        if data is not None:
            again.data(data, indices)
        again.perturbed(borrowed, samples)
        again.standing(borrowed, None if attacks is None else resolve(attacks), samples, seed)
    return report


def _check_own_totals(result: TextResult) -> list[str]:
    document, lies = result.document, []
    for row, own in zip(document["attacks"], totals(result.records, document["attacks"]), strict=True):
        if row.get("alone") != own:
            lies.append(f"what {row['name']} does alone does not follow from the texts' rows")
    if document["curve"] != word_curve(result.records, document["threat"]):
        lies.append("the curve does not follow from the texts' rows")
    table = result.records.table
    for row in table:
        index = int(row["index"])
        fell = [number for number, entry in enumerate(result.records.entries.get(index, [])) if entry["fooled"]]
        if bool(row["robust"]) != (bool(row["correct"]) and not fell) or int(row["attack"]) != min(fell, default=-1):
            lies.append(f"text {index}: its verdict does not follow from what the attacks did to it")
            break
    return lies


class _Again:
    """What the run did with the model, done again. A lie is what the model denies twice: asked in a batch, and alone."""

    def __init__(self, result: TextResult, report: Verification, model: TextClassifier, batch_size: int) -> None:
        self.result, self.report, self.model, self.batch_size = result, report, model, batch_size
        self.records, self.table = result.records, result.records.table
        self.seed = int(result.document["seed"])
        self.attacks = [recorded(row["name"], row["settings"]) for row in result.attacks]  # None: not to be had again

    def weights(self) -> None:
        now, then = describe_classifier(self.model, None), self.result.document["model"]
        for what, name in (("weights", "sha256"), ("tokenizer", "tokenizer")):
            if now[name] != then[name]:
                self.report.lies.append(
                    f"the model's {what} are not those of the run (sha256 {now[name]}, then {then[name]})"
                )
        self.report.checked.append("weights and tokenizer")

    def _predict(self, model: Borrowed, texts: list[str], expected: Tensor, same: bool) -> Tensor:
        """Predictions (n,), where they are not as expected (the same class; or another) of each alone."""
        prediction = predict(ask(model, texts, self.batch_size))
        for i, text in enumerate(texts):
            if not (prediction[i] == expected[i] if same else fooled(prediction[i : i + 1], expected[i : i + 1])):
                prediction[i] = predict(ask(model, [text], 1))[0]
        return prediction

    def originals(self, model: Borrowed) -> None:
        """The texts are those of the fingerprints, and the model says to them what the rows say."""
        index = self.table["index"].tolist()
        texts = [self.records.texts[i] for i in index]
        labels = torch.from_numpy(self.table["label"].astype(np.int64))
        other = [
            i for i, d, row in zip(index, digest(texts, labels), self.table, strict=True) if d != int(row["digest"])
        ]
        if other:
            self.report.lies.append(f"{len(other)} texts are not those of their fingerprints (first: text {other[0]})")
        expected = torch.from_numpy(self.table["clean_prediction"].astype(np.int64))
        wrong = (self._predict(model, texts, expected, same=True) != expected).nonzero().flatten().tolist()
        if wrong:
            self.report.lies.append(
                f"{len(wrong)} clean predictions are not what the model says (first: text {index[wrong[0]]})"
            )
        self.report.checked.append(f"clean predictions of {len(index)} texts")

    def substituted(self, model: Borrowed) -> None:
        """Each text with changed words differs where it says, no more than the attack may, and fools the model."""
        found = [
            (i, number, entry)
            for i in self.table["index"].tolist()
            for number, entry in enumerate(self.records.entries.get(i, []))
            if entry["fooled"] and "text" in entry
        ]
        labels = torch.tensor([int(self.table[self.records.place(i)]["label"]) for i, _, _ in found], dtype=torch.int64)
        prediction = self._predict(model, [entry["text"] for _, _, entry in found], labels, same=False)
        bad: dict[str, list[int]] = {}
        for (i, number, entry), fools in zip(found, fooled(prediction, labels).tolist(), strict=True):
            wrong = self._wrong_with(number, self.records.texts[i], entry)
            for what in [wrong] if wrong else [] if fools else ["do not fool the model"]:
                bad.setdefault(what, []).append(i)
            self.report.fooling += fools
        self.report.examples = len(found)
        self.report.lies += [f"{len(where)} saved texts {what} (first: text {where[0]})" for what, where in bad.items()]
        self.report.checked.append(f"{len(found)} texts with changed words: where they differ, and that they fool")

    def _wrong_with(self, number: int, original: str, entry: Entry) -> str | None:
        changed, attack = differing(original, entry["text"]), self.attacks[number]
        if changed is None or list(changed) != list(entry["changed"]) or len(Words(original)) != entry["words"]:
            return "differ from their originals in other ways than they say"
        return attack.wrong_with(original, entry["text"]) if isinstance(attack, WordSubstitution) else None

    def data(self, data: Any, indices: Tensor | None) -> None:
        limit = self.result.document["settings"]["max_samples"]
        seen, other = 0, 0
        for batch in Source(data, self.batch_size, limit, self.seed, indices):
            for number, print_of in zip(batch.index.tolist(), digest(batch.x, batch.y), strict=True):
                known = self.records.place(number) is not None
                seen += known
                other += known and not self.records.same(number, print_of)
        if other or seen < len(self.table):
            self.report.lies.append(
                f"the data is not that of the run: {other} texts differ, {len(self.table) - seen} are missing"
            )
        self.report.checked.append(f"data of {seen} texts")

    def _drawn(self, indices: Sequence[int], samples: int, seed: int, draw: str) -> list[Sample]:
        numbers = torch.tensor(indices, dtype=torch.int64)
        order = Noise(seed, numbers).uniform((1,), draw).squeeze(1).argsort()[:samples]
        places = [(i, self.table[self.records.place(i)]) for i in sorted(numbers[order].tolist())]
        return [Sample(i, self.records.texts[i], int(row["label"])) for i, row in places]

    def _fallen(self, model: Borrowed, attack: TextAttack, some: list[Sample], seed: int) -> list[int]:
        attempts = attack.attempts(model, some, batch_size=self.batch_size, seed=seed)
        return sorted(attempt.index for attempt in attempts if attempt.success)

    def perturbed(self, model: Borrowed, samples: int) -> None:
        """Texts whose embeddings are said to have been perturbed fall again."""
        for number, attack in enumerate(self.attacks):
            if attack is None or attack.substitutes:
                continue
            said = [
                i for i, entries in self.records.entries.items() if len(entries) > number and entries[number]["fooled"]
            ]
            some = self._drawn(said, samples, self.seed, "fallen")
            seed = self.seed + 1_000_003 * number
            fell = set(self._fallen(model, attack, some, seed))
            lost = [s for s in some if s.index not in fell and not self._fallen(model, attack, [s], seed)]
            if lost:
                self.report.lies.append(
                    f"{len(lost)} of {len(some)} texts said to fall to {attack.name} do not (first: text {lost[0].index})"
                )
            self.report.checked.append(f"{len(some)} texts with perturbed embeddings, attacked again")

    def standing(self, model: Borrowed, given: list[TextAttack] | None, samples: int, seed: int) -> None:
        """Of texts called robust none may fall to what was recorded, with its seed; how many fall to other draws, or to the
        attacks that were given, is told."""
        robust = self.table["index"][self.table["robust"] & (self.table["state"] == DONE)].tolist()
        some = self._drawn(robust, samples, seed, "verify")
        if not some:
            return
        for number, attack in enumerate(self.attacks):
            if attack is None:
                name = self.result.attacks[number]["name"]
                self.report.checked.append(f"not {name} on texts that stand: it can't be built again; give attacks")
                continue
            own = self.seed + 1_000_003 * number
            fell = set(self._fallen(model, attack, some, own))
            lost = [s for s in some if s.index in fell and self._fallen(model, attack, [s], own)]
            if lost:
                self.report.lies.append(
                    f"{len(lost)} of {len(some)} texts claimed robust fall to {attack.name} as it was recorded (first: text "
                    f"{lost[0].index})"
                )
        others = [attack for attack in self.attacks if attack is not None] if given is None else given
        fell_now = {i for attack in others for i in self._fallen(model, attack, some, seed)}
        if others:
            self.report.attacked_again, self.report.fallen = len(some), len(fell_now)
            self.report.checked.append(f"{len(some)} texts claimed robust, attacked again")
