"""``sparring train``, as a person runs it."""

from __future__ import annotations

import json
import os
import shlex
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sparring
from sparring.cli import main
from sparring.cli.app import BAD_INPUT, DONE, STOPPED
from sparring.cli.strategies import TAKES

NETS = """
from torch import nn

def conv(normalised=False):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

def nothing():
    return lambda x: x
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nets.py, data.npz with a train and a test part, and an only.npz without parts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    parts = {}
    for split, count in (("train", 80), ("test", 30)):
        y = rng.integers(0, 3, count)
        x = rng.integers(0, 120, (count, 1, 8, 8), dtype=np.uint8)
        x[np.arange(count), 0, y] += 120
        parts |= {f"x_{split}": x, f"y_{split}": y}
    np.savez(tmp_path / "data.npz", **parts)
    np.savez(tmp_path / "only.npz", x=parts["x_train"], y=parts["y_train"])
    return tmp_path


def command(*arguments: str, **options: str) -> list[str]:
    """A short training; options of the same name replace its own."""
    given = {"strategy": "fast-fgsm", "model": "nets.py:conv", "data": "data.npz", "out": "run", "device": "cpu"}
    given |= {"epochs": "2", "batch-size": "20", "eps": "0.1", **options}
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", value)), *arguments]


def test_from_a_name_to_weights_that_evaluate_reads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    normalize = ["--normalize", "0.3", "0.25"]
    arguments = command("--m", "2", "--n", "2", "--ema", "0.9", *normalize, strategy="yopo")
    assert main(arguments) == DONE
    captured = capsys.readouterr()
    assert "8 of 80 training samples are held out" in captured.err
    (line,) = [line for line in captured.out.splitlines() if line.strip().startswith("sparring evaluate")]
    words = shlex.split(line)
    assert words[2:4] == ["--model", "nets.py:conv"]
    assert main([*words[1:], "--device", "cpu", "--json", "--no-checkup", "--attacks", "pgd:steps=5"]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["clean_accuracy"]["total"] == 30, "on the test part"
    assert set(load_file("run/best.safetensors")) == {"0.weight", "0.bias", *(f"1.{n}" for n in (
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked")), "4.weight", "4.bias"}  # fmt: skip
    assert main([*arguments, "--json", "--quiet"]) == DONE
    captured = capsys.readouterr()
    assert "already holds this training" in captured.err
    document = json.loads(captured.out)
    assert [row["epoch"] for row in document["epochs"]] == [1, 2]
    assert document["settings"]["strategy"] == "yopo"


def test_data_without_a_test_part_are_not_proposed_for_the_verdict(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("--validation", "none", data="only.npz")) == DONE
    captured = capsys.readouterr()
    assert "--weights run/last.safetensors --data TEST_IMAGES" in captured.out
    assert not Path("run/best.safetensors").exists()


def test_settings_from_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(
        "strategy: pgd\nsteps: 2\nmodel: nets.py:conv\ndata: data.npz\neps: 8/255\nfreeze: [0.*]\nvalidation: only.npz\n"
    )
    arguments = ["train", "--config", "run.yaml", "--epochs", "1", "--out", "run", "--json", "--quiet", "--no-health"]
    assert main(arguments) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["eps"] == "8/255"
    assert document["epochs"][0]["forwards"] == 80 * 3, "everything is learned from where validation data are given"
    assert "--eps 8/255" in document["evaluate"]


def test_both_branches_of_advprop_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(strategy="advprop", epochs="1")) == DONE
    told = " ".join(capsys.readouterr().out.split())
    row = json.loads(Path("run/history.json").read_text())["epochs"][0]
    clean, robust = row["validation_adversarial_branch_accuracy"], row["validation_adversarial_branch_robust_accuracy"]
    assert f'branch "adversarial": clean {clean:.1%}, robust {robust:.1%}' in told
    assert "best_adversarial.safetensors" in told
    assert Path("run/best_adversarial.safetensors").is_file()


@pytest.mark.parametrize("strategy", [name for name in TAKES if name not in ("yopo", "fast-fgsm", "pgd")])
def test_every_strategy_by_name(place: Path, strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    more: list[str] = []
    if strategy == "ensemble":
        assert main(command("--validation", "none", strategy="standard", epochs="1")) == DONE
        more = ["--sources", "run/last.safetensors", "--fresh"]
        capsys.readouterr()
    if "attack" in TAKES[strategy][1]:
        more += ["--attack", "pgd:steps=2"]
    if "steps" in TAKES[strategy][1]:
        more += ["--steps", "2"]
    assert main(command("--validation", "none", "--json", *more, strategy=strategy, epochs="1")) == DONE
    assert json.loads(capsys.readouterr().out)["finished"]


def seen(monkeypatch: pytest.MonkeyPatch, *arguments: str, **options: str) -> dict[str, Any]:
    """What `sparring train` gives to `fit`, beside training."""
    given: dict[str, Any] = {}
    real = sparring.fit

    def watched(model: Any, samples: Any, strategy: Any, **settings: Any) -> Any:
        given.update(samples=samples, strategy=strategy, **settings)
        return real(model, samples, strategy, **settings)

    monkeypatch.setattr("sparring.training.fitting.fit", watched)
    monkeypatch.setattr("sparring.fit", watched)
    assert main(command(*arguments, **options)) == DONE
    return given


def test_few_labels_with_all_the_images(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = seen(monkeypatch, "--labels", "9", strategy="vat", epochs="1")
    classes = [int(given["samples"][i][1]) for i in range(len(given["samples"]))]
    assert sorted(classes) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(given["unlabelled"]) == 80
    assert isinstance(given["strategy"], sparring.VAT)
    assert given["strategy"].eps == 2.0
    assert not Path("run/best.safetensors").exists(), "none of few labels is held out"


def test_virtual_adversarial_training_round_another_strategy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--vat", "1.5", "--entropy-minimisation", "--unlabelled", "only.npz", "--unlabelled-batch-size", "40"]
    given = seen(monkeypatch, "--validation", "none", *more, strategy="fast-fgsm", epochs="1")
    assert isinstance(given["strategy"], sparring.FastFGSM)
    (part,) = given["strategy"].parts
    assert isinstance(part, sparring.VirtualAdversarial)
    assert (part.eps, part.entropy_minimisation) == (1.5, True)
    assert (len(given["samples"]), len(given["unlabelled"]), given["unlabelled_batch_size"]) == (80, 80, 40)


def test_entropy_belongs_to_virtual_adversarial_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--entropy-minimisation")) == BAD_INPUT
    assert "is a setting of virtual adversarial training: --strategy vat, or --vat 2.0" in capsys.readouterr().err


def test_labels_alone_learn_from_their_images_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = seen(monkeypatch, "--labels", "9", epochs="1", **{"batch-size": "9"})
    assert len(given["samples"]) == 9
    assert given["unlabelled"] is None


def test_the_table_of_options_is_that_of_the_classes() -> None:
    for name, (kind, options) in TAKES.items():
        own = {f.name for f in fields(getattr(sparring, kind))}
        assert set(options) <= own, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategy", "yoopo"], "--strategy 'yoopo': no such strategy. Did you mean 'yopo'?"),
        (["--strategy", "pgd", "--beta", "6"], "--beta is no setting of pgd, but of trades, trades-yopo"),
        (["--strategy", "ensemble"], "--sources is missing"),
        (["--strategy", "mixed", "--attack", "pgdd"], "no such attack. Did you mean 'pgd'?"),
        (["--strategy", "yopo", "--m", "0"], "YOPO(m=0): expected a whole number, at least 1"),
        (["--model", "nets.py:nothing"], "--model nets.py:nothing gave a function: expected an nn.Module"),
        (["--epocs", "3"], "Unknown option"),
        (["--eps", "0"], "eps"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--optimizer", "lion"], "lion"),
        (["--lr", "-1"], "lr=-1.0: expected a number above 0"),
        (["--precision", "fp16"], "needs a CUDA device"),
        (["--unlabelled", "only.npz"], "--unlabelled: --strategy fast-fgsm learns from labels only; add --vat"),
        (["--vat", "0"], "eps=0"),
        (["--labels", "0"], "0"),
    ],
)
def test_mistakes_get_one_line(
    place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2])}
    assert main(command(**options)) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert said in captured.err
    assert not Path("run").exists()


def test_ctrl_c_keeps_what_is_learned(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparring.training import FastFGSM

    steps, examples = 0, FastFGSM.examples

    def interrupted(self: Any, *rest: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 10:  # four batches of the first epoch, the same again for its BatchNorm statistics, and two
            os.kill(os.getpid(), signal.SIGINT)
        return examples(self, *rest)

    monkeypatch.setattr(FastFGSM, "examples", interrupted)
    assert main(command()) == STOPPED
    err = capsys.readouterr().err
    assert "is kept in run; the same command goes on from there" in err
    state = torch.load("run/state.pt", weights_only=True)
    assert (state["epoch"], state["position"]) == (1, 2)
    assert main(command()) == DONE
    assert "going on from epoch 2, batch 3" in capsys.readouterr().err
    stopped = load_file("run/last.safetensors")
    assert main(command("--fresh")) == DONE
    whole = load_file("run/last.safetensors")
    assert all(torch.equal(stopped[key], whole[key]) for key in whole)
