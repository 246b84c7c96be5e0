"""The result: its document obeys the published schema, its numbers are right, and it survives being saved and loaded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

import sparring as sp
from networks import inputs, mlp
from sparring.evaluation import EvaluationResult, Proportion, schema
from sparring.evaluation.records import Records
from sparring.evaluation.store import Store

SHAPE = (3, 4, 5)
N = 60
THREAT = sp.Linf("5/255")


def samples() -> tuple[Tensor, Tensor]:
    x, _ = inputs(N, SHAPE)
    y = mlp(SHAPE)(x).argmax(1)
    y[::9] = (y[::9] + 1) % 4
    return x, y


def run(threat: sp.Threat = THREAT, model: Any = None, **settings: Any) -> EvaluationResult:
    if "attacks" not in settings:
        settings["attacks"] = sp.PGD(threat, steps=3)
    return sp.evaluate(model or mlp(SHAPE), samples(), threat, **({"batch_size": 16} | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run().save(tmp_path_factory.mktemp("result"))


INFINITE = sp.L2(math.inf)
RUNS: dict[str, Any] = {
    "linf": lambda: run(),
    "l2": lambda: run(sp.L2(0.2)),
    "l1 without a box": lambda: run(sp.L1(0.5, bounds=None)),
    "l0": lambda: run(sp.L0(5), attacks=lambda m, x, y: 1 - x),
    "no limit but the box": lambda: run(INFINITE, attacks=sp.OptimizerAttack(INFINITE, steps=5, lr=0.1)),
    "one eps per sample": lambda: run(sp.Linf(torch.linspace(0, 0.05, N))),
    "mask": lambda: run(sp.Linf(0.05, mask=torch.rand(SHAPE) > 0.5)),
    "callable": lambda: run(model=lambda x: mlp(SHAPE)(x)),
    "nobody fooled": lambda: run(sp.Linf(0.0), attacks="fgsm"),
    "everybody fooled": lambda: run(sp.Linf(1.0), attacks=lambda m, x, y: torch.rand_like(x)),
    "out of time": lambda: run(time_limit=1e-9),
    "bfloat16": lambda: run(autocast=torch.bfloat16, model=mlp(SHAPE)),
    "adaptive, part": lambda: run(attacks="adaptive", max_samples=20, class_names=list("abcd")),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_document_obeys_the_schema_and_its_numbers_agree(name: str, tmp_path: Path) -> None:
    result = RUNS[name]()
    result.save(tmp_path)
    text = (tmp_path / "result.json").read_text()
    document = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    jsonschema.Draft202012Validator(schema()).validate(document)
    loaded = sp.load_result(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == document["data"]["samples"] == len(loaded.index)
    assert sum(row["correct"] for row in rows) == loaded.clean_accuracy.count
    assert sum(row["robust"] for row in rows) == loaded.robust_accuracy.count
    curve = document["curve"]
    values = [point["value"] for point in curve]
    assert values == sorted(values, reverse=True)
    assert values[0] == loaded.clean_accuracy.value
    assert values[-1] == loaded.robust_accuracy.value
    assert [point["eps"] for point in curve] == sorted(point["eps"] for point in curve)
    assert all(point["low"] <= point["value"] <= point["high"] for point in curve)
    classes = document["per_class"]
    for key, total in (
        ("samples", len(rows)),
        ("correct", loaded.clean_accuracy.count),
        ("robust", loaded.robust_accuracy.count),
    ):
        assert sum(row[key] for row in classes) == total
    fooled = [row["index"] for row in rows if row["attack"] >= 0]
    assert [index for index, _, _ in loaded.examples] == fooled
    assert [shown["distance"] for shown in document["gallery"]] == sorted(s["distance"] for s in document["gallery"])
    assert {shown["index"] for shown in document["gallery"]} <= set(fooled)
    assert len(document["gallery"]) == min(12, len(fooled))
    if name == "nobody fooled":
        assert fooled == []
    if name == "everybody fooled":
        assert loaded.robust_accuracy.count < N / 2
    if name == "no limit but the box":
        assert (document["threat"]["eps"], document["threat"]["eps_typed"]) == (None, "inf")
    if name == "callable":
        assert document["model"]["sha256"] is None


def test_the_gallery_shows_what_the_model_says(folder: Path) -> None:
    result, model = sp.load_result(folder), mlp(SHAPE)
    for shown in result.document["gallery"]:
        for x, guesses in zip(result.picture(shown["index"]), (shown["before"], shown["after"]), strict=True):
            chances = model(x[None])[0].float().softmax(0)
            assert [guess["label"] for guess in guesses] == chances.argsort(descending=True).tolist()
            assert [guess["probability"] for guess in guesses] == pytest.approx(sorted(chances.tolist(), reverse=True))
        assert shown["before"][0]["label"] == shown["label"] != shown["after"][0]["label"]


def test_saved_and_loaded_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    fresh, loaded = run(), sp.load_result(folder)
    for name in ("index", "correct", "robust", "distance"):
        assert torch.equal(getattr(fresh, name), getattr(loaded, name))
    for name in ("clean_accuracy", "robust_accuracy", "forwards", "backwards", "warnings", "finished"):
        assert getattr(fresh, name) == getattr(loaded, name)
    assert list(fresh.samples()) == list(loaded.samples())
    for mine, theirs in zip(fresh.examples, loaded.examples, strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
        assert torch.equal(mine[2], theirs[2])
        for picture in (fresh.picture(mine[0]), loaded.picture(mine[0])):
            assert torch.equal(picture[0], mine[1])
            assert torch.equal(picture[1], mine[2])
    standing = int(loaded.index[loaded.robust][0])
    for result in (fresh, loaded):
        for index in (standing, 10**6):
            with pytest.raises(KeyError, match=f"sample {index} was not fooled"):
                result.picture(index)
    copy = loaded.save(tmp_path / "copy")
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in copy.iterdir()) == names
    for name in names:
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    loaded.save(folder)  # where it is already
    assert sp.verify(folder, mlp(SHAPE), samples()).ok


def test_what_lay_in_the_folder_before_is_gone(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "adversarial-00000.safetensors", tmp_path / "adversarial-00007.safetensors")
    (tmp_path / ".samples.jsonl.1.tmp").write_text("left by a killed process")
    result = run()
    result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in folder.iterdir())


def test_a_copy_does_not_cover_up_damage(folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    rows = (damaged / "samples.jsonl").read_text()
    (damaged / "samples.jsonl").write_text(rows.replace('"robust": false', '"robust": true ', 1))
    copy = sp.load_result(damaged).save(tmp_path / "copy")
    assert any("samples.jsonl was changed" in lie for lie in sp.verify(copy, mlp(SHAPE)).lies)


def damage(name: str, text: str | None) -> Any:
    def do(folder: Path) -> None:
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)

    return do


def shorter(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("do", "line"),
    [
        (damage("result.json", None), "holds no result.json"),
        (damage("result.json", "{"), "result.json: not readable JSON"),
        (damage("result.json", "[]"), "result.json: schema version None"),
        (damage("result.json", '{"schema_version": 99}'), "schema version 99, this sparring reads 1"),
        (damage("result.json", '{"schema_version": 1}'), "result.json: finished, .* missing"),
        (damage("samples.jsonl", None), "samples.jsonl is missing"),
        (damage("samples.jsonl", "no json\n"), "samples.jsonl, line 1: not a sample's record"),
        (damage("samples.jsonl", "[]\n"), "samples.jsonl, line 1: not a sample's record"),
        (shorter, "samples.jsonl holds 59 samples, .*result.json says 60"),
        (damage("adversarial-00000.safetensors", None), "adversarial-00000.safetensors is missing"),
        (damage("adversarial-00000.safetensors", "short"), "adversarial-00000.safetensors: not a readable file"),
    ],
)
def test_damage_gets_one_line_that_names_the_file(do: Any, line: str, folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    do(mine)
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        list(sp.load_result(mine).examples)
    assert "\n" not in str(error.value)
    assert str(mine) in str(error.value)


def test_examples_are_sharded_in_order(tmp_path: Path) -> None:
    """Samples fall in another order than that of their numbers; shards hold them sorted."""
    store = Store(None, {}, 1)
    numbers = [(17 * i) % 40 for i in range(40)]
    for n, index in enumerate(numbers):
        place = store.records.add(index)
        example = torch.full((8,), float(index))
        store.finish(place, (example, example + 0.5) if index % 3 else None)
        if n % 7 == 0:
            store.flush()
    store.sort()
    names = store.write_tidy(tmp_path, shard_bytes=5 * 64)
    assert names == ["samples.jsonl", *(f"adversarial-{i:05d}.safetensors" for i in range(-(-26 // 5)))]
    found = [example for name in names[1:] for example in sp.evaluation.parts.read_examples(tmp_path / name, chunk=2)]
    assert [index for index, _, _ in found] == [i for i in range(40) if i % 3]
    for index, original, adversarial in found:
        assert original.tolist() == [float(index)] * 8
        assert adversarial.tolist() == [index + 0.5] * 8


def test_records_grow_and_come_back_from_their_lines() -> None:
    records, again = Records(2, room=1), Records(2)
    for index in (5, 3, 9):
        place = records.add(index)
        records.table[place]["digest"], records.table[place]["passes"] = 2**62 + index, [[1, 2], [3, index]]
        records.table[place]["confidence"] = index / 7
    for line in records.lines(inside=True):
        again.take(line)
    assert (again.table == records.table).sum() == 0  # NaN ≠ NaN, so not as a whole
    for name in records.table.dtype.names or ():
        assert str(again.table[name].tolist()) == str(records.table[name].tolist())
    records.sort()
    assert records.table["index"].tolist() == [3, 5, 9]
    assert [records.place(i) for i in (3, 5, 9, 4)] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (Wilson's score interval)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals(count: int, total: int, low: float, high: float) -> None:
    share = Proportion(count, total)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)
    other = Proportion(total - count, total)
    assert (other.low, other.high) == pytest.approx((1 - share.high, 1 - share.low))
    assert float(share) == count / total
