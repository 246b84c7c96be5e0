"""Paired comparison: exact p-values, score intervals against published examples, and what can't be compared."""

from __future__ import annotations

import json
import math
import os
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparring as sp
from networks import inputs, mlp
from sparring.cli import main
from sparring.evaluation.comparison import Paired
from sparring.evaluation.statistics import Z95
from sparring.report.words import percent

SHAPE = (3, 4, 5)
THREAT = sp.Linf(0.02)
N = 80


def quartic(paired: Paired) -> tuple[float, float]:
    """Tango's interval without iteration (Yang, Sun and Hardin 2012): the outermost roots of a polynomial of degree four."""
    n, b, c, g = paired.total, paired.only_a, paired.only_b, Z95**2
    d = b - c
    roots = np.roots(
        [
            n**2 * (n / g + 1) ** 2,
            -n * d * (n / g + 1) * (4 * n / g + 1),
            2 * n * d**2 * (3 * n / g + 2) / g - n**2 * ((b + c) / g + 1),
            n * d * (2 * (b + c) / g + 1) - d**3 * (4 * n / g + 1) / g,
            d**2 * (d**2 / g - (b + c)) / g,
        ]
    )
    real = roots[abs(roots.imag) < 1e-6].real
    return float(real.min()), float(real.max())


@pytest.mark.parametrize(
    ("table", "interval", "p_value"),
    [
        # airway reactivity before and after a transplantation (Bentur et al. 2009; Fagerland et al. 2014)
        ((1, 1, 7, 12), (-0.517, -0.026), 0.0703),
        # two media for a culture (Armitage and Berry 1994, p. 127)
        ((20, 12, 2, 16), (0.061, 0.345), 0.0129),
        # approval of the prime minister, in two surveys (Agresti 1990)
        ((794, 150, 86, 570), (0.0214, 0.0590), 3.716e-05),
    ],
)
def test_tables_from_publications(table: Any, interval: tuple[float, float], p_value: float) -> None:
    """The p-values and the first interval are those in print; every interval is also that of the formula without iteration."""
    paired = Paired(*table)
    assert paired.interval == pytest.approx(interval, abs=6e-4)
    assert paired.interval == pytest.approx(quartic(paired), abs=1e-6)
    assert paired.p_value == pytest.approx(p_value, rel=5e-3)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda table: sum(table) > 0))
def test_intervals_and_p_values(table: tuple[int, int, int, int]) -> None:
    paired = Paired(*table)
    low, high = paired.interval
    assert -1 <= low <= paired.difference + 1e-9
    assert paired.difference - 1e-9 <= high <= 1
    if paired.only_a and paired.only_b:
        assert (low, high) == pytest.approx(quartic(paired), abs=1e-5)
    turned = Paired(paired.both, paired.only_b, paired.only_a, paired.neither)
    assert turned.interval == pytest.approx((-high, -low), abs=1e-9)
    assert turned.p_value == paired.p_value
    assert paired.a.count - paired.b.count == paired.only_a - paired.only_b
    # the binomial, term by term
    discordant = paired.only_a + paired.only_b
    tail = [math.comb(discordant, k) for k in range(discordant + 1) if k <= min(paired.only_a, paired.only_b)]
    assert paired.p_value == pytest.approx(min(1.0, 2 * sum(tail) / 2**discordant), rel=1e-12)


def test_the_exact_test_keeps_its_level() -> None:
    """Over all outcomes of 12 fair discordant pairs, p ≤ 0.05 comes with a probability of at most 0.05."""
    chance = sum(math.comb(12, k) / 2**12 for k in range(13) if Paired(10, k, 12 - k, 10).p_value <= 0.05)
    assert 0 < chance <= 0.05


def test_the_interval_covers() -> None:
    """The exact probability that 95% intervals of 24 pairs hold the true difference, over several truths."""
    for only_a, only_b in ((0.3, 0.1), (0.2, 0.2), (0.5, 0.2), (0.1, 0.05)):
        total = 24
        covered = 0.0
        for b, c in product(range(total + 1), repeat=2):
            if b + c <= total:
                ways = math.comb(total, b) * math.comb(total - b, c)
                chance = ways * only_a**b * only_b**c * (1 - only_a - only_b) ** (total - b - c)
                if chance > 1e-7:
                    low, high = Paired(total - b - c, b, c, 0).interval
                    covered += chance * (low <= only_a - only_b <= high)
        assert 0.93 < covered < 0.99


def test_huge_counts_do_not_overflow() -> None:
    paired = Paired(10_000, 6_000, 2_000, 10_000)
    assert 0 <= paired.p_value < 1e-300
    assert Paired(0, 20_000, 20_000, 0).p_value == 1.0


def evaluated(
    out: Path | None, seed: int = 0, data: Any = None, threat: sp.Threat = THREAT, **settings: Any
) -> sp.EvaluationResult:
    model = mlp(SHAPE, seed=seed)
    x, _ = inputs(N, SHAPE)
    y = mlp(SHAPE)(x).argmax(1)
    given = {"attacks": [sp.PGD(threat, steps=8)], "out": out, "checkup": False} | settings
    return sp.evaluate(model, data or (x, y), threat, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models, and one under a weaker attack."""
    place = tmp_path_factory.mktemp("runs")
    evaluated(place / "a")
    evaluated(place / "b", seed=1)
    evaluated(place / "weak", attacks=[sp.FGSM(THREAT)])
    return {name: place / name for name in ("a", "b", "weak")}


def test_samples_are_paired(runs: dict[str, Path]) -> None:
    first, second = sp.load_result(runs["a"]), sp.load_result(runs["b"])
    found = sp.compare(runs["a"], second)
    for paired, one, other in (
        (found.clean, first.correct, second.correct),
        (found.robust, first.robust, second.robust),
    ):
        assert paired.both == int((one & other).sum())
        assert paired.only_a == int((one & ~other).sum())
        assert paired.only_b == int((~one & other).sum())
        assert paired.total == N
    assert found.clean.p_value < 1e-6  # the labels are the first model's
    assert found.robust.a == first.robust_accuracy
    assert found.robust.b == second.robust_accuracy
    rows = {row["index"]: row for row in found.discordant}
    assert sorted(rows) == torch.nonzero(first.robust != second.robust).flatten().tolist()
    samples = {row["index"]: row for row in second.samples()}
    for index, row in rows.items():
        assert row["robust_in"] == ("a" if bool(first.robust[index]) else "b")
        if row["robust_in"] == "a":
            clean = samples[index]["correct"]
            assert row["attack"] == ("PGD" if clean else None)
            assert row["prediction"] == samples[index]["prediction" if clean else "clean_prediction"]
            assert row["prediction"] != row["label"]
    assert json.loads(json.dumps(found.to_dict()))["robust_accuracy"]["only_a"] == found.robust.only_a


def test_two_attacks_on_one_model(runs: dict[str, Path]) -> None:
    found = sp.compare(runs["weak"], runs["a"])
    assert found.clean.difference == 0
    assert found.clean.p_value == 1
    assert found.robust.difference >= 0
    same = sp.compare(runs["a"], runs["a"])
    assert same.discordant == []
    low, high = same.robust.interval
    assert low == pytest.approx(-high)


def test_what_can_not_be_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    x, _ = inputs(N, SHAPE)
    y = mlp(SHAPE)(x).argmax(1)
    changed = x.clone()
    changed[7] = changed[7].flip(0)
    evaluated(tmp_path / "changed", data=(changed, y))
    evaluated(tmp_path / "few", max_samples=20)
    evaluated(tmp_path / "eps", threat=sp.Linf(0.03))
    evaluated(tmp_path / "stopped", time_limit=1e-9)
    for name, line in (
        ("changed", r"the data differ in 1 of 80 samples \(first: sample 7\)"),
        ("few", r"hold 80 and 20 samples, 60 of them in one only"),
        ("eps", r"different threats \(eps 0.02 and 0.03\)"),
        ("stopped", r"was ended by a time limit"),
        ("nowhere", r"holds no result.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
            sp.compare(runs["a"], tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_command(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs["a"]), str(runs["b"]), "--most", "3"]) == 0
    out = capsys.readouterr().out
    found = sp.compare(runs["a"], runs["b"])
    assert f"A is more robust, by {100 * found.robust.difference:.1f} points" in out
    assert f"3 of the {len(found.discordant)} samples on which robustness differs" in out
    assert main(["compare", str(runs["a"]), str(runs["a"])]) == 0
    assert "No difference in robustness is shown: on 0 of 80 samples the two differ.\n" in capsys.readouterr().out
    assert f"on {found.robust.total} samples" in repr(found)
    assert "{" not in repr(found)
    assert main(["compare", str(runs["a"]), str(runs["b"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.to_dict()
    assert main(["compare", str(runs["a"]), "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("sparring compare: nowhere holds no result.json")


def test_the_page_shows_both_side_by_side(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deep" / "both & more.html"
    assert main(["compare", str(runs["a"]), str(runs["b"]), "--page", str(page)]) == 0
    assert f"Side by side: {page}" in capsys.readouterr().out
    html, found = page.read_text("utf-8"), sp.compare(runs["a"], runs["b"])
    for number, name in enumerate("ab"):
        document = sp.load_result(runs[name]).document
        assert f">{percent(document['clean_accuracy']['value'])}</p>" in html
        assert f"at most</span>{percent(document['robust_accuracy']['value'])}</p>" in html
        link = os.path.relpath(runs[name] / "report.html", page.parent)
        assert f'href="{link}"' in html, "opens from where the page lies"
        assert html.count(found.names[number]) >= 4
    assert f"{100 * found.robust.difference:+.1f}<" in html
    assert f"On {len(found.discordant)} images they differ" in html
    assert html.count('<article class="card">') == 6, "three failures of each"
    assert html.count('<svg class="chart') == 2, "wide and narrow"
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "<script" not in html
    for target in re.findall(r'(?:href|src)="([^"#]+)"', html):
        assert target.startswith("data:image/png;base64,") or target.endswith("report.html")
    found.save(page, names=("<b>one</b>", "two"))
    html = page.read_text("utf-8")
    assert "<b>one" not in html
    assert "&lt;b&gt;one&lt;/b&gt;" in html
    alone = sp.compare(sp.load_result(runs["a"]), evaluated(None, seed=1))
    alone.save(page)
    assert page.read_text("utf-8").count("Its own report") == 1, "a result that lies nowhere has none"
