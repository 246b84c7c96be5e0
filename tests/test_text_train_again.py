"""``sparring train --task text`` in a folder that holds a training already: gone on with, or refused, never mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparring as sp
from sparring.cli.app import main
from sparring.text import TextClassifier

FILMS = [("a good film", "pos"), ("a bad film", "neg"), ("good, good", "pos"), ("what a bad day", "neg")] * 10
DISHES = [("a fine soup", "pos"), ("a poor soup", "neg"), ("fine, fine", "pos"), ("what a poor meal", "neg")] * 10
"""Equally many texts of equally many words: only the words differ."""
TURNED = [(text, "neg" if label == "pos" else "pos") for text, label in FILMS]
RENAMED = [(text, {"pos": "up", "neg": "down"}[label]) for text, label in FILMS]


def table(path: Path, rows: list[tuple[str, str]] = FILMS) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows), "utf-8")
    return path


def run(path: Path, *more: str, epochs: int = 1) -> int:
    small = ("--model-args", "embedding=8", "hidden=8", "--batch-size", "8", "--quiet", "--lr", "0.05")
    strategy = () if "--strategy" in more else ("--strategy", "standard")
    return main(["train", "--task", "text", "--data", str(path), *small, "--epochs", str(epochs), *strategy, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("rows", [DISHES, TURNED, RENAMED])
@pytest.mark.parametrize("state", ["finished", "stopped", "pretrained"])
def test_another_table_of_the_same_name_does_not_touch_the_folder(
    home: Path, rows: list[tuple[str, str]], state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--pretrain", "1") if state == "pretrained" else ()
    assert run(table(home / "a" / "reviews.csv"), *more, *(("--time-limit", "1e-9") if state == "stopped" else ())) == 0
    folder = home / "sparring-train" / "lstm-reviews.csv-standard"
    if state == "pretrained":  # killed between the language model's end and the first checkpoint
        (folder / "state.pt").unlink()
    before = files(folder)
    capsys.readouterr()
    other = table(home / "b" / "reviews.csv", rows)
    assert run(other, *more) == 2
    told = capsys.readouterr().err
    assert "holds a training on other texts, labels or classes than those of --data" in told
    assert "choose another folder (--out), or start anew (--fresh)" in told
    assert "resume" not in told
    assert told.count("\n") == 1
    assert files(folder) == before
    assert run(other, *more, "--out", "elsewhere") == 0
    assert run(other, *more, "--fresh") == 0
    assert TextClassifier.load(folder).classes == sorted({label for _, label in rows})


def test_what_is_finished_is_not_written_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(home / "reviews.csv")
    assert run(path, "--out", "run") == 0
    before = {file: file.stat().st_mtime_ns for file in (home / "run").iterdir() if file.suffix}
    assert run(path, "--out", "run") == 0
    assert "nothing was learned again" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in (home / "run").iterdir() if file.suffix} == before


def test_a_classifier_that_was_not_yet_written_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last checkpoint and the classifier; one of an earlier training lies there."""
    path = table(home / "reviews.csv")
    assert run(path, "--out", "run") == 0
    with monkeypatch.context() as killed:
        killed.setattr(TextClassifier, "save", lambda self, folder: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(path, "--out", "run", "--fresh", epochs=3) == 130
    assert run(path, "--out", "run", epochs=3) == 0
    assert run(path, "--out", "whole", epochs=3) == 0
    assert (home / "run" / "model.safetensors").read_bytes() == (home / "whole" / "model.safetensors").read_bytes()


def test_a_table_that_was_moved_is_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(table(home / "a" / "reviews.csv"), "--out", "run", "--time-limit", "1e-9") == 0
    assert run(table(home / "b" / "films.csv"), "--out", "run") == 0
    assert "nothing was learned again" not in capsys.readouterr().err
    assert run(table(home / "c" / "more.csv"), "--out", "run") == 0
    assert "nothing was learned again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ((), ("--pretrain", "1"), "holds a training with --pretrain 0, now --pretrain 1:"),
        (("--pretrain", "1"), (), "holds a training with --pretrain 1, now --pretrain 0:"),
        ((), ("--vocabulary", "5"), "holds a training with --vocabulary 20000, now --vocabulary 5:"),
        ((), ("--max-length", "5"), "holds a training with --max-length left out, now --max-length 5:"),
        ((), ("--strategy", "fgm"), "holds a training with --strategy standard, now --strategy fgm:"),
        ((), ("--model-args", "dropout=0.9"), "holds a training with --model-args embedding=8 hidden=8, now"),
        ((), ("--validation", "b/reviews.csv"), "holds a training with other texts of --validation"),
        (
            ("--pretrain", "1"),
            ("--pretrain", "1", "--unlabelled", "b/reviews.csv"),
            "holds a training with other texts of --unlabelled",
        ),
    ],
)
def test_other_settings_are_told_as_they_are_typed(
    home: Path, first: tuple[str, ...], then: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(home / "reviews.csv")
    table(home / "b" / "reviews.csv", DISHES)
    assert run(path, "--out", "run", *first) == 0
    before = files(home / "run")
    capsys.readouterr()
    assert run(path, "--out", "run", *then) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "go on with the same, choose another folder (--out), or start anew (--fresh)" in told
    assert told.splitlines()[-1].startswith("sparring train: ")
    assert files(home / "run") == before


def test_a_training_of_unknown_texts_is_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an earlier version, or of `fit`: nothing there says what it learned from."""
    path = table(home / "reviews.csv")
    assert run(path, "--out", "run") == 0
    (home / "run" / "training.json").write_text("{", "utf-8")
    capsys.readouterr()
    assert run(path, "--out", "run") == 2
    assert "training.json can't be read" in capsys.readouterr().err
    (home / "run" / "training.json").unlink()
    assert run(path, "--out", "run") == 2
    told = capsys.readouterr().err
    assert "run holds a training, and no training.json that says which texts it learned from" in told
    assert "(--fresh)" in told
    assert run(path, "--out", "run", "--fresh") == 0


def test_two_at_once_keep_out_of_each_others_way(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before the first checkpoint: what the folder says it was trained on stays true."""
    import subprocess
    import sys

    hold = "from pathlib import Path; from sparring.evaluation.files import locked; "
    hold += "f = locked(Path('run/.training-lock')); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert run(table(home / "reviews.csv"), "--out", "run", "--fresh") == 2
        other.communicate(b"\n")
    assert "another process is at work in run" in capsys.readouterr().err
    assert not (home / "run" / "training.json").exists()


def test_what_cannot_be_trained_takes_nothing_away(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(home / "reviews.csv")
    assert run(path, "--out", "new", "--weight-decay", "-1") == 2
    assert not (home / "new").exists()
    assert run(path, "--out", "run") == 0
    before = files(home / "run")
    assert run(path, "--out", "run", "--fresh", "--weight-decay", "-1") == 2
    assert "weight_decay=-1.0: expected" in capsys.readouterr().err
    assert files(home / "run") == before


def test_stopped_before_anything_was_shown_is_not_finished(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(table(home / "reviews.csv"), "--out", "run", "--validation", "none", "--time-limit", "1e-9") == 0
    told = capsys.readouterr()
    assert "nothing was learned again" not in told.err
    assert "Time ran out" in told.out


# fit


def test_fit_does_not_go_on_with_other_labels_or_other_tokens(tmp_path: Path) -> None:
    """As many samples, as many weights: nothing else would tell them apart. Floats may be rounded elsewhere, and don't count."""
    x, y = torch.randn(16, 5), torch.arange(16) % 2
    tokens = torch.arange(3, 19)[:, None]

    def embedded() -> nn.Module:
        return nn.Sequential(nn.EmbeddingBag(20, 3), nn.Linear(3, 2))

    def train(model: nn.Module, data: Any, epochs: int = 1) -> Any:
        out = tmp_path / type(model).__name__
        return sp.fit(model, data, sp.Standard(), epochs=epochs, batch_size=8, validation=False, out=out)

    train(nn.Linear(5, 2), (x, y))
    train(nn.Linear(5, 2), (x + 1e-6, y))
    with pytest.raises(
        ValueError, match=r"holds a training with data='16 samples, sha256 \w{12}', now '16 samples, sha256"
    ):
        train(nn.Linear(5, 2), (x, 1 - y))
    train(embedded(), (tokens, y))
    with pytest.raises(ValueError, match="holds a training with data="):
        train(embedded(), (tokens.flip(0), y))


def test_fit_goes_on_with_what_an_earlier_version_kept(tmp_path: Path) -> None:
    x, y = torch.randn(16, 5), torch.arange(16) % 2
    given: dict[str, Any] = {"epochs": 1, "batch_size": 8, "validation": False, "out": tmp_path}
    sp.fit(nn.Linear(5, 2), (x, y), sp.Standard(), **given)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["identity"]["data"]
    torch.save(state, tmp_path / "state.pt")
    assert sp.fit(nn.Linear(5, 2), (x, y), sp.Standard(), **given).finished
