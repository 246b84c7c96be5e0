"""What the terminal shows: nothing is cut, numbers are whole where they count."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sparring.cli import console, main

ROWS: list[dict[str, Any]] = [
    {"": "clean accuracy", "A": "87.1%", "A − B, points": "+3.7", "95% interval": "+2.1 to +5.5", "only A": 56, "p": 2.2e-05},
    {"": "robust accuracy, at most", "A": "60.5%", "A − B, points": "-13.9", "95% interval": "-16.3 to -11.7", "only A": 9,
     "p": None},
]  # fmt: skip


def drawn(rows: list[dict[str, Any]], width: int, terminal: bool = True) -> str:
    file = io.StringIO()
    fake = Console(file=file, force_terminal=terminal, width=width, no_color=True, highlight=False, _environ={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "out", lambda: fake)
        console.table(rows, title="Two runs")
    return file.getvalue()


@given(st.integers(20, 130))
def test_no_cell_is_cut_however_narrow_the_terminal(width: int) -> None:
    shown = drawn(ROWS, width)
    assert "…" not in shown
    least = 30  # from where on the longest line, a name and what it is called, fits
    if width >= least:
        lines = shown.splitlines()
        for cell in ("robust accuracy, at most", "60.5%", "-13.9", "-16.3 to -11.7", "9", "2.2e-05", "–"):
            assert any(cell in line for line in lines), (width, cell)


def test_headers_are_folded_first_and_rows_become_lists_then() -> None:
    assert "A − B, points" in drawn(ROWS, 100)
    folded = drawn(ROWS, 82)
    assert "A − B, points" not in folded
    assert "A − B," in folded
    assert folded.count("60.5%") == 1
    lists = drawn(ROWS, 60)
    assert "  95% interval" in lists
    assert lists.index("clean accuracy") < lists.index("+2.1 to +5.5") < lists.index("robust accuracy")
    assert drawn(ROWS, 60, terminal=False) == drawn(ROWS, 200, terminal=False), "a pipe has no edge"


@pytest.mark.parametrize(
    ("option", "value"), [("--m", "2.5"), ("--epochs", "1.9"), ("--labels", "0.5"), ("--max-samples", "10.2")]
)
def test_what_is_counted_takes_no_fractions(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate"] if option == "--max-samples" else ["train", "--strategy", "yopo"]
    assert main([*command, "--model", "mlp", "--data", "fashion-mnist:bundled", option, value]) == 2
    assert capsys.readouterr().err == f"sparring {command[0]}: {option} {value}: expected a whole number\n"


def test_a_subset_in_place_of_the_data_that_were_asked_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparring.cli.evaluate import EvaluateSettings, open_data
    from sparring.data import opening

    monkeypatch.setattr(opening, "candidates", lambda name: [])
    assert len(open_data(EvaluateSettings(model="mlp", data="fashion-mnist"))) == 2000
    said = "fashion-mnist was not found: these are the 2,000 images that come with sparring"
    assert capsys.readouterr().err.split() == said.split()
    open_data(EvaluateSettings(model="mlp", data="fashion-mnist:bundled"))
    assert not capsys.readouterr().err


def test_fractions_in_a_file_of_settings_are_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.yaml").write_text("epochs: 1.5\n")
    assert main(["train", "--config", str(tmp_path / "train.yaml"), "--model", "mlp"]) == 2
    assert "epochs 1.5: expected a whole number" in capsys.readouterr().err
    assert (
        main(["train", "--epochs", "2.0", "--model", "mlp", "--data", "x", "--strategy", "pgd", "--print-config"]) == 0
    )
    assert "\nepochs: 2\n" in capsys.readouterr().out
