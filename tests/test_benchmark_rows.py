"""The tables of trainings, of the GTSRB case, of few labels and of transformers in BENCHMARKS.md are those of the kept rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def printed(script: str, rows: Path, *more: str) -> list[str]:
    """The lines of the tables that the script makes of these rows, without those of headers."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "table", "--out", str(rows), *more]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| task", "| strategy", "| method", "| inputs"))]


TABLES = [
    ("vat.py", "vat.jsonl", [], 2),
    ("text.py", "text.jsonl", [], 10),
    ("training.py", "training.jsonl", ["--data", "fashion-mnist"], 30),
    ("training.py", "training.jsonl", ["--data", "cifar10-reduced"], 30),
    ("training.py", "training.jsonl", ["--data", "mnist"], 25),
    ("gtsrb_batchnorm.py", "gtsrb.jsonl", [], 15),
]


@pytest.mark.parametrize(("script", "rows", "more", "least"), TABLES)
def test_the_tables_are_those_of_the_rows(script: str, rows: str, more: list[str], least: int) -> None:
    lines = printed(script, RESULTS / rows, *more)
    page = (ROOT / "BENCHMARKS.md").read_text("utf-8")
    assert len(lines) >= least
    assert [line for line in lines if line not in page] == []


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_rows_are_whole_and_say_where_they_come_from(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    count, latest = 0, None
    for row in rows:
        kind = row.get("kind", "final")
        latest = row if kind == "machine" else latest
        if kind in ("final", "run", "verdict", "pace"):
            count += 1
            machine = row.get("machine", latest or row)
            assert machine["torch"]
            assert machine["cpu"]
            assert isinstance(row["seed"], int)
    assert count
    assert '"/' not in file.read_text("utf-8"), "no path of a machine"
