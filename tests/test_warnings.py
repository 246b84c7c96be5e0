"""Each warning: the evidence that calls for it and the evidence that does not, and where it is shown."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import sparring as sp
from networks import inputs
from sparring.evaluation.records import DONE, STARTED, Records
from sparring.evaluation.remaining import remaining
from sparring.evaluation.warnings import clearly, judge
from sparring.report import render
from test_warnings_models import MODELS, Around, evaluated, net

ROOT = Path(__file__).parents[1]
CODES = {
    "zero-gradient", "nan-gradient", "probabilities", "low-clean-accuracy", "not-reproducible", "time-limit", "masking",
    "one-step-beats-many", "eps-no-effect", "restarts-find-more", "random-model", "loss-not-increasing", "step-size",
    "weak-attacks", "rounding", "batch-statistics", "one-class",
}  # fmt: skip


def records(standing: int, fallen: tuple[int, ...], passes: int = 100) -> Records:
    """Records of a finished run: so many stand after every attack, and each attack fooled so many."""
    kept = Records(len(fallen))
    attack = [-1] * standing + [i for i, count in enumerate(fallen) for _ in range(count)]
    for index, number in enumerate(attack):
        place = kept.add(index)
        row = kept.table[place]
        row["correct"], row["robust"], row["attack"], row["state"] = True, number < 0, number, DONE
        row["passes"][: len(fallen) if number < 0 else number + 1] = passes // 2
    return kept


def codes(kept: Records, **evidence: Any) -> set[str]:
    return {warning.code for warning in judge(kept, classes=10, **evidence)}


GRADIENTS, SCORES = {"access": "gradients"}, {"access": "scores"}
QUIET = {
    "samples": 24, "standing": 16, "combined": 0, "repeats": 0, "turned": 0, "company": 0, "one_step": 0, "ten_steps": 0,
    "small_steps": 0, "large_steps": 0, "further": 0, "one_step_only": 0, "ten_steps_only": 5, "climbs": 200, "rises": 198,
    "unbounded": 24, "unbounded_failed": 0, "rounded": 32, "rounded_away": 0,
}  # fmt: skip


def test_a_quiet_checkup_calls_for_nothing() -> None:
    assert codes(records(100, (100, 3, 0)), checkup=QUIET, attacks=[GRADIENTS] * 3) == set()


@pytest.mark.parametrize(
    ("left", "found", "masks"), [(300, 2, False), (425, 5, True), (5000, 5, False), (30, 3, True), (10, 2, False)]
)
def test_masking_is_statistical(left: int, found: int, masks: bool) -> None:
    ours = [GRADIENTS, SCORES]
    assert ("masking" in codes(records(left - found, (50, found)), attacks=ours)) == masks
    assert "masking" not in codes(records(left - found, (50, found)), attacks=[GRADIENTS, GRADIENTS])
    assert "masking" not in codes(records(left - found, (50, found)), attacks=[SCORES, GRADIENTS])
    assert "masking" not in codes(records(left - found, (50, found)), attacks=[{"access": None}, SCORES])
    # or in the pilot, of whose samples the others may know nothing
    plan = {"reached": [left + 9, left], "fooled": [9, found]}
    assert ("masking" in codes(records(100, (50, 0)), attacks=ours, plan=plan)) == masks
    # a search on a random model keeps what was luck
    assert "masking" not in codes(records(100, (50, 0)), attacks=ours, plan=plan | {"random": True})


def test_samples_too_far_from_failure_for_the_search_count_as_not_fooled() -> None:
    kept = records(290, (50, 4))
    kept.table["passes"][:280, 1] = 0  # ten of those that stand were shown to it
    assert "masking" not in codes(kept, attacks=[GRADIENTS, SCORES])


@pytest.mark.parametrize(
    ("code", "seen", "not_yet"),
    [
        ("random-model", {"repeats": 24, "turned": 2}, {"repeats": 6}),
        ("batch-statistics", {"company": 24}, {"company": 6}),
        ("one-step-beats-many", {"one_step": 4}, {"one_step": 2}),
        ("one-step-beats-many", {"one_step_only": 11}, {"one_step_only": 7}),
        ("step-size", {"large_steps": 5, "ten_steps": 1}, {"large_steps": 2}),
        ("step-size", {"small_steps": 4}, {"small_steps": 5, "ten_steps": 3}),
        ("weak-attacks", {"ten_steps": 6, "large_steps": 6}, {"ten_steps": 2}),
        ("loss-not-increasing", {"rises": 160}, {"rises": 180}),
        ("eps-no-effect", {"unbounded_failed": 9}, {"unbounded_failed": 2}),
        ("rounding", {"rounded_away": 9}, {"rounded_away": 4}),
    ],
)
def test_the_checkups_codes(code: str, seen: dict[str, int], not_yet: dict[str, int]) -> None:
    kept = records(100, (100, 3, 0))
    assert codes(kept, checkup=QUIET | seen) == {code}
    assert code not in codes(kept, checkup=QUIET | not_yet)


def test_a_random_model_explains_what_comparisons_show_and_expectation_answers_it() -> None:
    seen = QUIET | {"repeats": 24, "one_step": 9, "large_steps": 9, "rises": 100, "company": 24, "rounded_away": 20}
    kept = records(100, (100, 3, 0))
    assert codes(kept, checkup=seen) == {"random-model"}
    assert codes(kept, checkup=seen | {"combined": 1}) == set()


def finds(efforts: list[int], standing: int, full: int) -> Records:
    kept = records(standing, (len(efforts),), 2 * full)
    kept.table["passes"] = 0
    kept.table["passes"][:standing, 0, 0] = full
    kept.table["passes"][standing:, 0, 0] = efforts
    return kept


def test_failures_that_keep_coming() -> None:
    dry = finds([5] * 50 + [30] * 9 + [80] * 2, 200, 100)
    assert "restarts-find-more" not in codes(dry)
    thinning = finds([5] * 50 + [30] * 20 + [80] * 10, 200, 100)
    left = remaining(thinning)
    assert left is not None
    assert (left.late, left.before, left.effort) == (10, 20, 100)
    assert left.estimate == 5  # half of the last ten, as those were half of twenty
    assert left.low < 5 < left.high < 20
    assert "restarts-find-more" in codes(thinning)
    (steady,) = judge(finds([5] * 50 + [30] * 10 + [80] * 12, 200, 100), classes=10)
    assert steady.code == "restarts-find-more"
    assert "about 12 more" in steady.seen  # no more than last time
    assert remaining(records(0, (5,))) is None


def test_the_estimate_of_what_is_left_covers_the_truth() -> None:
    """Samples that fall at a rate of their own: the interval holds what twice the effort would find."""
    rng, covered, alarms = np.random.default_rng(1), 0, 0
    for _ in range(40):
        falls = rng.exponential(1 / rng.gamma(1.0, 0.1, 400))  # effort at which each would fall; rates differ widely
        kept = finds([max(1, int(t)) for t in falls if t <= 100], int((falls > 100).sum()), 100)
        left = remaining(kept)
        assert left is not None
        covered += left.low <= ((falls > 100) & (falls <= 200)).sum() <= left.high
        alarms += "restarts-find-more" in codes(kept)
    assert covered >= 32  # of 40, at 90%
    assert alarms == 40


def test_clearly() -> None:
    assert not clearly(0, 0, 0.01, 0)
    assert not clearly(2, 2, 0.01, 3)
    assert clearly(3, 3, 0.05, 3)


def test_low_clean_accuracy_and_time_limit() -> None:
    x, _ = inputs(60, (3, 4, 5), dtype=torch.float32)
    wrong = (net()(x).argmax(1) + 1) % 4
    wrong[:9] = net()(x[:9]).argmax(1)
    assert "low-clean-accuracy" in {
        w.code for w in sp.evaluate(net(), (x, wrong), sp.Linf(0.01), attacks="fgsm").warnings
    }
    kept = records(100, (5, 0, 0))
    assert codes(kept) == set()
    kept.table["state"][:4] = STARTED
    assert codes(kept) == {"time-limit"}
    kept = records(100, (5, 0, 0))
    kept.table["unconfirmed"][:3] = 1
    assert codes(kept) == {"not-reproducible"}


# --- where they are shown


def test_every_code_has_its_section_in_the_docs() -> None:
    page = (ROOT / "docs" / "warnings.md").read_text("utf-8")
    source = (Path(sp.__path__[0]) / "evaluation" / "warnings.py").read_text("utf-8")
    assert {line.strip(' ",\n') for line in source.splitlines() if line.strip(' ",\n') in CODES} == CODES
    assert {line[4:-1] for line in page.splitlines() if line.startswith("## `")} == CODES


def test_the_document_and_the_report_say_what_was_seen_why_it_matters_and_what_to_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = evaluated(Around(MODELS["random-model"]), out=tmp_path)
    warning = next(w for w in result.warnings if w.code == "random-model")
    assert warning.message == f"{warning.seen} {warning.why} {warning.todo}"
    assert "sp.expectation" in warning.todo
    html = render(result.document, result.picture)
    assert all(part in html for part in ("random-model", warning.why, "What to do"))
    loaded = sp.EvaluationResult.load(tmp_path)
    assert loaded.warnings == result.warnings


@pytest.fixture
def published() -> Iterator[ModuleType]:
    """benchmarks/networks.py; `networks` is the name of a test helper too, so it is put aside for as long."""
    own = ("architectures", "hard_networks", "networks", "recipes")
    aside = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("networks")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(aside)


@pytest.mark.skipif("SPARRING_DATA" not in os.environ, reason="needs the published networks of $SPARRING_DATA")
def test_a_published_robust_network_calls_for_none(published: ModuleType) -> None:
    network = published.NETWORKS["cifar10-resnet2b"]
    result = sp.evaluate(network.load(), network.test_data(24), sp.Linf(network.eps))
    assert result.warnings == []
