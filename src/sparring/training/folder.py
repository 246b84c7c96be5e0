"""The folder of a training: what is written when, and how a run that was killed finds its place again."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sparring.evaluation.files import locked, writing
from sparring.training import checkpoint
from sparring.training.history import Board, Epoch, write_csv
from sparring.training.ledger import Tally
from sparring.training.run import Run
from sparring.training.settings import LATER, beside


class Folder:
    """`state.pt` (everything to go on from), `last.safetensors`, `best.safetensors`, `history.json`, `log.csv`; under bn="split"
    also `last_adversarial.safetensors` and `best_adversarial.safetensors`, with the BatchNorm statistics of that branch.

    Each file takes its place when it has been written whole. The state comes last: killed before it, the epoch is learned
    again, to the same weights, and the others are written again.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], loggers: Sequence[str]) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out={str(path)!r} is a file: expected a folder, which need not be there yet")
        self.path, self.identity, self.loggers = path, identity, loggers
        self._written: tuple[int, Epoch | None] = (-1, None)
        self._board: Board | None = None

    def lock(self) -> Any:
        """Held by the first process for as long as it trains here. ValueError where another does."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return locked(self.path / ".lock")

    def clear(self) -> None:
        """Take away what an earlier training has left."""
        names = (checkpoint.STATE, checkpoint.BEST, checkpoint.LAST, checkpoint.HISTORY, checkpoint.TABLE)
        for name in (*names, *checkpoint.ADVERSARIAL.values()):
            (self.path / name).unlink(missing_ok=True)
            for partial in self.path.glob(f".{name}.*.tmp"):
                partial.unlink(missing_ok=True)

    def resume(self, run: Run) -> bool:
        """Put the run where the folder's state left it; False where there is none. ValueError for one of other settings."""
        self.identity = {**self.identity, **beside(run)}
        path = self.path / checkpoint.STATE
        state = checkpoint.read_state(path)
        seen = run.crew.gather(state is not None)
        if len(set(seen)) > 1:
            raise ValueError(
                f"process {seen.index(False)} does not see {path}: give out=, a folder on a file system that all processes share"
            )
        if state is None:
            return False
        earlier = state["identity"]
        now = {name: value for name, value in self.identity.items() if name not in LATER or name in earlier}
        checkpoint.check_identity(path, earlier, now)
        if len(state["ranks"]) != run.crew.size:
            raise ValueError(
                f"{self.path} holds a training by {len(state['ranks'])} processes, now {run.crew.size}: go on with as many"
            )
        checkpoint.check_network(path, state["model"], run.model)
        run.model.load_state_dict(state["model"])
        for callback, kept in zip(run.callbacks, state["callbacks"], strict=True):
            if kept is not None:
                callback.load_state_dict(kept, run)  # type: ignore[attr-defined]
        for name, optimizer in run.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        run.rates.load_state_dict(state["rates"])
        if run.scaler is not None:
            run.scaler.load_state_dict(state["scaler"])
        mine = state["ranks"][run.crew.rank]
        run.strategy.load_state_dict(mine["strategy"])
        run.ledger.tally, run.counted = Tally(**mine["tally"]), type(run.strategy.passes)(**mine["counted"])
        run.epoch, run.position, run.seconds = state["epoch"], state["position"], state["seconds"]
        run.history = [Epoch(**row) for row in state["history"]]
        run.notes, run.good = state["notes"], state["good"]
        run.best = None if state["best"] is None else run.history[state["best"]]
        if run.best is not None:
            run.best_weights = load_file(self.path / checkpoint.BEST)
            if run.splits:
                run.best_adversarial = load_file(self.path / checkpoint.ADVERSARIAL[checkpoint.BEST])
        self._written = (run.epoch, run.best)
        checkpoint.restore_random(mine["random"])
        return True

    def keep(self, run: Run) -> None:
        """Write what is new. All processes call this at the same batch; the first one writes."""
        start = time.monotonic()
        ranks = run.crew.gather(
            {
                "random": checkpoint.random_state(),
                "strategy": run.strategy.state_dict(),
                "tally": asdict(run.ledger.tally),
                "counted": asdict(run.counted),
            }
        )
        if run.crew.rank == 0:
            self._write(run, ranks)
        run.limits.saved(time.monotonic() - start)

    def _write(self, run: Run, ranks: list[Any]) -> None:
        epochs, best = self._written
        self._written = (run.epoch, run.best)
        if run.best is not None and run.best != best:
            assert run.best_weights is not None
            checkpoint.write_weights(self.path / checkpoint.BEST, run.best_weights)
            if run.best_adversarial is not None:
                checkpoint.write_weights(self.path / checkpoint.ADVERSARIAL[checkpoint.BEST], run.best_adversarial)
        if run.epoch != epochs:
            checkpoint.write_weights(self.path / checkpoint.LAST, run.weights())
            if run.splits:
                checkpoint.write_weights(
                    self.path / checkpoint.ADVERSARIAL[checkpoint.LAST], run.weights("adversarial")
                )
            self._log(run)
        callbacks = [state() if (state := getattr(each, "state_dict", None)) else None for each in run.callbacks]
        checkpoint.write_state(
            self.path / checkpoint.STATE,
            {
                "identity": self.identity,
                "model": run.model.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()},
                "rates": run.rates.state_dict(),
                "scaler": None if run.scaler is None else run.scaler.state_dict(),
                "callbacks": callbacks,
                "ranks": ranks,
                "epoch": run.epoch,
                "position": run.position,
                "seconds": run.seconds,
                "history": [row.to_json() for row in run.history],
                "notes": run.notes,
                "good": run.good if run.callbacks else None,
                "best": None if run.best is None else run.history.index(run.best),
            },
        )

    def _log(self, run: Run) -> None:
        document = {
            "settings": dict(self.identity),
            "epochs": [row.to_json() for row in run.history],
            "best": None if run.best is None else run.best.epoch,
            "notes": copy.copy(run.notes),
        }
        checkpoint.write_json(self.path / checkpoint.HISTORY, document)
        if "csv" in self.loggers:
            write_csv(self.path / checkpoint.TABLE, run.history)
        if "tensorboard" in self.loggers and run.history:
            if self._board is None:
                self._board = Board(self.path / "tensorboard", len(run.history) - 1)
            self._board(run.history[-1])
