"""docs/text.md does what it says."""

from __future__ import annotations

import torch

from pages import run


def test_the_page_runs() -> None:
    names, blocks = run("text.md")
    assert blocks == 5
    assert names["strategy"].passes.forwards == 64
    assert names["result"].history[-1].validation_accuracy > 0.8
    assert torch.allclose(names["model"].logits(names["held"].texts).softmax(1).sum(1), torch.ones(100))
