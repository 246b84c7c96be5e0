"""What a folder's training of texts began with: it goes on with the same, and with nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.cli.console import speaks

if TYPE_CHECKING:
    from sparring.cli.train_text import TextTrainSettings
    from sparring.data import LabelledTexts
    from sparring.text import TextClassifier

FILE = "training.json"
LANGUAGE = "language"  # the folder, within a training's, of the language model that comes first
FREE = {
    *("task", "out", "fresh", "save-every", "time-limit", "quiet", "device"),
    *("data", "text-column", "label-column", "encoding", "skip-bad", "unlabelled", "validation"),
}
"""Options that may differ when a training goes on; for the tables, what was read from them counts."""
ELSE = "choose another folder (--out), or start anew (--fresh)"
CURE = f"go on with the same, {ELSE}"


def began(
    settings: TextTrainSettings,
    classifier: TextClassifier,
    texts: LabelledTexts,
    held: LabelledTexts | None,
    others: Sequence[str],
) -> dict[str, Any]:
    """All that decides what is learned: options by name, and digests of texts, labels, classes and vocabulary."""
    options = {name: value for name, value in settings.document().items() if name not in FREE}
    options["model"] = Path(settings.model).expanduser().resolve().name  # its folder may have moved
    return {
        "options": options,
        "--data": _digest([texts.texts, texts.labels, texts.classes]),
        "--unlabelled": _digest(others) if others else None,
        "--validation": _digest([held.texts, held.labels]) if held is not None else settings.validation,
        "vocabulary": _digest(classifier.tokenizer.get_vocab()),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Folder:
    """A training's folder, and what `began` said of the training that it holds."""

    def __init__(self, path: Path, now: Mapping[str, Any]) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {path} is a file: expected a folder, which need not be there yet")
        self.path, self.now = path, json.loads(json.dumps(now))

    @contextmanager
    def entered(self, fresh: bool) -> Iterator[Folder]:
        """Keeps other processes out. ValueError, in one line, before anything is written, where another training is there."""
        from sparring.evaluation.files import locked, writing

        with ExitStack() as stack:
            if speaks():  # of many processes one
                with writing(self.path):
                    lock = locked(self.path / ".training-lock")
                if lock is not None:
                    stack.callback(lock.close)
            if not fresh:
                self._check()
            if speaks() and (fresh or not self._holds()):
                for state in self._states():  # first of all, so that none is taken for the new training's
                    state.unlink(missing_ok=True)
                self._write(False)
            yield self

    def written(self) -> bool:
        """Whether the classifier that came out of the whole training lies there."""
        known = self._read()
        return known is not None and bool(known["written"]) and (self.path / "text.json").is_file()

    def keep(self, classifier: TextClassifier, finished: bool) -> None:
        """Write the classifier, and that it is the last one."""
        classifier.save(self.path)
        if finished:
            self._write(True)

    def _states(self) -> tuple[Path, Path]:
        from sparring.training.checkpoint import STATE

        return self.path / STATE, self.path / LANGUAGE / STATE

    def _holds(self) -> bool:
        """Whether anything was learned that a training could go on from."""
        return any(state.exists() for state in self._states())

    def _write(self, written: bool) -> None:
        from sparring.training.checkpoint import write_json

        write_json(self.path / FILE, {"began": self.now, "written": written})

    def _read(self) -> dict[str, Any] | None:
        file = self.path / FILE
        if not file.exists():
            return None
        try:
            known = json.loads(file.read_text("utf-8"))
            return {"began": dict(known["began"]), "written": known["written"]}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} can't be read ({error}): {ELSE}") from None

    def _check(self) -> None:
        if not self._holds():
            return
        known = self._read()
        if known is None:
            raise ValueError(
                f"{self.path} holds a training, and no {FILE} that says which texts it learned from: {ELSE}"
            )
        earlier, options = known["began"], known["began"].get("options", {})
        for name, value in self.now["options"].items():
            if options.get(name) != value:
                raise ValueError(
                    f"{self.path} holds a training with {_typed(name, options.get(name))}, now {_typed(name, value)}: {CURE}"
                )
        others = {
            "--data": "on other texts, labels or classes than those of --data",
            "--unlabelled": "with other texts of --unlabelled",
            "--validation": "with other texts of --validation",
            "vocabulary": "with another tokenizer",
        }
        for name, said in others.items():
            if earlier.get(name) != self.now[name]:
                raise ValueError(f"{self.path} holds a training {said}: {CURE}")


def _typed(option: str, value: Any) -> str:
    """A setting as it stands on the command line."""
    if value is None or value == []:
        return f"--{option} left out"
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {' '.join(map(str, value)) if isinstance(value, list) else value}"
