"""evaluate, verify, attack and demo, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparring.cli import main
from sparring.cli.app import BAD_INPUT, DONE, FAILED, STOPPED

NETS = """
import os
import torch
from torch import nn

class Net(nn.Sequential):
    looks = 0
    def forward(self, x):
        Net.looks += 1
        if Net.looks > int(os.environ.get("STOP_AFTER", 10**9)):
            raise KeyboardInterrupt
        return super().forward(x)

def make(seed=0):
    layer = nn.Linear(36, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 36, generator=torch.Generator().manual_seed(seed)))
        layer.bias.zero_()
    return Net(nn.Flatten(), layer)

class Step(nn.Module):
    def forward(self, x):
        return (x * 3).round()  # rounds a gradient away

def step(seed=0):
    return nn.Sequential(Step(), make(seed))

def photo():
    layer = nn.Linear(192, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 192, generator=torch.Generator().manual_seed(0)) * 5)
    return nn.Sequential(nn.Flatten(), layer)

def noisy(seed=0):
    print("a factory that prints")
    return make(seed)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network in nets.py and data.npz, which it classifies without a mistake but for one sample in ten."""
    (tmp_path / "nets.py").write_text(NETS)
    x = np.random.default_rng(0).integers(0, 256, (120, 1, 6, 6), dtype=np.uint8)
    weight = torch.randn(3, 36, generator=torch.Generator().manual_seed(0))
    y = (torch.tensor(x).flatten(1) / 255.0 @ weight.T).argmax(1)
    y[::10] = (y[::10] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, y=y.numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*more: str, data: str = "data.npz", attacks: str = "pgd") -> int:
    typed = ["--model", "nets.py:make", "--data", data, "--eps", "4/255", "--attacks", attacks]
    return main(["evaluate", *typed, *more])


def test_evaluate_tells_writes_and_is_found_true(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--out", "run") == DONE
    captured = capsys.readouterr()
    out = captured.out
    document = json.loads((place / "run" / "result.json").read_text())
    assert document["clean_accuracy"]["count"] == 108
    robust = document["robust_accuracy"]["value"]
    assert 0 < robust < 0.9
    assert "90.0%" in out
    assert f"At most {robust:.1%} of 120 samples withstand Linf changes up to 4/255: an upper bound" in out
    assert "run/report.html" in out
    assert (place / "run" / "report.html").stat().st_size > 10_000
    assert captured.err.startswith("Cost on cpu, 120 samples: ")
    assert "\x1b" not in out + captured.err  # plain lines where there is no terminal
    assert main(["verify", "run"]) == DONE
    assert "The result says the truth" in capsys.readouterr().out


def test_verify_catches_a_changed_result(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--out", "run") == DONE
    path = place / "run" / "result.json"
    document = json.loads(path.read_text())
    document["robust_accuracy"] = document["clean_accuracy"]
    path.write_text(json.dumps(document))
    capsys.readouterr()
    assert main(["verify", "run", "--json"]) == FAILED
    captured = capsys.readouterr()
    assert not json.loads(captured.out)["ok"]
    assert "robust_accuracy claims 0.9 (108 of 120), the samples' rows say" in captured.err


def test_verify_catches_another_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--out", "run") == DONE
    assert main(["verify", "run", "--model", "nets.py:make", "--model-args", "seed=1"]) == FAILED
    assert "weights are not those of the run" in capsys.readouterr().out
    assert main(["verify", "nowhere"]) == BAD_INPUT


def test_fail_under_decides_the_exit_code(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--out", "run", "--fail-under", "1/100") == DONE
    assert evaluate("--out", "run", "--fail-under", "0.95") == FAILED
    captured = capsys.readouterr()
    assert "below --fail-under 95.0%" in captured.out
    assert "already holds this evaluation" in captured.err


def test_json_is_the_result_document_even_when_the_model_prints(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--model", "nets.py:noisy", "--data", "data.npz", "--attacks", "fgsm", "--out", "run"]
    assert main([*arguments, "--json"]) == DONE
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["threat"]["eps_typed"] == "8/255"
    assert document["folder"] == "run"
    assert document["model"]["spec"] == {"model": "nets.py:noisy"}
    assert "a factory that prints" in captured.err


def test_a_stopped_evaluation_goes_on_and_ends_the_same(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate("--out", "whole", "--batch-size", "16") == DONE
    monkeypatch.setenv("STOP_AFTER", "200")
    capsys.readouterr()
    assert evaluate("--out", "run", "--batch-size", "16") == STOPPED
    said = capsys.readouterr().err.splitlines()[-1]
    assert "of 120 samples kept in run; the same command goes on from there" in said
    monkeypatch.delenv("STOP_AFTER")
    done = len((place / "run" / ".parts" / "journal.jsonl").read_text().splitlines())
    assert 0 < done < 120
    assert evaluate("--out", "run", "--batch-size", "16") == DONE
    left = f"Cost on cpu, the {120 - done} samples that an earlier start left ({done} are done): "
    assert capsys.readouterr().err.startswith(left)
    one, other = (
        [json.loads(line) for line in (place / name / "samples.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    )
    assert [row["robust"] for row in one] == [row["robust"] for row in other]


def test_l0_has_no_default_eps_and_with_one_it_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["evaluate", "--model", "nets.py:make", "--data", "data.npz", "--norm", "l0", "--attacks", "fmn"]
    assert main(typed) == BAD_INPUT
    assert "--norm l0 has no default eps" in capsys.readouterr().err
    assert main([*typed[:-2], "--eps", "20"]) == BAD_INPUT
    assert "as in --norm l0 --eps 20 --attacks fmn" in capsys.readouterr().err
    assert main([*typed, "--eps", "20", "--out", "run"]) == DONE
    assert "withstand L0 changes up to 20" in capsys.readouterr().out


def test_stages_of_one_name_are_told_apart_and_a_curve_by_misleading_gradients_is_called_loose(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["--model", "nets.py:step", "--data", "data.npz", "--eps", "0.3", "--out", "run"]
    assert main(["evaluate", *typed]) == DONE
    out = capsys.readouterr().out
    document = json.loads((place / "run" / "result.json").read_text())
    assert "zero-gradient" in {warning["code"] for warning in document["warnings"]}
    assert "Accuracy against eps: below this run's eps the curve is a loose upper bound" in out
    named = [line.split("  ")[0].strip() for line in out.splitlines() if "MarginAscent" in line]
    assert len(named) > 1
    assert len(set(named)) == len(named)
    assert named[0] == "1. MarginAscent, 10 steps, rival 1, logit-difference"
    assert evaluate("--out", "plain") == DONE
    assert "loose" not in capsys.readouterr().out


def test_dry_run_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--dry-run", "--max-samples", "50", attacks="pgd:steps=10,restarts=2") == DONE
    said = capsys.readouterr().out
    assert ", 50 samples: " in said
    assert "passes each if all fall at once" in said
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) in ([], ["__pycache__"])
    assert evaluate("--dry-run", "--json") == DONE
    cost = json.loads(capsys.readouterr().out)["estimate"]
    assert cost["samples"] == 120
    assert cost["fallen"]["seconds"] < cost["most"]["seconds"]


def test_runs_have_folders_of_their_own(place: Path) -> None:
    assert evaluate() == DONE
    assert evaluate("--norm", "l2") == DONE
    names = sorted(path.name for path in (place / "sparring-evaluate").iterdir())
    assert names == ["make-data.npz-l2-4-255", "make-data.npz-linf-4-255"]


def test_another_data_set_is_not_taken_for_the_one_before(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--out", "run") == DONE
    (place / "other.npz").write_bytes((place / "data.npz").read_bytes())
    capsys.readouterr()
    assert evaluate("--out", "run", data="other.npz") == BAD_INPUT
    assert "evaluation of other data" in capsys.readouterr().err


def test_a_time_limit_ends_with_what_is_known(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--out", "run", "--time-limit", "0.000001", "--batch-size", "8") == DONE
    assert "Time ran out" in capsys.readouterr().out
    document = json.loads((place / "run" / "result.json").read_text())
    assert not document["finished"]
    assert 0 < document["clean_accuracy"]["total"] < 120
    assert evaluate("--out", "run", "--batch-size", "8") == DONE
    assert "Time ran out" not in capsys.readouterr().out
    assert json.loads((place / "run" / "result.json").read_text())["clean_accuracy"]["total"] == 120


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--eps", "8"], "did you mean 8/255"),
        (["--eps", "8/2x5"], "is not a number"),
        (["--norm", "lnif"], 'Did you mean "linf"'),
        (["--attacks", "pdg"], "Did you mean 'pgd'"),
        (["--attacks", "pgd:stps=3"], "Did you mean 'steps'"),
        (["--attacks", "adaptive", "pgd"], "give it alone"),
        (["--data", "dat.npz"], "dat.npz"),
        (["--data", "fashion-mnits"], "Did you mean 'fashion-mnist'"),
        (["--fail-under", "40"], "from 0 to 1"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--normalize", "0.5"], "--normalize"),
        (["--output", "logits"], "logits"),
        (["--max-sample", "5"], "Did you mean --max-samples"),
        (["--attacks", "autoattak"], "Did you mean 'autoattack'"),
        (["--attacks", "pgd", "autoattack"], "--attacks autoattack is a whole list of attacks"),
        (["--attacks", "fmn:stps=3"], "Did you mean 'steps'"),
    ],
)
def test_a_mistake_gets_one_line(
    place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"--model": ["nets.py:make"], "--data": ["data.npz"], "--eps": ["4/255"], "--attacks": ["pgd"]}
    base[arguments[0]] = arguments[1:]
    assert main(["evaluate", *(word for key, values in base.items() for word in (key, *values))]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert said in captured.err


def test_a_data_set_that_is_not_there_is_not_its_own_suggestion(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARRING_DATA", raising=False)
    monkeypatch.setenv("HOME", str(place))
    for typed, hint in (("gtsrb", False), ("gtsbr", True)):
        assert main(["evaluate", "--model", "nets.py:make", "--data", typed]) == BAD_INPUT
        assert ("Did you mean 'gtsrb'?" in capsys.readouterr().err) == hint


def test_a_whole_list_of_attacks_by_name(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparring import FGSM
    from sparring.evaluation import cascade

    monkeypatch.setitem(cascade.ENSEMBLES, "autoattack", lambda threat: [FGSM(threat), FGSM(threat)])
    more = ["--attacks", "autoattack", "--max-samples", "4", "--json", "--no-checkup"]
    assert main(["evaluate", "--model", "nets.py:make", "--data", "data.npz", *more]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document["attacks"]] == ["FGSM", "FGSM"]
    assert document["checkup"] is None


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", "mnist"]) == BAD_INPUT
    assert capsys.readouterr().err == "sparring evaluate: --model is missing; see sparring evaluate --help\n"


def picture(path: Path) -> Path:
    from sparring.data import save_png

    save_png(torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1)), path)
    return path


ARGUMENTS = ["--model", "softmax", "--model-args", "in_channels=3", "size=32", "--size", "32", "--out", "made"]


def test_attack_writes_what_it_tells(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparring import zoo
    from sparring.data import read_image

    images = [str(picture(place / "a.png")), str(picture(place / "b.jpg.png"))]
    (place / "sub").mkdir()
    images.append(str(picture(place / "sub" / "a.png")))
    assert main(["attack", *images, *ARGUMENTS, "--target", "3", "--steps", "10", "--json"]) == DONE
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    model = zoo.build("softmax", in_channels=3, size=32)
    assert len({entry["png"] for entry in document["images"]}) == 3
    for entry in document["images"]:
        stored = read_image(entry["png"], size=None)
        assert stored.shape == (3, 32, 32)
        seen = int(model(stored[None]).argmax())
        assert entry["success_8bit"] == (seen == 3) == (entry["after_8bit"][0]["label"] == 3)
        assert entry["success_8bit"]
        assert entry["norm_8bit"] <= 8 / 255 + 1e-6
        assert Path(entry["triptych"]).stat().st_size > 5_000


def test_an_optimiser_attacks_without_a_ball(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(picture(place / "a.png"))
    more = ["--optimizer", "rmsprop", "--norm", "none", "--lr", "1/10", "--steps", "5", "--target", "class 2", "--json"]
    assert main(["attack", image, *ARGUMENTS, *more]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["attack"] == "OptimizerAttack"
    assert document["passes"]["backwards"] == 5
    assert document["images"][0]["norm"] > 3  # farther than the L2 ball that would be the default


def test_few_pixels_are_enough(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(picture(place / "a.png"))
    assert main(["attack", image, *ARGUMENTS, "--norm", "l0", "--target", "3", "--steps", "20", "--json"]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["attack"] == "FMN"
    (found,) = document["images"]
    assert found["success"]
    assert 0 < found["norm"] == found["norm_8bit"] < 200  # of 3,072 values


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "10"], "classes 0 to 9"),
        (["--target", "clas 2"], "Did you mean 'class 2'"),
        (["--attack", "fgsm", "--steps", "3"], "--steps is no setting of fgsm, but of pgd"),
        (["--optimizer", "adam", "--attack", "pgd"], "--optimizer is no setting of pgd"),
        (["--norm", "none"], "goes with --optimizer"),
        (["--optimizer", "adma"], "adam"),
        (["--optimizer", "sgd", "--optimizer-args", "momentun=1"], "momentun"),
    ],
)
def test_attack_mistakes(place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(picture(place / "a.png")), *ARGUMENTS, *arguments]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert said in captured.err


def test_attack_names_a_photograph_that_cannot_be_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "text.png").write_text("no picture")
    assert main(["attack", "text.png", *ARGUMENTS]) == BAD_INPUT
    assert "text.png: not an image" in capsys.readouterr().err
    assert main(["attack", "none.png", *ARGUMENTS]) == BAD_INPUT
    assert "none.png: no such image" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_in_small(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("efficientnet") else found(name, *rest)
    )
    for _ in range(2):  # a second demo replaces the first
        assert main(["demo", "--epochs", "1", "--samples", "60", "--device", "cpu"]) == DONE
    captured = capsys.readouterr()
    both = (place / "sparring-demo" / "report.html").read_text("utf-8")
    assert "ordinary (Standard) is right on at most" in both
    assert "robust (FastFGSM)" in both
    assert 'href="evaluation-robust/report.html"' in both
    assert (place / "sparring-demo" / "evaluation" / "report.html").exists()
    assert (place / "sparring-demo" / "evaluation-robust" / "report.html").exists()
    rows = [line.split()[:2] for line in captured.out.splitlines()]
    assert ["ordinary", "Standard"] in rows
    assert ["robust", "FastFGSM"] in rows
    assert "sparring verify sparring-demo/evaluation" in captured.out
    assert "Skipped: " in captured.err
    assert main(["verify", "sparring-demo/evaluation", "--samples", "10"]) == DONE


def test_rotation_prints_probabilities_as_decimals(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--model", "nets.py:photo", "--size", "8", "--steps", "2", "--samples", "2", "--out", "turned"]
    for target in ("0", "1", "2"):
        if main(["rotation", "--target", target, *typed]) == DONE:
            break
        assert "already" in capsys.readouterr().err
    out = capsys.readouterr().out
    rows = json.loads((place / "turned" / "numbers.json").read_text())["rows"]
    assert any(0 < row["least"] < 1e-5 for row in rows)
    assert "e-" not in "\n".join(line for line in out.splitlines() if "±" in line or "photograph" in line)
