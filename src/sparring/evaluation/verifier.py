"""`verify`: does a result folder say the truth? Everything it claims is checked again, with the model at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.borrow import Borrowed, borrow
from sparring.evaluation import cascade
from sparring.evaluation.claims import check_files, check_totals
from sparring.evaluation.document import describe_model
from sparring.evaluation.pilot import Plan
from sparring.evaluation.placing import placed, to_device
from sparring.evaluation.records import DONE
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.run import evaluate
from sparring.evaluation.shards import WHOLE
from sparring.evaluation.source import Source, digest
from sparring.evaluation.texts.result import TextResult
from sparring.noise import Noise
from sparring.objective import fooled, predict
from sparring.text import TextClassifier
from sparring.threat import Threat
from sparring.wrappers import AttackedInput, Model


@dataclass
class Verification:
    """lies: one line for each claim that does not hold (empty: the result says the truth). checked: what was looked at.

    fooling, still_8bit: how many of the saved examples fool the model, as saved and after rounding to 8 bits.
    attacked_again, fallen: how many of the samples claimed robust were attacked again with other random numbers, and how
    many of those fell: no lie (robust accuracy is an upper bound), but a sign of how loose the bound is.
    """

    lies: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    examples: int = 0
    fooling: int = 0
    still_8bit: int | None = None
    attacked_again: int = 0
    fallen: int = 0

    @property
    def ok(self) -> bool:
        return not self.lies

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **self.__dict__}


def verify(
    folder: str | Path,
    model: Model,
    data: Any = None,
    *,
    attacks: cascade.Attacks | None = None,
    samples: int = 100,
    indices: Tensor | None = None,
    seed: int = 1,
    batch_size: int = 128,
    device: torch.device | str | None = None,
) -> Verification:
    """Check the result in `folder` against `model`, and against `data` where it is given.

    Always: hashes of files and weights, the totals against the samples' rows, and that every saved example lies in the ball
    and the box, starts at its original, and fools the model. With `data`: that the samples are the same, the clean
    verdicts, and up to `samples` of those claimed robust are attacked again, once with the recorded seed (one that falls
    now but did not then is a lie, if it falls to the very attacks that were recorded) and once with `seed`.
    attacks: what to attack with the second time (default: those recorded, where they are sparring's own). indices: the
    samples' numbers, where the run had them.
    """
    if isinstance(model, AttackedInput):
        raise ValueError("a result of a model with several inputs does not hold the others: it can't be verified")
    result = EvaluationResult.load(folder)
    if isinstance(result, TextResult) or isinstance(model, TextClassifier):
        return _texts(result, model, data, attacks=attacks, samples=samples, indices=indices, seed=seed,
                      batch_size=batch_size, device=device)  # fmt: skip
    threat = threat_of(result)
    report = Verification()
    report.lies += check_files(result)
    report.checked.append(f"hashes of {len(result.document['files'])} files")
    report.lies += check_totals(result)
    report.checked.append(f"totals over {len(result.index)} samples")
    again = _Again(result, report, model, threat, batch_size, device)
    again.weights()
    again.examples()
    if data is not None and again.data(data, indices, samples, seed):
        again.attack(attacks, seed)
    return report


def _texts(result: EvaluationResult, model: Any, data: Any, **settings: Any) -> Verification:
    from sparring.evaluation.texts.verifier import verify_texts

    if not isinstance(result, TextResult) or not isinstance(model, TextClassifier):
        kinds = ["images" if not isinstance(result, TextResult) else "texts", type(model).__name__]
        raise TypeError(f"the result is about {kinds[0]} and the model is a {kinds[1]}: give the model of the run")
    return verify_texts(result, model, data, **settings)


def threat_of(result: EvaluationResult) -> Threat:
    """The threat model of a result, with one eps for all. ValueError for a masked one or per-sample eps: no file holds those."""
    about = result.document["threat"]
    if about["masked"] or about["eps_typed"] == "one per sample":
        raise ValueError(
            "the run used a mask or one eps per sample, which the result folder does not hold: can't verify it"
        )
    bounds = None if about["bounds"] is None else tuple(about["bounds"])
    return Threat(about["norm"], math.inf if about["eps"] is None else about["eps"], bounds, typed=about["eps_typed"])


class _Again:
    """What the run did with the model, done again. A lie is what the model denies twice: asked in a batch, and alone.

    Kernels round differently in batches of another size, so that in float32 an honest verdict at the very border may turn
    in one of them.
    """

    def __init__(
        self, result: EvaluationResult, report: Verification, model: Model, threat: Threat, batch_size: int, device: Any
    ) -> None:
        self.result, self.report, self.model, self.threat = result, report, model, threat
        self.batch_size, self.device = batch_size, device
        self.table, self.place = result._records.table, result._records.place
        self.chosen: list[tuple[int, Tensor, int]] = []  # index, x, label of samples claimed robust

    def weights(self) -> None:
        now, then = describe_model(self.model, None)["sha256"], self.result.document["model"]["sha256"]
        if then is None:
            self.report.checked.append("no weights (the model is a plain callable)")
        elif now != then:
            self.report.lies.append(
                f"the model's weights are not those of the run (sha256 {now or 'none'}, then {then})"
            )
        else:
            self.report.checked.append("weights")

    def _predict(self, model: Borrowed, x: Tensor, where: Any, expected: Tensor, same: bool) -> Tensor:
        """Predictions (n,), where they are not as expected (the same class; or another, and a sound one) of each alone."""
        prediction = predict(model.look(to_device(x, where))).cpu()
        for i in range(len(x)):
            if not (prediction[i] == expected[i] if same else fooled(prediction[i : i + 1], expected[i : i + 1])):
                prediction[i] = predict(model.look(to_device(x[i : i + 1], where))).cpu()[0]
        return prediction

    def borrowed(self) -> AbstractContextManager[Borrowed]:
        """The model, with the access that the evaluation had."""
        document = self.result.document
        access = document.get("access", "gradients")
        return borrow(self.model, access=access, labels=document["data"]["classes"])

    def examples(self) -> None:
        """Ball, box, original, and that it fools: of each saved example."""
        fallen = set(self.table["index"][self.table["correct"] & ~self.table["robust"]].tolist())
        shown: list[int] = []
        bad: dict[str, list[int]] = {}
        rounded, images = 0, self.threat.bounds == (0.0, 1.0)
        examples = self.result.examples
        with placed(self.model, self.device) as where, self.borrowed() as model:
            try:
                while chunk := list(islice(examples, self.batch_size)):
                    index = [i for i, _, _ in chunk]
                    original = torch.stack([example[1] for example in chunk])
                    adversarial = torch.stack([example[2] for example in chunk])
                    places = [self.place(i) for i in index]
                    labels = torch.tensor([-1 if p is None else int(self.table[p]["label"]) for p in places])
                    prediction = self._predict(model, adversarial, where, labels, same=False)
                    fools = fooled(prediction, labels)
                    found = self._misplaced(index, original, adversarial, labels) | {"not fooling": ~fools}
                    for name, mask in found.items():
                        bad.setdefault(name, []).extend(i for i, is_bad in zip(index, mask.tolist()) if is_bad)
                    shown += index
                    self.report.fooling += int(fools.sum())
                    if images:
                        saved = (adversarial.float() * 255).round().div(255).to(adversarial.dtype)
                        rounded += int(fooled(predict(model.look(to_device(saved, where))).cpu(), labels).sum())
            except (ValueError, FileNotFoundError, RuntimeError) as error:  # a damaged file, or inputs of another shape
                self.report.lies.append(f"the examples can't be checked: {error}")
        self.report.examples, self.report.still_8bit = len(shown), rounded if images else None
        self.report.lies += [
            f"{len(indices)} saved examples are {name} (first: sample {indices[0]})"
            for name, indices in bad.items()
            if indices
        ]
        if set(shown) != fallen or len(set(shown)) < len(shown):
            self.report.lies.append(
                f"{len(fallen - set(shown))} fooled samples have no example, {len(set(shown) - fallen)} examples belong to "
                f"no fooled sample, {len(shown) - len(set(shown))} are there twice"
            )
        self.report.checked.append(f"{len(shown)} examples: ball, box, original, fooling")

    def _misplaced(self, index: list[int], original: Tensor, adversarial: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Where each kind of geometry is wrong, (n,) bool; written so that NaN is wrong."""
        limit = float(self.threat.eps)
        low, high = self.threat.bounds or (-math.inf, math.inf)
        precision = torch.finfo(adversarial.dtype).eps if adversarial.element_size() < 4 else 1e-6
        sizes, flat = self.threat.size(original, adversarial).double(), adversarial.flatten(1)
        told = [math.nan if (p := self.place(i)) is None else float(self.table[p]["norm"]) for i in index]
        prints = digest(original, labels)
        return {
            "outside the ball": ~(sizes <= limit + 1e-6 + limit * precision),
            "outside the box": ~((flat.amin(1) >= low) & (flat.amax(1) <= high)),
            "of another size than their rows say": ~((sizes - torch.tensor(told)).abs() <= 1e-6 + 1e-4 * sizes),
            "of another original": torch.tensor(
                [not self.result._records.same(i, d) for i, d in zip(index, prints, strict=True)]
            ),
        }

    def data(self, data: Any, indices: Tensor | None, samples: int, seed: int) -> bool:
        """Hold the data and the clean verdicts against the rows, and pick whom to attack again; whether it is the data."""
        document, table = self.result.document, self.table
        claimed = torch.from_numpy(table["index"][table["robust"] & (table["state"] == DONE)].copy())
        order = Noise(seed, claimed).uniform((1,), "verify").squeeze(1).argsort()
        wanted = set(claimed[order[:samples]].tolist())
        seen, other, wrong = 0, 0, []
        source = Source(data, self.batch_size, document["settings"]["max_samples"], int(document["seed"]), indices)
        with placed(self.model, self.device) as where, self.borrowed() as model:
            for batch in source:
                places = {i: place for i, n in enumerate(batch.index.tolist()) if (place := self.place(n)) is not None}
                keep = list(places)
                if not keep:
                    continue
                x, y, index = batch.x[keep], batch.y[keep], batch.index[keep].tolist()
                rows = table[list(places.values())]
                seen += len(keep)
                differ = np.array(digest(x, y)) != rows["digest"]
                other += int(differ.sum())
                if other:
                    continue
                expected = torch.from_numpy(rows["clean_prediction"].astype(np.int64))
                prediction = self._predict(model, x, where, expected, same=True)
                wrong += [i for i, same in zip(index, (prediction == expected).tolist()) if not same]
                self.chosen += [(i, x[k], int(y[k])) for k, i in enumerate(index) if i in wanted]
        if seen < len(table) or other:
            self.report.lies.append(
                f"the data is not that of the run: {other} samples differ, {len(table) - seen} are missing"
            )
            return False
        if wrong:
            self.report.lies.append(
                f"{len(wrong)} clean predictions are not what the model says (first: sample {wrong[0]})"
            )
        self.report.checked.append(f"data and clean predictions of {seen} samples")
        return True

    def attack(self, attacks: cascade.Attacks | None, seed: int) -> None:
        """Attack samples claimed robust: with what was recorded and its seed, where none may fall; and with another seed."""
        if not self.chosen:
            return
        recorded = cascade.recorded(self.result.document["attacks"], self.threat)
        if attacks is None and recorded is None:
            self.report.checked.append(
                "no sample was attacked again: the recorded attacks are not sparring's own; name some"
            )
            return
        self.chosen.sort(key=lambda sample: sample[0])
        everyone = range(len(self.chosen))
        if recorded is not None:
            own, plan = int(self.result.document["seed"]), self.result.plan
            lost = self._fallen(recorded, own, everyone, plan)
            lost = [i for i in lost if self._fallen(recorded, own, [i], plan)]
            if lost:
                self.report.lies.append(
                    f"{len(lost)} of {len(self.chosen)} samples claimed robust fall to the recorded attacks with the recorded "
                    f"seed (first: sample {self.chosen[lost[0]][0]})"
                )
        fallen = self._fallen(attacks or recorded, seed, everyone, None if attacks else self.result.plan)
        self.report.attacked_again, self.report.fallen = len(self.chosen), len(fallen)
        self.report.checked.append(f"{len(self.chosen)} samples claimed robust, attacked again")

    def _fallen(self, attacks: Any, seed: int, which: Sequence[int], plan: Plan | None = None) -> list[int]:
        index, x, y = zip(*(self.chosen[i] for i in which), strict=True)
        again = evaluate(
            self.model,
            (torch.stack(x), torch.tensor(y)),
            self.threat,
            attacks=attacks,
            batch_size=self.batch_size,
            seed=seed,
            device=self.device,
            indices=torch.tensor(index),
            shard=WHOLE,
            plan=plan,
            access=self.result.document.get("access", "gradients"),
            class_names=self.result.document["data"]["class_names"],
        )
        return [i for i, held in zip(which, again.robust.tolist(), strict=True) if not held]
