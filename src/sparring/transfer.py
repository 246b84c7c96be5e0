"""Which examples made on one network fool another? A matrix of sources and targets, for single- and multi-step attacks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparring.attacks import FGSM, MIFGSM, PGD, Attack
from sparring.attacks.inputs import check_inputs, check_labels
from sparring.borrow import Borrowed, borrow
from sparring.evaluation.files import replacing
from sparring.evaluation.placing import placed, to_device
from sparring.evaluation.randomness import OwnRandomness
from sparring.evaluation.source import Batch, Source
from sparring.evaluation.statistics import Proportion
from sparring.objective import fooled, predict
from sparring.threat import Threat
from sparring.wrappers import AttackedInput, Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Attacks = Mapping[str, Attack] | Sequence[Attack]


@dataclass(frozen=True)
class TransferMatrix:
    """What each attack on each source does to each target.

    A cell is about the samples that source and target both classify right: the part of them whose example, made on the
    source, the target gets wrong. Where source and target are the same, it is the white-box rate. Samples that fail to fool
    their source count like the others.

    rates: attack → source → target → `Proportion` (count, total, value, and the 95% Wilson interval low … high).
    clean: name → clean accuracy. forwards, backwards: name → passes through that model. attacks: name → settings.
    """

    threat: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    rates: Mapping[str, Mapping[str, Mapping[str, Proportion]]]
    clean: Mapping[str, Proportion]
    attacks: Mapping[str, Mapping[str, Any]]
    forwards: Mapping[str, int]
    backwards: Mapping[str, int]
    seed: int

    def __getitem__(self, cell: tuple[str, str, str]) -> Proportion:
        """The rate of (attack, source, target)."""
        attack, source, target = cell
        return self.rates[attack][source][target]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each attack and source, a column for each target."""
        return [
            {"attack": attack, "made on": source}
            | {f"→ {target}": f"{p.value:.1%}" if p.total else "–" for target, p in row.items()}
            for attack, matrix in self.rates.items()
            for source, row in matrix.items()
        ]

    def table(self) -> str:
        """The rates with their intervals as a Markdown table."""
        lines = ["| attack | made on | " + " | ".join(f"→ {name}" for name in self.targets) + " |"]
        lines.append("|" + "---|" * (2 + len(self.targets)))
        for attack, matrix in self.rates.items():
            for source, row in matrix.items():
                cells = [
                    f"{p.value:.1%} [{p.low:.1%}, {p.high:.1%}] of {p.total}" if p.total else "–" for p in row.values()
                ]
                lines.append(f"| {attack} | {source} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain dicts, lists and numbers; None for a rate of no samples."""
        rates = {
            attack: {source: {target: _plain(p) for target, p in row.items()} for source, row in matrix.items()}
            for attack, matrix in self.rates.items()
        }
        return {
            "threat": self.threat,
            "sources": list(self.sources),
            "targets": list(self.targets),
            "attacks": {name: dict(settings) for name, settings in self.attacks.items()},
            "clean_accuracy": {name: _plain(p) for name, p in self.clean.items()},
            "rates": rates,
            "passes": {
                name: {"forwards": self.forwards[name], "backwards": self.backwards[name]} for name in self.forwards
            },
            "seed": self.seed,
        }

    def figure(self) -> Figure:
        """A heat map for each attack, on one scale: darker fools more. White-box cells are framed."""
        from sparring.inspection.heat import heat_maps

        values = {
            attack: [[matrix[source][target].value for target in self.targets] for source in self.sources]
            for attack, matrix in self.rates.items()
        }
        return heat_maps(values, self.sources, self.targets, rows="made on", columns="shown to")

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """transfer.png, transfer.svg and transfer.json in the folder, each whole or not at all."""
        from sparring.inspection import style

        place = Path(folder)
        figure = self.figure()
        written = [style.save(figure, place / f"transfer{suffix}") for suffix in (".png", ".svg")]
        target = place / "transfer.json"
        with replacing(target) as file:
            file.write(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return [*written, target]

    def __repr__(self) -> str:
        size = f"{len(self.rates)} attacks, {len(self.sources)} sources, {len(self.targets)} targets"
        return f"TransferMatrix({size})\n{self.table()}"


def transfer_matrix(
    models: Mapping[str, Model],
    data: Any,
    threat: Threat,
    attacks: Attacks | None = None,
    *,
    targets: Mapping[str, Model] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> TransferMatrix:
    """Make examples on each of the models, and show them to each of them.

    models: name → model; with `targets` they are the sources alone, such as an `ensemble`, and the targets are others.
    data: as for `evaluate`. attacks: name → attack, or a list of attacks; default: FGSM in one step, PGD in 40 and MI-FGSM in
    ten, because single-step examples often transfer better than those of many steps (Kurakin et al., 2017).
    An attack takes all its steps, as a direct call does, and its `keep` decides which iterate is shown ("last" for a fixed
    number of steps, "best" for the best on the source). A cell counts the samples that source and target both get right.
    batch_size: bounds the memory: the data streams through. max_samples: a random part of that size. device: where to run.
    progress: progress(message, part done).

    Raises TypeError or ValueError, in one line, for models, attacks or data that can't be used.

    >>> from sparring import Linf
    >>> one, two = torch.eye(2), torch.tensor([[1.0, 0.2], [0.0, 1.0]])
    >>> x = torch.tensor([[0.9, 0.3], [0.2, 0.8]])
    >>> nets = {"one": lambda x: x @ one, "two": lambda x: x @ two}
    >>> transfer_matrix(nets, (x, torch.tensor([0, 1])), Linf(0.31), [FGSM(Linf(0.31))])["FGSM", "one", "two"]
    50.0% [9.5%, 90.5%] (1 of 2)
    """
    shown = models if targets is None else targets
    everyone = _everyone(models, shown)
    chosen = _attacks(attacks, threat)
    source = Source(data, batch_size, max_samples, seed)
    counts = {name: {s: {t: [0, 0] for t in shown} for s in models} for name in chosen}
    clean = {name: [0, 0] for name in everyone}
    done = 0
    with ExitStack() as stack:
        stack.enter_context(OwnRandomness(seed))
        where = None
        for model in everyone.values():
            where = stack.enter_context(placed(model, device)) or where
        borrowed = {name: stack.enter_context(borrow(model, seed=seed)) for name, model in everyone.items()}
        for batch in source:
            x, y = _checked(batch, threat, where)
            right = {name: _right(model, x, y, batch.index) for name, model in borrowed.items()}
            for name, verdict in right.items():
                clean[name][0] += int(verdict.sum())
                clean[name][1] += len(y)
            for number, (name, attack) in enumerate(chosen.items()):
                for maker in models:
                    _count(
                        counts[name][maker],
                        attack,
                        borrowed,
                        maker,
                        right,
                        x,
                        y,
                        batch.index,
                        seed + 1_000_003 * number,
                    )
            done += len(y)
            if progress is not None:
                progress(f"{done} samples", done / source.total if source.total else 0.0)
        return TransferMatrix(
            threat=repr(threat),
            sources=tuple(models),
            targets=tuple(shown),
            rates={
                name: {s: {t: Proportion(*cell) for t, cell in row.items()} for s, row in matrix.items()}
                for name, matrix in counts.items()
            },
            clean={name: Proportion(*pair) for name, pair in clean.items()},
            attacks={name: {"name": attack.name, **attack.settings()} for name, attack in chosen.items()},
            forwards={name: model.forwards for name, model in borrowed.items()},
            backwards={name: model.backwards for name, model in borrowed.items()},
            seed=seed,
        )


def _count(
    row: dict[str, list[int]],
    attack: Attack,
    models: Mapping[str, Borrowed],
    maker: str,
    right: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    index: Tensor,
    seed: int,
) -> None:
    """Make examples on one model of what it and at least one target get right, and show each to the targets that do."""
    useful = right[maker] & torch.stack([right[target] for target in row]).any(0)
    if not bool(useful.any()):
        return
    here = useful.cpu()
    source = models[maker]
    made = attack(source.model, x[useful], y[useful], indices=index[here], seed=seed)
    source.forwards, source.backwards = source.forwards + made.forwards, source.backwards + made.backwards
    for target, cell in row.items():
        both = right[target][useful]
        if bool(both.any()):
            model = models[target]
            logits = model.look(made.x[both], model.keyed({}, index[here][both.cpu()]))
            cell[0] += int(fooled(predict(logits), y[useful][both]).sum())
            cell[1] += int(both.sum())


def _right(model: Borrowed, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    return predict(model.look(x, model.keyed({}, index))) == y


def _checked(batch: Batch, threat: Threat, where: torch.device | None) -> tuple[Tensor, Tensor]:
    x = to_device(batch.x, where)
    if not isinstance(x, Tensor):
        raise TypeError(f"the data yields x as {type(x).__name__}: transfer takes models of one input tensor")
    check_inputs(x, threat)
    return x, check_labels(batch.y, x)


def _everyone(sources: Mapping[str, Model], targets: Mapping[str, Model]) -> dict[str, Model]:
    for what, models in {"models": sources, "targets": targets}.items():
        if not isinstance(models, Mapping) or not models:
            raise TypeError(f"{what} is {type(models).__name__}: expected a dict of name → model, at least one")
    for name in sources.keys() & targets.keys():
        if sources[name] is not targets[name]:
            raise ValueError(f"{name!r} is one model among the sources and another among the targets: rename one")
    everyone = {**sources, **targets}
    for name, model in everyone.items():
        if isinstance(model, AttackedInput):
            raise TypeError(f"{name!r} takes several inputs: transfer takes models of one input tensor")
    return everyone


def _attacks(attacks: Attacks | None, threat: Threat) -> dict[str, Attack]:
    if isinstance(threat.eps, Tensor) or threat.mask is not None:
        raise ValueError("transfer_matrix takes one eps for all samples, and no mask")
    if attacks is None:
        return {"FGSM": FGSM(threat), "PGD": PGD(threat), "MI-FGSM": MIFGSM(threat)}
    named = dict(attacks) if isinstance(attacks, Mapping) else _named(attacks)
    if not named:
        raise ValueError("attacks is empty: expected a dict of name → attack, or a list of attacks")
    for name, attack in named.items():
        if not isinstance(attack, Attack):
            raise TypeError(f"attack {name!r} is {type(attack).__name__}: expected an attack such as sp.PGD(threat)")
        mine = attack.threat
        if (mine.norm, mine.eps, mine.bounds, mine.mask) != (threat.norm, threat.eps, threat.bounds, None):
            raise ValueError(
                f"attack {name!r} works under {attack.threat}, the matrix is about {threat}: give both one"
            )
    return named


def _named(attacks: Iterable[Attack]) -> dict[str, Attack]:
    """By their names, with the steps where two have the same."""
    named: dict[str, Attack] = {}
    for attack in attacks:
        name = getattr(attack, "name", repr(attack))
        if name in named:
            name = f"{name}-{attack.steps}"
        if name in named:
            raise ValueError(f"two attacks are called {name}: give a dict of name → attack")
        named[name] = attack
    return named


def _plain(rate: Proportion) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in rate.to_dict().items()
    }
