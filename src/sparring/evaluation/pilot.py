"""What an evaluation learns before it begins: on a few samples, how much each attack of the cascade still brings.

The pilot's samples are chosen by the seed alone and take every attack that is measured. What they show is frozen into a
`Plan`, which every sample, and every shard, is then attacked by; the pilot's passes count, its verdicts do not.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.evaluation.adaptive import Step
from sparring.evaluation.files import replacing
from sparring.rows import Rows

LEAST, MOST = 32, 128  # samples of a pilot: a fiftieth of them all
LOOKS = 25  # at an example for a random model, at least
NEVER = -1.0  # a gate for nobody


@dataclass(frozen=True)
class Plan:
    """gates: for each attack the closeness up to which samples go on to it (None: all do, as a JSON number can't be infinite).

    blind: to which attacks samples go whose gradient was zero somewhere, whatever their closeness.
    samples: how many the pilot had. reached: (attacks up to the last that is measured) how many of them took each. gains:
    how much closer to failure each attack brought them, on average. fooled: how many each attack fooled.
    random: the model answers differently when asked again. Then no search is worth its queries (it keeps what was luck),
    everybody goes on to every ascent, which takes all its steps (over which the draws average) and returns the last, and
    an example counts if it fools in most of `looks`, and of up to eight times as many where those leave it open.
    raised: the closeness up to which samples are searched because of gains that only masked gradients explain; 0 without.
    rugged: the median, over the pilot's samples that stood, of how far apart two climbs from random starts end, in closeness.
    forwards, backwards: what the pilot cost.
    """

    gates: tuple[float | None, ...]
    samples: int
    reached: tuple[int, ...]
    gains: tuple[float, ...]
    fooled: tuple[int, ...]
    forwards: int
    backwards: int
    random: bool = False
    raised: float = 0.0
    blind: tuple[int, ...] = ()
    rugged: float = 0.0

    @property
    def looks(self) -> int:
        """How often the model is asked before an example counts."""
        return LOOKS if self.random else 1

    def admits(self, number: int, closeness: Tensor, zero: Tensor) -> Tensor:
        """(N,) bool: which samples of this closeness, and with or without a gradient that was zero, go on to that attack."""
        gate = self.gates[number]
        if gate is None:
            return torch.ones_like(zero)
        return (closeness <= gate) | zero if number in self.blind else closeness <= gate

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**known)


class Gains:
    """What was seen of each measured attack: closeness before and after it, for every sample of the pilot that took it."""

    def __init__(self, numbers: Sequence[int]) -> None:
        """numbers: of the attacks that the pilot's samples take, in the whole cascade."""
        self.numbers, attacks = numbers, max(numbers) + 1
        self.brought: list[list[float]] = [[] for _ in range(attacks)]
        self.fooled = [0] * attacks
        self.asked = self.denied = 0  # examples shown to the model again, and those that did not fool it then
        self.standing: list[Rows] = []  # that no attack has fooled
        self.rugged = 0.0

    def see(self, number: int, before: Tensor, after: Tensor, fooled: Tensor) -> None:
        number = self.numbers[number]
        self.brought[number] += (before - after).clamp_min(0).tolist()
        self.fooled[number] += int(fooled.sum())

    def ask(self, sure: Tensor) -> None:
        self.asked += len(sure)
        self.denied += int((~sure).sum())

    @property
    def random(self) -> bool:
        """Too many examples did not hold for rounding to be the reason."""
        return self.denied >= 3 and self.denied > 0.05 * self.asked

    def gain(self, number: int) -> float:
        """The mean over the samples."""
        brought = self.brought[number]
        return sum(brought) / len(brought) if brought else 0.0


def plan(steps: list[Step], gains: Gains, samples: int, forwards: int, backwards: int) -> Plan:
    """The plan that these gains call for."""
    gates: list[float | None] = []
    raised = 0.0
    for step in steps:
        near = step.gate.near
        if step.gate.gains or (step.gate.rugged and not raised):
            seen = gains.rugged if step.gate.rugged else sum(gains.gain(number) for number in step.gate.gains)
            wide = min(step.gate.most, step.gate.factor * (seen - step.gate.usual))
            if step.measured and step.gate.usual and wide > near and not gains.random:
                raised = min(1.0, wide)
            near = max(near, wide)
        if gains.random:
            near = 1.0 if step.attack.access == "gradients" and not step.gate.rugged else NEVER
        gates.append(None if near >= 1 else round(near, 4))
    # where gradients are masked for everybody a search says more than another climb
    blind = [
        i for i, step in enumerate(steps) if step.gate.blind and not (raised and step.attack.access == "gradients")
    ]
    return Plan(
        gates=tuple(gates),
        samples=samples,
        reached=tuple(len(brought) for brought in gains.brought),
        gains=tuple(round(gains.gain(i), 4) for i in range(len(gains.brought))),
        fooled=tuple(gains.fooled),
        forwards=forwards,
        backwards=backwards,
        random=gains.random,
        raised=round(raised, 4),
        blind=() if gains.random else tuple(blind),
        rugged=round(gains.rugged, 4),
    )


def size(available: int | None) -> int:
    """How many samples the pilot of so large an evaluation has."""
    return LEAST if available is None else min(MOST, max(LEAST, available // 50))


def kept(file: Path | None, identity: dict[str, Any], study: Callable[[], Plan]) -> Plan:
    """The plan of this evaluation in the file, else the one that `study` makes. Of processes that study at once the first
    to come back decides: one plan holds for all shards."""
    if file is None:
        return study()
    if (known := _read(file, identity)) is not None:
        return known
    made = study()
    if _read(file, identity) is None:
        file.unlink(missing_ok=True)  # of another evaluation, whose results are gone
    own = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    with replacing(own) as opened:
        json.dump({"identity": identity, "plan": made.to_json()}, opened, indent=1)
    try:
        os.link(own, file)
    except FileExistsError:
        return _read(file, identity) or made
    except OSError:  # a file system without links
        os.replace(own, file)
    finally:
        own.unlink(missing_ok=True)
    return made


def _read(file: Path, identity: dict[str, Any]) -> Plan | None:
    if not file.exists():
        return None
    try:
        known = json.loads(file.read_text("utf-8"))
        return Plan.from_json(known["plan"]) if known["identity"] == json.loads(json.dumps(identity)) else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a readable plan ({error}); remove it to let the pilot run again") from None
