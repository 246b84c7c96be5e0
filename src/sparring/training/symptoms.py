"""What can be measured on a network, and on a few samples, to tell whether its training goes wrong; `findings` judges it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks import FGSM, PGD
from sparring.attacks.base import Attack
from sparring.borrow import Borrowed, borrow
from sparring.noise import Noise
from sparring.objective import check_label_range
from sparring.threat import Threat
from sparring.training.batchnorm import BUFFERS, batch_statistics, live_norms, names_of
from sparring.training.crafting import craft
from sparring.training.fast import slope
from sparring.training.losses import Batch
from sparring.training.modes import as_in_training
from sparring.training.own_norms import Norm, listening
from sparring.training.recalibration import Sums

MODES = ("running", "batch")
STEPS = 10


@dataclass(frozen=True)
class LayerDrift:
    """A BatchNorm layer's running statistics against those of the data, in the order in which layers run.

    shift: root mean square over channels of (running mean − data mean)/σ. stretch: the same of log(running variance /
    data variance). scale: geometric mean over channels of running σ / data σ; spread: the standard deviation over channels
    of its log. fresh: how much of the running statistics is still what every layer begins with, mean 0 and variance 1
    (least squares), and remainder: the root mean square that this leaves unexplained of shift and stretch.
    """

    name: str
    updates: int | None
    momentum: float | None
    shift: float
    stretch: float
    scale: float
    spread: float
    fresh: float
    remainder: float

    @property
    def size(self) -> float:
        return max(self.shift, self.stretch)


@dataclass
class Answers:
    """How the network answers, with running or with batch statistics. right (n,); entropy: mean, in nats; top: the largest
    share of one class among the answers, and which; loss: mean cross-entropy."""

    right: Tensor
    entropy: float
    top: float
    top_class: int
    loss: float

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())


@dataclass
class Attacked:
    """Under attack, with the statistics `mode`: right (n,) after one step from the sample itself, and after many from a
    random point; cosine: mean between the gradients at x and at a random point of the ball."""

    mode: str
    one_step: Tensor
    many_steps: Tensor
    cosine: float


@dataclass
class Symptoms:
    """All that was measured. gain[craft][seen]: by how much one step, taken with the statistics `craft`, raises the loss of
    the network with the statistics `seen`. broken: names of parameters and buffers that are not finite."""

    samples: int
    classes: int
    labels: Tensor
    inputs: tuple[float, float, float, float]
    broken: list[str]
    layers: list[LayerDrift] = field(default_factory=list)
    answers: dict[str, Answers] = field(default_factory=dict)
    attacked: Attacked | None = None
    gain: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "samples": self.samples,
            "classes": self.classes,
            "inputs": dict(zip(("low", "high", "mean", "std"), self.inputs, strict=True)),
            "not_finite": self.broken,
            "layers": [asdict(layer) for layer in self.layers],
            "gain": self.gain,
        }
        for mode, answers in self.answers.items():
            found[mode] = {
                "accuracy": answers.accuracy,
                "entropy": answers.entropy,
                "top_share": answers.top,
                "loss": answers.loss,
            }
        if self.attacked is not None:
            one, many = (float(right.double().mean()) for right in (self.attacked.one_step, self.attacked.many_steps))
            found["attacked"] = {
                "mode": self.attacked.mode,
                "one_step": one,
                "many_steps": many,
                "cosine": self.attacked.cosine,
            }
        return found


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or inf. In buffers but running statistics inf may be meant: a mask."""
    bad: dict[str, Tensor] = {name: ~value.isfinite() for name, value in model.named_parameters()}
    for name, value in model.named_buffers():
        bad[name] = ~value.isfinite() if name.endswith(BUFFERS) else value.isnan()
    return [name for name, where in bad.items() if bool(where.any())]


@contextmanager
def looking(model: nn.Module, x: Tensor) -> Iterator[tuple[Borrowed, list[Norm]]]:
    """The model borrowed, and its BatchNorm layers that are not frozen. x: inputs of it."""
    with as_in_training(model):
        live = live_norms(model, x)
    with borrow(model) as borrowed:
        yield borrowed, live


class Examination:
    """Looks at a model from several sides; x (n, *S), y (n,) are dealt out in batches of `size`, in the order given."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, *, size: int = 64, seed: int = 0) -> None:
        self.model = getattr(model, "_orig_mod", model)  # the hooks below are not seen by what torch.compile has made
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        numbers = list(torch.split(torch.arange(len(x)), size))
        if len(numbers) > 1 and len(numbers[-1]) < 2:
            numbers[-2:] = [torch.cat(numbers[-2:])]
        self.batches = [Batch(x[part].to(place), y[part].to(place), part) for part in numbers]
        self.seed, self.classes = seed, 0

    def answers(self, mode: str) -> Answers:
        with looking(self.model, self.batches[0].x) as (borrowed, live), _statistics(mode, live):
            logits = torch.cat([borrowed.look(batch.x, {}) for batch in self.batches]).double()
        y = torch.cat([batch.y for batch in self.batches])
        self.classes = logits.shape[1]
        check_label_range(y, self.classes)
        log_p = logits.log_softmax(1)
        predicted = logits.argmax(1)
        counts = predicted.bincount(minlength=logits.shape[1])
        return Answers(
            right=(predicted == y).cpu(),
            entropy=float(-(log_p.exp() * log_p).nan_to_num(0.0).sum(1).mean()),
            top=float(counts.max()) / len(y),
            top_class=int(counts.argmax()),
            loss=float(F.nll_loss(log_p, y)),
        )

    def drift(self) -> list[LayerDrift]:
        """Of every layer that is not frozen and runs, while each batch is normalised with its own statistics."""
        sums: dict[Norm, Sums] = {}  # in the order in which they run

        def heard(layer: Norm, x: Tensor, moving: bool) -> None:
            if layer not in sums:
                sums[layer] = Sums(layer)
            sums[layer].add(x)

        with looking(self.model, self.batches[0].x) as (borrowed, live), batch_statistics(live), listening(live, heard):
            for batch in self.batches:
                borrowed.look(batch.x, {})
        return [_drift(name, layer, sums[layer]) for name, layer in zip(names_of(self.model, sums), sums)]

    def attacked(self, threat: Threat, mode: str, steps: int = STEPS) -> Attacked:
        fewer = PGD(threat, steps, 2.5 * float(threat.eps) / steps)
        with looking(self.model, self.batches[0].x) as (borrowed, live), _statistics(mode, live):
            right = {
                name: torch.cat([self._right(borrowed, attack, batch) for batch in self.batches])
                for name, attack in (("one", FGSM(threat)), ("many", fewer))
            }
            cosines = []
            for batch in self.batches:
                assert batch.indices is not None
                near = threat.for_inputs(batch.x).random(batch.x, Noise(self.seed, batch.indices), "near")
                a, b = (slope(borrowed, point, batch).flatten(1).double() for point in (batch.x, near))
                cosines.append(F.cosine_similarity(a, b, eps=1e-300))
        return Attacked(mode, right["one"], right["many"], float(torch.cat(cosines).nan_to_num(0.0).mean()))

    def gains(self, threat: Threat) -> dict[str, dict[str, float]]:
        """By how much one step raises the loss, where it is crafted and where it is seen with which statistics."""
        found: dict[str, dict[str, list[Tensor]]] = {craft: {seen: [] for seen in MODES} for craft in MODES}
        with looking(self.model, self.batches[0].x) as (borrowed, live):
            for batch in self.batches:
                for made in MODES:
                    with _statistics(made, live):
                        x = self._craft(borrowed, FGSM(threat), batch)
                    for seen in MODES:
                        with _statistics(seen, live):
                            losses = [
                                F.cross_entropy(borrowed.look(point, {}).double(), batch.y, reduction="none")
                                for point in (x, batch.x)
                            ]
                        found[made][seen].append(losses[0] - losses[1])
        return {made: {seen: float(torch.cat(rows[seen]).mean()) for seen in MODES} for made, rows in found.items()}

    def _craft(self, borrowed: Borrowed, attack: Attack, batch: Batch) -> Tensor:
        return craft(attack, borrowed, batch.x, batch.y, indices=batch.indices, seed=self.seed)

    def _right(self, borrowed: Borrowed, attack: Attack, batch: Batch) -> Tensor:
        return (borrowed.look(self._craft(borrowed, attack, batch), {}).argmax(1) == batch.y).cpu()


def _statistics(mode: str, live: list[Norm]) -> AbstractContextManager[None]:
    return batch_statistics(live) if mode == "batch" else nullcontext()


def _drift(name: str, layer: Norm, sums: Sums) -> LayerDrift:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, var = sums.mean, sums.squares / sums.count.clamp(min=1) + layer.eps
    at, wide = layer.running_mean.to(sums.mean), layer.running_var.to(sums.mean) + layer.eps
    shift, stretch = (at - mean) / var.sqrt(), (wide / var).log()
    # running = (1 − w) · data + w · (0, 1): the share w of what every layer begins with
    towards = torch.cat([-mean / var.sqrt(), (1 + layer.eps - var) / var])
    moved = torch.cat([shift, (wide - var) / var])
    weight = (towards * moved).sum() / towards.square().sum().clamp(min=1e-12)
    weight = weight.clamp(0, 1)
    left = torch.cat(
        [shift + weight * mean / var.sqrt(), (wide / ((1 - weight) * var + weight * (1 + layer.eps))).log()]
    )
    bare = torch.stack([layer.running_var.to(sums.mean), var - layer.eps])
    ratios = bare[:, (bare > 1e-12).all(0)].log().diff(dim=0).flatten() / -2  # of channels that live
    middle = float(ratios.median()) if len(ratios) else 0.0
    return LayerDrift(
        name=name,
        updates=None if layer.num_batches_tracked is None else int(layer.num_batches_tracked),
        momentum=layer.momentum,
        shift=_rms(shift),
        stretch=_rms(stretch),
        scale=math.exp(middle),
        spread=float((ratios - middle).abs().median()) if len(ratios) else 0.0,
        fresh=float(weight),
        remainder=_rms(left),
    )


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
