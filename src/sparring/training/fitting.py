"""`fit`: train a network with a strategy, from the data to the best weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring.evaluation.cascade import Attacks
from sparring.evaluation.placing import own_device
from sparring.evaluation.randomness import OwnRandomness
from sparring.training import optimizing
from sparring.training.augmentation import AUGMENTATIONS
from sparring.training.averaging import Average
from sparring.training.callbacks import Callback
from sparring.training.checkpoint import core
from sparring.training.feed import Feed
from sparring.training.folder import Folder
from sparring.training.health import HealthCheck
from sparring.training.history import Bar, Epoch, Progress, Show, check_loggers, has_tensorboard
from sparring.training.limits import Limits
from sparring.training.modes import as_in_training
from sparring.training.optimizing import Optimizer, Rates, Schedule, Tuning
from sparring.training.parts import begin_anew
from sparring.training.run import Run
from sparring.training.settings import check, identity, precision_of
from sparring.training.strategy import Strategy
from sparring.training.team import Crew, bare, crew
from sparring.training.unlabelled import Pairs
from sparring.training.validation import prepare

Augment = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FitResult:
    """What came out of a training.

    history: an `Epoch` each. best: the epoch of best robust accuracy on validation data (clean accuracy where nothing is
    attacked, or to decide a draw; then the later one), None without validation. best_weights: the model's state dict at
    its end; best_adversarial: the same under bn="split" with the BatchNorm statistics of the branch "adversarial", else None.
    strategy: as it was at the end.
    finished: False where time ran out. notes: what was to be said on the way. folder: of the files, None without one.
    """

    history: tuple[Epoch, ...]
    best: Epoch | None
    best_weights: dict[str, Tensor] | None
    strategy: Strategy
    finished: bool
    notes: tuple[str, ...]
    folder: Path | None
    best_adversarial: dict[str, Tensor] | None = None

    def load_best(self, model: nn.Module, branch: str = "clean") -> nn.Module:
        """The model with the best epoch's weights in it. ValueError where nothing was validated.

        branch: "adversarial": with the BatchNorm statistics that adversarial samples had, after a training with bn="split".
        """
        if self.best_weights is None:
            raise ValueError("no epoch was validated, so none is known to be the best: give validation data")
        weights = {"clean": self.best_weights, "adversarial": self.best_adversarial}.get(branch)
        if weights is None:
            raise ValueError(f"branch={branch!r}: expected 'clean', or 'adversarial' after a training with bn='split'")
        core(model).load_state_dict(weights)
        return model

    def __repr__(self) -> str:
        told = [f"{len(self.history)} epochs" if len(self.history) != 1 else "1 epoch"]
        if self.best is not None:
            told.append(f"the best is {self.best.epoch}: {self.best.standing}")
        told += [] if self.finished else ["not finished"]
        told += [f"notes: {len(self.notes)}"] if self.notes else []
        return f"FitResult({', '.join(told)}{'' if self.folder is None else f', in {self.folder}'})"

    def to_json(self) -> dict[str, Any]:
        return {
            "epochs": [asdict(epoch) for epoch in self.history],
            "best": None if self.best is None else self.best.epoch,
            "finished": self.finished,
            "notes": list(self.notes),
            "folder": None if self.folder is None else str(self.folder),
        }


def fit(
    model: nn.Module,
    data: Any,
    strategy: Strategy,
    *,
    epochs: int,
    validation: Any = None,
    unlabelled: Any = None,
    batch_size: int | None = None,
    unlabelled_batch_size: int | None = None,
    optimizer: Optimizer = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: Schedule = "cosine",
    warmup: float = 0.0,
    max_grad_norm: float | None = None,
    accumulate: int = 1,
    precision: str | None = None,
    compile: bool | dict[str, Any] = False,
    channels_last: bool = False,
    augment: Augment | None = None,
    freeze: Sequence[str] = (),
    head: str | None = None,
    head_epochs: int = 0,
    body_lr: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    save_every: float = 60.0,
    evaluate_every: int = 1,
    validation_attack: Attacks | None = None,
    validation_samples: int | None = 1000,
    callbacks: Sequence[Callback] = (),
    health: bool | HealthCheck | None = None,
    progress: bool | Show = False,
    loggers: Sequence[str] | None = None,
    time_limit: float | None = None,
) -> FitResult:
    """Trains `model` in place with `strategy`; afterwards it holds the last weights (the averaged ones, where the strategy has
    an average round it), and the result the best ones.

    model: maps float inputs (B, *S) to logits (B, C). One whose root is in eval mode is switched to train mode; one in train
    mode is taken as it stands, so a frozen BatchNorm stays frozen. Frozen parameters do not learn. Modes,
    `requires_grad` and the global random states are as before afterwards; `.grad` is None.
    strategy: begins anew with each fit, whatever it has learned before; only a training that is resumed goes on with its state.
    data: (x, y) tensors, a map-style Dataset of (x, label), or a DataLoader, whose own sampler, collation and workers are
    used. What a data set draws at random is keyed by (seed, epoch, sample). Samples keep their numbers in the data set.
    unlabelled: samples to learn from without labels, for `sp.VAT` or with `sp.VirtualAdversarial` round a strategy: a tensor x,
    a Dataset of x or (x, …), whose labels nobody reads, or a DataLoader. They make the epoch: each comes once, and the labelled
    ones go round beside them. unlabelled_batch_size: default 128, or the DataLoader's.
    validation: held-out data in the same forms, never what the verdict will be taken on. Left out, a tenth of the training
    samples (at most `validation_samples`) is held out and not learned from, and a note says so; False: none.
    validation_attack, validation_samples, evaluate_every: validation is `sp.evaluate` with this attack (default: PGD of 10
    steps under the strategy's threat; strategies without one: clean accuracy) on at most so many samples, every so many
    epochs and at the end.
    batch_size: default 128, or the DataLoader's; in many processes, of all of them together.
    optimizer: "sgd" (Nesterov), "adam", "adamw", a function of parameter groups that makes one, or an optimiser of this
    model's parameters. lr: the highest rate, default 0.1 for sgd (0.1 / m for `YOPO`, which adds up m gradients) and 0.001
    else. momentum: of sgd. weight_decay.
    schedule: "cosine" down to zero; "cyclic" (or "triangle"): up to `lr` at 40% and down to zero, linearly; "steps": a tenth
    at 50% and again at 75%; "constant"; a function from the fraction done to a factor; or a torch scheduler of your
    optimiser, which steps once a batch. warmup: epochs in which the rate rises linearly from zero, times the schedule.
    max_grad_norm: the L2 norm of all gradients together that each step is clipped to. accumulate: batches a step.
    precision: None, "bf16", or "fp16" (CUDA; with a gradient scaler). compile: True, or arguments of `torch.compile`.
    channels_last: images and filters in that order of memory. augment: "mirror-shift" (mirrored, and shifted by up to 4
    pixels), "shift" (by up to 2: for digits and signs), or a function of x (B, *S) that draws from torch's global generator.
    freeze: submodules or parameters, by name with * and ?, that never learn. head_epochs: first so many in which only
    `head` (a submodule's name; default: the last one with parameters) learns. body_lr: the rate of everything else after.
    seed: of the order of samples, augmentation and dropout; the strategy's own draws have the strategy's seed.
    device: the model is moved there; by default it stays. out: a folder for `best.safetensors`, `last.safetensors`,
    `state.pt`, `history.json`, `log.csv`. resume: go on from what is there; killed at any moment and started again with
    the same arguments, training ends with the same weights, to the bit on a CPU. Mid-epoch it saves every `save_every`
    seconds. Ctrl-C stops behind the next step, saves, and raises KeyboardInterrupt.
    health: look at a few samples after each epoch as `sp.diagnose` does, say what is wrong, and take catastrophic overfitting
    back (see `HealthCheck`); left out: where there is validation. callbacks: others, see `Callback`.
    progress: True for a bar, or a callback that gets a `Progress`. loggers: "csv", "tensorboard"; default both, where
    tensorboard is installed. time_limit: seconds after which to stop and save.

    Under torchrun every process calls this with the same arguments; each learns from its share of every batch.

    Raises TypeError or ValueError, in one line, for what can't be trained on, and FloatingPointError, which says where,
    when a loss or the weights are not finite; the model then has the weights of the last good epoch.

    >>> import sparring as sp
    >>> x, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    >>> x[:, 0] += 4.0 * y
    >>> result = fit(nn.Linear(5, 2), (x, y), sp.Standard(), epochs=20, batch_size=16, validation=False)
    >>> result.history[-1].accuracy > 0.95
    True
    """
    given = locals()
    model = bare(model)
    check(given)
    loggers = check_loggers(loggers) if loggers is not None else ("csv", *["tensorboard"] * has_tensorboard())
    place = own_device(torch.device(device)) if device is not None else next(model.parameters()).device
    dtype = precision_of(precision, place)
    watching = health if isinstance(health, HealthCheck) else HealthCheck()
    if health or (health is None and validation is not False):
        callbacks = [*callbacks, watching]
    with ExitStack() as stack:
        together = stack.enter_context(crew(place))
        feed = _feed(given, together)
        if len(amounts := set(together.gather(feed.available))) > 1:
            raise ValueError(f"processes were given {sorted(amounts)} samples: expected all of the data in each")
        held, said = prepare(validation, feed, strategy, validation_attack, validation_samples)
        tuning = Tuning(model, freeze, head, head_epochs, body_lr)
        if strategy.batches:
            begin_anew(strategy)
        model.to(place, memory_format=torch.channels_last) if channels_last else model.to(place)  # type: ignore[call-overload]
        feed.to(place)
        owners = {"model": model, **{name: module.to(place) for name, module in strategy.modules().items()}}
        together.begin(list(owners.values()))
        optimizers = _optimizers(given, tuning, owners)
        limits = Limits(time_limit, save_every if out is not None else None)
        folder = None if out is None else Folder(Path(out), identity(given, callbacks, feed, model), loggers)
        run = Run(
            model=model, strategy=strategy, feed=feed, validation=held, optimizers=optimizers,
            rates=Rates(schedule, list(optimizers.values()), warmup / epochs), tuning=tuning, crew=together, device=place,
            limits=limits, epochs=epochs, accumulate=accumulate, max_grad_norm=max_grad_norm,
            augment=_augment(augment, seed), channels_last=channels_last, evaluate_every=evaluate_every,
            scaler=torch.amp.GradScaler(place.type) if dtype == torch.float16 else None, callbacks=callbacks, autocast=dtype,
        )  # fmt: skip
        show = stack.enter_context(Bar()) if progress is True and together.rank == 0 else progress
        run.show = show if callable(show) and together.rank == 0 else run.show
        for context in (OwnRandomness(seed + together.rank), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        stack.callback(run.release)
        strategy.crew = together if together.size > 1 else None
        for name in ("autocast", "crew"):
            stack.callback(setattr, strategy, name, None)
        stack.enter_context(as_in_training(model))
        stack.enter_context(_compiled(model, compile))
        resumed = False
        if folder is not None:
            if together.rank == 0:
                stack.callback(lock.close) if (lock := folder.lock()) is not None else None
                if not resume:
                    folder.clear()
            together.gather(None)
            stack.enter_context(limits.listening())
            resumed = folder.resume(run)
            run.keep = folder.keep
        if resumed and run.epoch < epochs:
            run.show(run.progress(f"going on from epoch {run.epoch + 1}, batch {run.position + 1}"))
        elif said is not None and not resumed:
            run.note(said)
        finished = run.go()
        limits.ask_on(_stopped(run, folder))
        for part in run.strategy.parts:
            if finished and isinstance(part, Average) and not part.count:
                run.note(
                    f"{type(part).__name__} has averaged nothing, its start was never reached: these are the last weights"
                )
        core(model).load_state_dict(run.weights())
    return FitResult(
        tuple(run.history), run.best, run.best_weights, run.strategy, finished,
        tuple(note["text"] for note in run.notes), None if folder is None else folder.path, run.best_adversarial,
    )  # fmt: skip


def _stopped(run: Run, folder: Folder | None) -> str:
    where = f"stopped in epoch {min(run.epoch + 1, run.epochs)} of {run.epochs}, after batch {run.position} of {run.batches}"
    return where if folder is None else f"{where}, kept in {folder.path}: the same call goes on from there"


def _feed(given: dict[str, Any], together: Crew) -> Feed:
    data, batch_size, seed, others = (given[name] for name in ("data", "batch_size", "seed", "unlabelled"))
    if others is None:
        return Feed(data, batch_size, seed, rank=together.rank, size=together.size)
    size = given["unlabelled_batch_size"]
    return Pairs(data, batch_size, seed, others, size, rank=together.rank, size=together.size)


def _optimizers(
    given: dict[str, Any], tuning: Tuning, owners: dict[str, nn.Module]
) -> dict[str, torch.optim.Optimizer]:
    def make(groups: Any) -> Any:
        return optimizing.make(
            given["optimizer"], groups, given["lr"], given["momentum"], given["weight_decay"], given["strategy"].summed
        )

    return {
        name: make(tuning.groups() if name == "model" else [{"params": list(module.parameters())}])
        for name, module in owners.items()
    }


def _augment(augment: Augment | None, seed: int) -> Callable[[Tensor, Tensor, int], Tensor] | None:
    if augment is None:
        return None
    if callable(augment):
        return lambda x, indices, step: augment(x)
    if augment not in AUGMENTATIONS:
        raise ValueError(
            f"augment={augment!r}: expected {', '.join(map(repr, AUGMENTATIONS))}, or a function of x (B, *S)"
        )
    return lambda x, indices, step: AUGMENTATIONS[augment](x, indices, seed * 1_000_003 + step)


@contextmanager
def _compiled(model: nn.Module, wanted: bool | dict[str, Any]) -> Iterator[None]:
    """The module itself compiled, so that it stays the bare one; afterwards it is not."""
    if not wanted:
        yield
        return
    model.compile(**(wanted if isinstance(wanted, dict) else {}))
    try:
        yield
    finally:
        model._compiled_call_impl = None


__all__ = ["Callback", "Epoch", "FitResult", "Progress", "Run", "fit"]
