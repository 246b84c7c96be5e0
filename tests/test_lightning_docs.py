"""The code of docs/lightning.md runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

import pages

pytest.importorskip("lightning.pytorch")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run("lightning.md")
    assert "val_robust_accuracy" in capsys.readouterr().out
    assert list((tmp_path / "runs" / "lightning").glob("*.ckpt"))
