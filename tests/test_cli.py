"""What every command has in common: settings, --config, --json, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparring.cli import main
from sparring.cli.app import BAD_INPUT, COMMANDS, DONE


def run_process(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sparring", *arguments], capture_output=True, text=True, **more)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was complained: exactly one line on stderr, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_torch_and_names_the_exit_codes(command: str) -> None:
    code = (
        "import sys; from sparring.cli import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'yaml'} & set(sys.modules); assert not heavy, heavy"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True, check=True
    )
    assert "Exit codes: 0 done; 1" in shown.stdout
    assert "--config" in shown.stdout or not command


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == DONE
    panel = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    for line in panel:
        words = line.strip("│ ").split()
        alone = line.startswith("│ ") and words[:1] and words[0].startswith("--") and len(words) == 1
        assert not alone, f"{words} has no help"


def test_help_comes_at_once() -> None:
    # 0.3 s on an idle machine. Processor seconds, since others may be at work too, and twice as many, since they
    # share its cores; importing torch alone takes more.
    assert min(_processor_seconds("evaluate", "--help") for _ in range(3)) < 0.6


def _processor_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_process(*arguments, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_descent_gives_the_trace_to_the_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent", "--start", "6", "--json", "--out", str(tmp_path)]) == DONE
    captured = capsys.readouterr()
    assert "batch=14 x=0.3298534883 y=2.1088033238" in captured.err
    assert "batch=20 x=0.0864691128 y=2.0074769075" in captured.err
    assert json.loads(captured.out)["traces"][0]["x"][-1] == pytest.approx(0.0864691128)
    assert (tmp_path / "descent.png").stat().st_size > 10_000


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["descent", "--start", "13/2", "--lr", "0.05", "--optimizer-args", "momentum=0.9", "nesterov=true"]
    assert main([*typed, "--print-config"]) == DONE
    first = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(first)
    assert main(["descent", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == DONE
    assert capsys.readouterr().out == first
    settings = yaml.safe_load(first)
    assert settings["start"] == "13/2"
    assert settings["optimizer-args"] == ["momentum=0.9", "nesterov=true"]


def test_options_win_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("lr: 0.2\nstart: 3\noptimizer_args: {momentum: 0.5, nesterov: true}\n")
    assert main(["descent", "--config", str(tmp_path / "c.yaml"), "--lr", "0.3", "--print-config"]) == DONE
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["lr"], settings["start"]) == ("0.3", "3")
    assert settings["optimizer-args"] == ["momentum=0.5", "nesterov=true"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("optimiser: Adam", "Did you mean 'optimizer'?"),
        ("qqq: 1", "Known: "),
        ("lr: [", "line 1"),
        ("- lr", "found a list"),
        ("lr: fast", "'fast' is not a number"),
        ("start: {a: {b: 1}}", "start: expected"),
        ("optimizer-args: [[1]]", "optimizer-args: expected"),
    ],
)
def test_a_wrong_config_gets_one_line(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert main(["descent", "--config", str(tmp_path / "c.yaml")]) == BAD_INPUT
    line = one_line(capsys)
    assert said in line
    assert "c.yaml" in line or "--lr" in line
    assert "*" not in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["desent"], 'Did you mean "descent"?'),
        (["descent", "--strat", "6"], "Did you mean --start?"),
        (["descent", "--lr", "1/0"], "'1/0' is not a number"),
        (["descent", "--lr", "nan"], "'nan' is not a number"),
        (["descent", "--lr"], "requires an argument"),
        (["descent", "--seed", "x"], "--seed"),
        (["descent", "--optimizer", "Adma"], "adam"),
        (["descent", "--optimizer-args", "momentum"], "expected key=value"),
        (["descent", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["descent", "--config", "."], "cannot be read"),
        (["evaluate", "--modle", "small-cnn", "--data", "mnist"], "Unknown option: --modle. Did you mean '--model'?"),
        (["evaluate", "--model", "small-cnn", "--dta=mnist"], "Unknown option: --dta. Did you mean '--data'?"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == BAD_INPUT
    assert said in one_line(capsys)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent", "--optimizer", "Adma", "--debug"]) == BAD_INPUT
    assert "Traceback" in capsys.readouterr().err


def test_the_package_runs_as_a_module() -> None:
    assert run_process("--version").stdout.strip()[0].isdigit()
    assert run_process("desent").returncode == BAD_INPUT
