"""The code of docs/keras.md runs from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pages

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="needs the [keras] extra")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's own
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run("keras.md")
    out = capsys.readouterr().out
    assert "had not caught up" in out
    assert "robust" in out
    assert (tmp_path / "robust.keras").is_file()
