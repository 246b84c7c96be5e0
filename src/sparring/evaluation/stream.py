"""An evaluation under way: data streams through the attacks; what is still right at the end counts as robust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sparring.attacks import Attack
from sparring.attacks.inputs import check_inputs, check_label_range, check_labels, split_inputs
from sparring.borrow import Borrowed, looks_like_probabilities
from sparring.evaluation import cascade
from sparring.evaluation.checkup import Chosen
from sparring.evaluation.confirm import ROUNDS, vote
from sparring.evaluation.nearest import Found, draw_back, smallest_norm
from sparring.evaluation.pilot import Gains, Plan
from sparring.evaluation.placing import to_device
from sparring.evaluation.progress import Progress
from sparring.evaluation.records import DONE, STARTED
from sparring.evaluation.source import Batch, Source, digest
from sparring.evaluation.stages import Stage, make_stage
from sparring.evaluation.store import Store
from sparring.evaluation.tally import Tally
from sparring.objective import BrokenModel, predict
from sparring.rows import Rows
from sparring.threat import Threat


class Stream(Tally):
    """Pulls data, keeps the stages fed, and settles samples as they fall or survive."""

    def __init__(
        self,
        model: Borrowed,
        source: Source,
        threat: Threat,
        attacks: list[cascade.AnyAttack],
        store: Store,
        device: torch.device | None,
        *,
        batch_size: int,
        seed: int,
        time_limit: float | None,
        report: Callable[[Progress], None],
        checkup: bool = True,
        plan: Plan | None = None,
        gains: Gains | None = None,
    ) -> None:
        """plan: who goes on to which attack; without one everybody does. gains: is told how far each attack brings samples."""
        super().__init__(model, source, store, time_limit, report)
        self.plan, self.gains = plan, gains
        self.threat, self.device, self.batch_size, self.records = threat, device, batch_size, store.records
        # each attack draws numbers of its own
        self.looks = 1 if plan is None else plan.looks
        self.stages: list[Stage] = [
            make_stage(each, model, batch_size, seed + 1_000_003 * i, random=self.looks > 1)
            for i, each in enumerate(attacks)
        ]
        # a run of foreign attacks alone asks for no gradients
        self.gradients = any(isinstance(attack, Attack) and attack.access == "gradients" for attack in attacks)
        self.fallen: list[Rows | None] = [None] * len(attacks)  # by each stage, not settled yet
        self.chosen = Chosen(seed, source.shard[1]) if checkup else None
        self.batches = iter(source)
        self.shape: list[int] | None = None

    def go(self) -> None:
        """To the end, or until time is up (after one batch at least, so that something is known)."""
        while not self.finished:
            self.finished = not self._work()
            self.tell()
            if self.late:
                break
        for number in range(len(self.stages)):  # where time ran out
            while self.fallen[number] is not None:
                self._settle(number)
            for rows in self.stages[number].under_way():
                self._account(rows, number)
        self.tell(last=True)

    def _work(self) -> bool:
        """The piece of work nearest to the exit that fills a batch, else more data, else what is left; whether there was any."""
        ripe = [i for i, rows in enumerate(self.fallen) if rows is not None and 2 * len(rows) >= self.batch_size]
        full = [i for i, stage in enumerate(self.stages) if stage.ready >= self.batch_size]
        if ripe:
            self._settle(ripe[-1])
        elif full:
            self._step(full[-1])
        elif (batch := next(self.batches, None)) is not None:
            self._meet(batch)
        elif busy := [i for i, stage in enumerate(self.stages) if stage.busy]:
            self._step(busy[0])
        elif waiting := [i for i, rows in enumerate(self.fallen) if rows is not None]:
            self._settle(waiting[0])
        else:
            return False
        return True

    def _account(self, rows: Rows, number: int) -> None:
        """Book the passes that these samples have cost at this stage."""
        table, places = self.records.table, rows.ticket.numpy()
        for way, name in enumerate(("forwards", "backwards")):
            passes = self.model.cost * getattr(rows, name).numpy()
            table["passes"][places, number, way] += passes
            table[name][places] += passes
        for name in ("zero", "broken"):
            table[name][places] += getattr(rows, name).numpy()

    def _finish(self, place: int, example: tuple[Tensor, Tensor] | None = None) -> None:
        self.store.finish(place, example)
        self.done += 1
        self.fooled += example is not None

    def _meet(self, batch: Batch) -> None:
        """Look at new samples; those the model gets right go to the first attack."""
        x, y, context = self._checked(batch)
        self.shape = list(x.shape[1:])
        prints = digest(batch.x, y)
        new: list[int] = []
        for i, (index, fingerprint) in enumerate(zip(batch.index.tolist(), prints, strict=True)):
            if not self.store.holds(index, fingerprint):
                new.append(i)
        self._recall(batch, x, y, context)
        rows = torch.tensor(new, dtype=torch.int64)
        if not len(rows):
            if self.model.classes is None:  # of a run that was killed after its last sample
                self.model.look(x, context)
            return
        here = rows.to(x.device)
        x, y, context = x[here], y[here], {name: part[here] for name, part in context.items()}
        logits, _, asked = vote(self.model, x, y, context, self.looks, ROUNDS)
        check_label_range(y, logits.shape[1])
        prediction, index = predict(logits), batch.index[rows]
        if bool((prediction < 0).any()):
            bad = index[(prediction < 0).cpu()].tolist()
            raise BrokenModel(
                f"the model returns NaN or inf for {len(bad)} clean samples (first: sample {bad[0]}): "
                "check its weights and its input range"
            )
        correct = prediction == y
        threat = self._threat_of(batch.position[rows], x)
        places = torch.tensor([self.records.add(i) for i in index.tolist()])
        self._enter(places, [prints[i] for i in new], logits, y, asked)
        right = correct.cpu()
        for place in places[~right].tolist():
            self._finish(place)
        if bool(right.any()):
            self.stages[0].feed(Rows(places, index, x, y, threat, context=context, reference=logits)[right])

    def _recall(self, batch: Batch, x: Tensor, y: Tensor, context: dict[str, Tensor]) -> None:
        """Offer what an earlier start has finished to the checkup."""
        places = [self.records.place(index) for index in batch.index.tolist()]
        table = self.records.table
        for standing in (True, False):
            mine = [
                i for i, place in enumerate(places)
                if place is not None and table["correct"][place] and table["robust"][place] == standing
                and table["state"][place] == DONE
            ]  # fmt: skip
            if self.chosen is not None and mine:
                at = torch.tensor(mine)
                here = at.to(x.device)
                others = {name: part[here] for name, part in context.items()}
                threat = self._threat_of(batch.position[at], x[here])
                self.chosen.offer(Rows(at, batch.index[at], x[here], y[here], threat, context=others), standing)

    def _checked(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The attacked tensor, labels (n,) and the other inputs, on the device."""
        x, context = split_inputs(self.model.model, to_device(batch.x, self.device))
        try:
            y = check_labels(batch.y, x)
            if x.is_floating_point() and not bool(x.isfinite().all()):
                bad = batch.index[(~x.flatten(1).isfinite().all(1)).cpu()].tolist()
                raise ValueError(f"x holds NaN or inf in {len(bad)} (first: sample {bad[0]}): clean the data first")
            check_inputs(x, self.threat)
        except (TypeError, ValueError) as error:
            raise type(error)(f"samples {int(batch.index[0])} to {int(batch.index[-1])}: {error}") from None
        return x, y, self.model.keyed(context, batch.index.to(x.device))

    def _enter(self, places: Tensor, prints: list[int], logits: Tensor, y: Tensor, asked: Tensor) -> None:
        """Write down what the clean logits say, and how often each sample was asked for."""
        table, at, correct = self.records.table, places.numpy(), predict(logits) == y
        self.correct += int(correct.sum())
        columns = {"label": y, "clean_prediction": predict(logits), "correct": correct, "robust": correct}
        columns |= {"clean_confidence": logits.float().softmax(1).amax(1)}
        for name, values in columns.items():
            table[name][at] = values.cpu().numpy()
        table["digest"][at], table["probabilities"][at] = prints, looks_like_probabilities(logits)
        table["forwards"][at], table["state"][at] = self.model.cost * asked.numpy(), STARTED

    def _threat_of(self, position: Tensor, x: Tensor) -> Threat:
        """The threat of these samples: eps or a mask with one value per sample is looked up by position in the data."""
        eps, mask = self.threat.eps, self.threat.mask
        if isinstance(eps, Tensor):
            eps = self._of(eps, position, "eps")
        if mask is not None and mask.ndim == x.ndim:
            mask = mask[0] if len(mask) == 1 else self._of(mask, position, "mask")
        same = eps is self.threat.eps and mask is self.threat.mask
        return (self.threat if same else replace(self.threat, eps=eps, mask=mask)).for_inputs(x)

    def _of(self, values: Tensor, position: Tensor, name: str) -> Tensor:
        available = self.source.available
        if int(position.max()) >= len(values) or available not in (None, len(values)):
            raise ValueError(
                f"{name} holds {len(values)} values, the data {available or 'more'} samples: expected one for all, or "
                "one per sample"
            )
        return values[position.to(values.device)]

    def _step(self, number: int) -> None:
        """Take one stage a step on: the fallen wait to be settled, survivors go to the next stage or are robust."""
        done = self.stages[number].step()
        if done is None:
            return
        self._account(done, number)
        self._approach(done, number)
        fell = (done.norm.isfinite() if len(done.norm) else done.fooled).cpu()  # a search finds also beyond eps
        if bool(fell.any()):
            rows, before = done[fell], self.fallen[number]
            self.fallen[number] = rows if before is None else before + rows
        self._pass_on(done[~fell], number)

    def _approach(self, rows: Rows, number: int) -> None:
        """Write down how close these samples have come to failing."""
        if not len(rows.closeness):
            return
        places, now = rows.ticket.numpy(), rows.closeness.cpu()
        if self.gains is not None:
            before = torch.from_numpy(self.records.table["closeness"][places]).nan_to_num(1.0)
            self.gains.see(number, before, now, rows.fooled)
        self.records.table["closeness"][places] = now.numpy()

    def _pass_on(self, standing: Rows, number: int) -> None:
        """To the next attack that is for each of these samples; after the last one they are robust."""
        for later in range(number + 1, len(self.stages)):
            if not len(standing):
                return
            if self.stages[later].pointless(self.model.classes or 2):
                continue
            goes = torch.ones(len(standing), dtype=torch.bool)
            if self.plan is not None:
                zero = self.records.table["zero"][standing.ticket.numpy()] > 0
                goes = self.plan.admits(later, standing.closeness.cpu(), torch.from_numpy(zero))
            if bool(goes.any()):
                self.stages[later].feed(standing[goes])
                standing = standing[~goes]
        if len(standing):
            if self.chosen is not None:
                self.chosen.offer(standing, True)
            if self.gains is not None:
                self.gains.standing.append(standing)
            for place in standing.ticket.tolist():
                self._finish(place)

    def _settle(self, number: int) -> None:
        """Confirm this stage's examples by asking again, and find how near failure lies; the others stand."""
        if (waiting := self.fallen[number]) is None:
            return
        rows, self.fallen[number] = waiting.split(self.batch_size)
        logits, wrong, asked = vote(self.model, rows.best, rows.y, rows.context, self.looks, ROUNDS)
        prediction, sure = predict(logits), wrong.cpu()
        table, places = self.records.table, rows.ticket.numpy()
        table["forwards"][places] += self.model.cost * asked.numpy()
        table["unconfirmed"][places] += (~sure).numpy()
        if self.gains is not None:
            self.gains.ask(sure)
        self._pass_on(rows[~sure], number)
        within = rows.fooled.cpu()
        far = rows[sure & ~within]
        if len(far):  # found by a search: they stand, and how far one must go is known
            beyond = far.ticket.numpy()
            table["distance"][beyond] = np.fmin(table["distance"][beyond], far.norm.float().cpu().numpy())
            self._pass_on(far, number)
        sure = sure & within
        rows, places = rows[sure], places[sure.numpy()]
        if not len(rows):
            return
        if self.chosen is not None:
            self.chosen.offer(rows, False)
        if self.gains is not None:  # a pilot asks how many fall, not how near
            for i, place in enumerate(places.tolist()):
                self._finish(place, (rows.original[i], rows.best[i]))
            return
        if len(rows.norm) and not self.stages[number].attack.stop_when_fooled:
            found = Found(rows.norm.cpu().double(), 0, 0)  # this was a search for just that
        else:
            found = smallest_norm(self.model, rows) if self.gradients else draw_back(self.model, rows)
        # in single precision: the last bits of a double depend on the batch
        table["distance"][places] = found.norm.float().numpy()
        table["forwards"][places] += self.model.cost * found.forwards
        table["backwards"][places] += self.model.cost * found.backwards
        table["robust"][places], table["attack"][places] = False, number
        table["prediction"][places] = prediction.cpu()[sure].numpy()
        table["confidence"][places] = logits.float().softmax(1).amax(1).cpu()[sure].numpy()
        table["norm"][places] = rows.threat.size(rows.original, rows.best).float().cpu().numpy()
        for i, place in enumerate(places.tolist()):
            self._finish(place, (rows.original[i], rows.best[i]))
