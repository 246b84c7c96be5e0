"""A true result passes; every kind of lie is caught, also when all hashes have been made to fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparring as sp
from networks import inputs, mlp
from sparring.evaluation import Proportion, Verification
from sparring.evaluation.document import curve, per_class
from sparring.evaluation.files import sha256
from sparring.evaluation.result import _read_records
from sparring.evaluation.source import digest

SHAPE = (3, 4, 5)
THREAT = sp.Linf("5/255")
N = 80
SHARD = "adversarial-00000.safetensors"


def network() -> nn.Module:
    return mlp(SHAPE)


def samples() -> tuple[Tensor, Tensor]:
    x, _ = inputs(N, SHAPE)
    y = network()(x).argmax(1)
    y[::9] = (y[::9] + 1) % 4
    return x, y


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    attacks = [sp.PGD(THREAT, steps=5), sp.PGD(THREAT, steps=5, objective="margin", restarts=2)]
    result = sp.evaluate(network(), samples(), THREAT, attacks=attacks, batch_size=16, out=folder)
    assert 5 < result.robust_accuracy.count < result.clean_accuracy.count - 5
    return folder


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "result"))


def check(folder: Path, model: nn.Module | None = None, data: Any = None) -> Verification:
    return sp.verify(folder, model or network(), data or samples(), batch_size=16)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def forge(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    change: Callable[[dict[str, Tensor]], Any] | None = None,
    edit: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Lie as well as one can: change rows, examples and totals, then make every total and hash fit again."""
    if rows is not None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if change is not None:
        tensors = load_file(folder / SHARD)
        change(tensors)
        save_file({name: part.contiguous() for name, part in tensors.items()}, folder / SHARD)
    document = json.loads((folder / "result.json").read_text())
    records = _read_records(folder, document)
    table, attacks, passes = records.table, document["attacks"], document["passes"]

    def share(count: Any) -> dict[str, Any]:
        return Proportion(int(count), len(table)).to_dict()

    standing = int(table["correct"].sum())
    for i, row in enumerate(attacks):
        row["fooled"] = int((table["attack"] == i).sum())
        standing -= row["fooled"]
        row["robust_accuracy"] = share(standing)
    document["clean_accuracy"], document["robust_accuracy"] = (
        share(table["correct"].sum()),
        share(table["robust"].sum()),
    )
    document["per_class"] = per_class(records, document["data"]["class_names"])
    document["curve"] = curve(records, document["threat"]["eps"])
    document["data"]["sha256"] = records.data_sha256()
    beside = {way: passes[f"pilot{way}"] + passes[f"checkup{way}"] for way in ("", "_backwards")}
    passes["forwards"] = int(table["forwards"].sum()) + passes["gallery"] + beside[""]
    passes["backwards"] = int(table["backwards"].sum()) + beside["_backwards"]
    document["files"] = {name: sha256(folder / name) for name in document["files"]}
    if edit is not None:
        edit(document)
    (folder / "result.json").write_text(json.dumps(document))


def caught(folder: Path, line: str, **given: Any) -> None:
    """Also without the data, unless these are given."""
    report = check(folder, **given) if given else sp.verify(folder, network())
    assert not report.ok
    assert any(line in lie for lie in report.lies), report.lies
    assert not any("\n" in lie for lie in report.lies)


def fooled_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["attack"] >= 0]


def test_the_truth_passes(honest: Path) -> None:
    report = check(honest)
    assert report.ok, report.lies
    result = sp.load_result(honest)
    fooled = result.clean_accuracy.count - result.robust_accuracy.count
    assert report.examples == report.fooling == fooled
    assert report.attacked_again == result.robust_accuracy.count
    assert 0 <= report.fallen < report.attacked_again
    assert report.to_json()["ok"]
    alone = sp.verify(honest, network())  # without the data
    assert alone.ok
    assert (alone.examples, alone.attacked_again) == (fooled, 0)
    assert sp.verify(honest, network(), samples(), samples=3).attacked_again == 3


def test_forging_nothing_is_no_lie(folder: Path) -> None:
    forge(folder, rows_of(folder), lambda tensors: None)
    assert check(folder).lies == []


def test_the_truth_passes_in_float32_with_subset_and_numbers(tmp_path: Path) -> None:
    model, (x, y) = mlp(SHAPE, dtype=torch.float32), samples()
    x = x.float()
    sp.evaluate(model, (x, y), THREAT, attacks="pgd", batch_size=16, out=tmp_path / "part", max_samples=30)
    assert sp.verify(tmp_path / "part", model, (x, y)).lies == []
    numbers = torch.arange(N) * 2 + 7
    sp.evaluate(model, (x, y), THREAT, attacks="pgd", batch_size=16, out=tmp_path / "numbered", indices=numbers)
    assert sp.verify(tmp_path / "numbered", model, (x, y), indices=numbers).lies == []
    for threat in (sp.L2(0.1), sp.L1(0.5, bounds=None)):
        out = tmp_path / threat.norm
        sp.evaluate(model, (x, y), threat, attacks="pgd", batch_size=16, out=out)
        assert sp.verify(out, model, (x, y)).lies == []


def test_an_unfinished_run_is_no_lie(tmp_path: Path) -> None:
    """Samples still under attack count as robust, but nobody claims that they stand."""
    result = sp.evaluate(network(), samples(), sp.Linf(0.2), batch_size=40, out=tmp_path, time_limit=1e-9)
    assert result.unfinished > 0
    report = check(tmp_path)
    assert report.lies == []
    assert report.attacked_again == 0


def edit_example(name: str, value: Callable[[Tensor, Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][2] = value(tensors["original"][2], tensors["adversarial"][2])

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (edit_example("adversarial", lambda o, a: o), "1 saved examples are not fooling"),
        (
            edit_example("adversarial", lambda o, a: o + 0.0197 * (a - o).sign()),
            "1 saved examples are outside the ball",
        ),
        (edit_example("adversarial", lambda o, a: (a - o).sign() * 0.019 + o - 1e-9), "outside the box"),
        (edit_example("adversarial", lambda o, a: a * torch.nan), "1 saved examples are not fooling"),
        (edit_example("original", lambda o, a: (o + a) / 2), "1 saved examples are of another original"),
        (edit_example("adversarial", lambda o, a: o + 0.999 * (a - o)), "of another size than their rows say"),
    ],
)
def test_examples_that_are_none(change: Any, line: str, folder: Path) -> None:
    forge(folder, change=change)
    caught(folder, line)


def test_nan_is_outside_the_ball_and_the_box(folder: Path) -> None:
    forge(folder, change=edit_example("adversarial", lambda o, a: a * torch.nan))
    lies = check(folder).lies
    assert len([lie for lie in lies if "outside the ball" in lie or "outside the box" in lie]) == 2


def test_an_example_left_out_or_there_twice(folder: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name][1:]

    forge(folder, change=drop)
    caught(folder, "1 fooled samples have no example")


def test_one_sample_claimed_robust_though_it_falls(folder: Path) -> None:
    """Forged throughout: its row, its example, every total and every hash; only the attack knows."""
    rows = rows_of(folder)
    victim = fooled_rows(rows)[0]
    place = [row["index"] for row in fooled_rows(rows)].index(victim["index"])
    victim |= {"robust": True, "attack": -1, "prediction": -1, "confidence": None, "norm": None, "distance": None}

    def drop(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = torch.cat([tensors[name][:place], tensors[name][place + 1 :]])

    def gallery(document: dict[str, Any]) -> None:
        document["gallery"] = [shown for shown in document["gallery"] if shown["index"] != victim["index"]]

    forge(folder, rows, drop, gallery)
    line = f"1 of {sum(row['robust'] for row in rows)} samples claimed robust fall to the recorded attacks"
    caught(folder, line, data=samples())
    assert sp.verify(folder, network()).ok  # without the data nobody can know


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"robust": True}, "called robust though an attack fooled them"),
        ({"robust": True, "attack": -1}, "called robust though an example within eps is told of"),
        ({"correct": False}, "against their clean prediction"),
        ({"distance": 10.0}, "not between 0 and the example's norm"),
        ({"prediction": -1}, "fooled without a wrong prediction"),
        ({"norm": 0.5, "distance": 0.001}, "of another size than their rows say"),
        ({"forwards": 100000}, "the attacks' forwards"),
    ],
)
def test_rows_that_contradict_something(change: dict[str, Any], line: str, folder: Path) -> None:
    rows = rows_of(folder)
    fooled_rows(rows)[1] |= change
    forge(folder, rows)
    caught(folder, line)


def test_a_wrong_answer_called_right(folder: Path) -> None:
    rows = rows_of(folder)
    wrong = next(row for row in rows if not row["correct"])
    forge(folder, [row | {"correct": True, "robust": True} if row is wrong else row for row in rows])
    caught(folder, "against their clean prediction")
    claimed = {"correct": True, "robust": True, "clean_prediction": wrong["label"]}
    forge(folder, [row | claimed if row is wrong else row for row in rows])
    line = f"1 clean predictions are not what the model says (first: sample {wrong['index']})"
    caught(folder, line, data=samples())


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda d: d["robust_accuracy"].update(value=0.9), "robust_accuracy claims 0.9"),
        (lambda d: d["robust_accuracy"].update(high=1.0), "robust_accuracy"),
        (lambda d: d["clean_accuracy"].update(count=80, value=1.0), "clean_accuracy claims 1.0 (80 of 80)"),
        (lambda d: d["attacks"][0].update(fooled=0), "attack 0 (PGD): fooled claims 0"),
        (lambda d: d["attacks"][0]["settings"].update(steps=500), "the attacks are not those"),
        (lambda d: d["threat"].update(eps=0.5), "the threat is not the one"),
        (lambda d: d["passes"].update(backwards=10**9), "passes: backwards"),
        (lambda d: d["per_class"][0].update(robust=99), "per_class"),
        (lambda d: d["curve"][10].update(value=1.0), "curve"),
        (lambda d: d["data"].update(sha256="0" * 64), "hash of the data"),
        (lambda d: d["files"].pop("samples.jsonl"), "no hash of samples.jsonl"),
        (lambda d: d["model"].update(sha256="0" * 64), "the model's weights are not those of the run"),
    ],
)
def test_totals_that_do_not_follow(edit: Any, line: str, folder: Path) -> None:
    forge(folder, edit=edit)
    caught(folder, line)


def test_a_larger_eps_claimed_throughout(folder: Path) -> None:
    """Robust at 0.3: said everywhere, true nowhere."""

    def edit(document: dict[str, Any]) -> None:
        for about in (document["threat"], document["identity"]["threat"]):
            about |= {"eps": 0.3, "eps_typed": "0.3"}
        document["curve"] = curve(_read_records(folder, document), 0.3)

    forge(folder, edit=edit)
    caught(folder, "samples claimed robust fall to the recorded attacks", data=samples())


def test_files_changed_or_missing(folder: Path) -> None:
    path = folder / SHARD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    caught(folder, f"{SHARD} was changed after the run")
    path.write_bytes(bytes(data[:100]))
    caught(folder, "not a readable file of examples")
    path.unlink()
    caught(folder, f"{SHARD} is missing")


def test_other_weights_and_other_data(honest: Path) -> None:
    model = network()
    model[1].bias.data[0] += 1e-7
    caught(honest, "the model's weights are not those of the run", model=model)
    x, y = samples()
    caught(honest, "the data is not that of the run: 80 samples differ", data=(x.flip(0), y))
    caught(honest, "1 samples differ", data=(x, torch.cat([y[:-1], (y[-1:] + 1) % 4])))
    caught(honest, "40 are missing", data=(x[:40], y[:40]))


def test_eight_bits_undo_a_small_attack(tmp_path: Path) -> None:
    """Two pixels decide; the example moves one by less than half a grey level, which rounding takes back."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[1].weight.data.copy_(torch.eye(2))
    level = 100 / 255
    x = torch.tensor([[level + 0.0005, level], [level + 0.02, level]]).view(2, 1, 1, 2)
    y = torch.tensor([0, 0])
    threat = sp.Linf(0.001)
    out = tmp_path / "fine"
    sp.evaluate(model, (x, y), threat, attacks=sp.FGSM(threat), out=out)
    report = sp.verify(out, model, (x, y))
    assert report.ok
    assert (report.examples, report.fooling, report.still_8bit) == (1, 1, 0)
    coarse = sp.Linf(0.05)
    sp.evaluate(model, (x, y), coarse, attacks=sp.FGSM(coarse), out=tmp_path / "coarse")
    report = sp.verify(tmp_path / "coarse", model, (x, y))
    assert (report.examples, report.fooling, report.still_8bit) == (2, 2, 2)


@pytest.mark.parametrize(
    "threat", [sp.Linf(torch.full((N,), 0.01)), sp.Linf(0.1, mask=torch.ones(5, dtype=torch.bool))]
)
def test_what_can_not_be_verified_says_so(threat: sp.Threat, tmp_path: Path) -> None:
    sp.evaluate(network(), samples(), threat, attacks="pgd", batch_size=40, out=tmp_path)
    with pytest.raises(ValueError, match="a mask or one eps per sample"):
        check(tmp_path)


def test_verifying_touches_nothing(honest: Path) -> None:
    model, before = network(), {path: sha256(path) for path in honest.iterdir()}
    model.train()
    state = torch.get_rng_state()
    check(honest, model)
    assert all(module.training for module in model.modules())
    assert {path: sha256(path) for path in honest.iterdir()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(digest(*samples()))) == N  # else "another original" could not be told
