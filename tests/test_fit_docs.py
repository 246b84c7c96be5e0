"""docs/training.md: its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pages

PAGE = (pages.DOCS / "training.md").read_text("utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, blocks = pages.run("training.md")
    assert blocks == 4
    assert names["result"].history[-1].validation_robust_accuracy > 0.3
    assert names["tuned"].best.validation_robust_accuracy > 0.35
    assert (tmp_path / "runs" / "fast" / "best.safetensors").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w.-]+\.md)\)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    assert (pages.DOCS / link).exists()
