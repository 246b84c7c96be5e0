"""The classic tutorial, as docs/seeing.md has it, runs as it stands, and its figures are in TensorBoard's event file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pages

pytest.importorskip("lightning.pytorch")


@pytest.mark.filterwarnings("ignore")  # Lightning's own, and those that the page is about
def test_the_page_runs_and_its_figures_are_in_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    pages.run("seeing.md")
    events = EventAccumulator(str(tmp_path / "runs" / "seeing" / "version_0"), size_guidance={"images": 0}).Reload()
    assert "confused_logits/train" in events.Tags()["images"]
    for event in events.Images("confused_logits/train"):
        assert event.step % 20 == 0 or event.step % 141 % 20 == 0  # 141 batches an epoch
        with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
            assert picture.format == "PNG"
            assert picture.size == (event.width, event.height)
            assert np.asarray(picture.convert("RGB")).std() > 20
    (gallery,) = tmp_path.glob("runs/others/version_0/pictures/adversarial_gallery/val-*.png")
    with Image.open(gallery) as picture:
        assert picture.width > picture.height
    printed = capsys.readouterr().out
    assert "of 10 logits are alive" in printed
    assert "val_robust_accuracy" in printed
    assert "val_input_gradient_l1" in printed
