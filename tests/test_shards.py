"""Shards run anywhere, killed or dealt anew: merged they are the result of one process, or one line says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import sparring as sp
from networks import RowWise, inputs
from sparring.evaluation import Progress, shards, tally
from sparring.evaluation import run as evaluation_run
from sparring.evaluation.pilot import Plan, kept
from sparring.evaluation.source import Source

SHAPE = (3, 4, 5)
THREAT = sp.Linf(0.02)
N = 53


def network() -> nn.Module:
    return RowWise(SHAPE)


def samples() -> tuple[Tensor, Tensor]:
    x, _ = inputs(N, SHAPE)
    y = network()(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    return x, y


def run(out: Path | None, shard: tuple[int, int] | None = None, **settings: Any) -> sp.EvaluationResult:
    attacks = [sp.FGSM(THREAT), sp.PGD(THREAT, steps=8), sp.PGD(THREAT, steps=8, objective="margin")]
    given: dict[str, Any] = {"model": network(), "data": samples(), "attacks": attacks, "batch_size": 16}
    given |= {"checkup": False} | settings  # the checkup of a shard looks at samples of its own
    return sp.evaluate(given.pop("model"), given.pop("data"), THREAT, out=out, shard=shard, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process that did it all."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three shards, each with another batch size, not yet merged."""
    folder = tmp_path_factory.mktemp("shared")
    for number in (2, 0, 1):
        run(folder, (number, 3), batch_size=[7, 128, 16][number])
    return folder


def test_what_is_finished_can_be_counted_from_outside(tmp_path: Path) -> None:
    assert shards.finished(tmp_path) == 0
    share = run(tmp_path, (0, 3))
    assert shards.finished(tmp_path) == shards.finished(tmp_path, (0, 3)) == len(share.index) > 0
    assert shards.finished(tmp_path, (1, 3)) == 0
    run(tmp_path, (1, 3))
    assert shards.finished(tmp_path) == shards.finished(tmp_path, (0, 3)) + shards.finished(tmp_path, (1, 3))


def check_same(folder: Path, whole: Path) -> None:
    """The same bytes of samples and examples, and the same document but for times, settings and the gallery's passes."""
    documents = []
    for path in (folder, whole):
        document = json.loads((path / "result.json").read_text())
        for name in ("created", "seconds", "settings", "environment"):
            del document[name]
        for row in document["attacks"]:
            del row["seconds"]
        document["passes"]["forwards"] -= document["passes"].pop("gallery")
        documents.append(document)
    assert documents[0] == documents[1]
    for name in documents[0]["files"]:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_merged_shards_are_the_result_of_one_process(shared: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared, tmp_path / "run")
    result = sp.merge(folder)
    assert result.index.tolist() == list(range(N))
    assert len(list(result.examples)) > 5
    check_same(folder, whole)
    assert result.document["settings"]["shards"] == 3
    verification = sp.verify(folder, network(), samples())
    assert verification.ok, verification.lies
    assert verification.attacked_again == result.robust_accuracy.count
    sp.merge(folder)  # the shards stay: again is the same
    check_same(folder, whole)
    assert run(folder).document == result.document | {"created": sp.load_result(folder).document["created"]}


def test_a_shard_says_what_it_is(shared: Path) -> None:
    with pytest.raises(ValueError, match=r"one shard of an evaluation: merge .*shared"):
        sp.load_result(shared / "shard-0-of-3")
    with pytest.raises(ValueError, match=r"holds shards of an evaluation: merge them first"):
        sp.load_result(shared)


def test_a_finished_shard_is_returned_at_once(shared: Path) -> None:
    model = network()
    model.register_forward_pre_hook(lambda module, args: pytest.fail("the model was asked"))
    again = run(shared, (1, 3), model=model)
    assert again.index.tolist() == list(range(1, N, 3))
    assert len(list(again.examples)) == again.clean_accuracy.count - again.robust_accuracy.count > 0


def break_seed(folder: Path) -> None:
    shutil.rmtree(folder / "shard-2-of-3")
    other = folder / "other"
    run(other, (2, 3), seed=1)
    shutil.move(other / "shard-2-of-3", folder / "shard-2-of-3")


def break_version(folder: Path) -> None:
    change(folder, lambda known: known["facts"]["tool"].update(version="0.0.9"))


def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "shard-2-of-3" / "shard.json"
    known = json.loads(path.read_text())
    how(known)
    path.write_text(json.dumps(known))


def lose_line(folder: Path) -> None:
    path = folder / "shard-2-of-3" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))


def double_lines(folder: Path) -> None:
    lines = (folder / "shard-1-of-3" / "journal.jsonl").read_text().splitlines(keepends=True)
    with open(folder / "shard-2-of-3" / "journal.jsonl", "a") as file:
        file.write(lines[0])


def other_place(folder: Path) -> None:
    shutil.rmtree(folder / "shard-2-of-3")
    shutil.copytree(folder / "shard-1-of-3", folder / "shard-2-of-3")


def other_result(folder: Path) -> None:
    run(folder / "other", seed=1)
    for path in (folder / "other").iterdir():
        shutil.move(path, folder / path.name)


@pytest.mark.parametrize(
    ("hurt", "line"),
    [
        (lambda folder: shutil.rmtree(folder / "shard-1-of-3"), r"of 3 shards 1 is missing: .* --shard 1/3"),
        (
            lambda folder: [shutil.rmtree(folder / f"shard-{i}-of-3") for i in (0, 2)],
            r"of 3 shards 0 and 2 are missing: .* --shard 0/3",
        ),
        (lambda folder: (folder / "shard-1-of-3" / "shard.json").unlink(), r"of 3 shards 1 is not finished: .* 1/3"),
        (lambda folder: shutil.rmtree(folder), "holds no shards"),
        (break_seed, r"shard-2-of-3 and shard-0-of-3 differ in seed \(1 and 0\): not shards of one evaluation"),
        (break_version, r"differ in tool \(version '0.0.9' and version '.*'\)"),
        (lose_line, r"hold 52 of 53 samples \(missing: \d+\)"),
        (double_lines, r"sample \d+ is both in shard-1-of-3 and in shard-2-of-3"),
        (other_place, r"another shard \(\[1, 3\], now \[2, 3\]\)"),
        (lambda folder: change(folder, lambda known: known.update(seen=16)), "2-of-3 has met 16 samples, expected 17 of 53"),
        (other_result, "holds an evaluation with another seed"),
    ],
)  # fmt: skip
def test_what_can_not_be_merged(hurt: Any, line: str, shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared, tmp_path / "run")
    hurt(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        sp.merge(folder)
    assert "\n" not in str(error.value)


def stopping(after: int) -> nn.Module:
    """A model that is interrupted at its `after`-th call."""
    model, calls = network(), 0

    def stop(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    return model


def test_a_stopped_shard_goes_on(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, (0, 2), model=stopping(30))
    with pytest.raises(ValueError, match="of 2 shards 1 is missing and 0 is not finished"):
        sp.merge(tmp_path)
    met: list[Progress] = []
    run(tmp_path, (0, 2), progress=met.append)
    assert 0 < met[-1].resumed < met[-1].done == met[-1].total == 27
    run(tmp_path, (1, 2))
    sp.merge(tmp_path)
    check_same(tmp_path, whole)


def test_a_time_limit_ends_a_shard_early(whole: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        run(tmp_path, (number, 2), time_limit=1e-9)
    earlier = sp.merge(tmp_path)
    assert not earlier.finished
    assert earlier.unfinished > 0
    for number in (0, 1):
        run(tmp_path, (number, 2))
    assert sp.merge(tmp_path).finished
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert settings["time_limit"] is None
    check_same(tmp_path, whole)


def test_dealt_out_anew_nothing_is_done_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards, one whole and one half; then three, one whole and one half; then one process takes all that is left."""
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 0.0)
    run(tmp_path, (1, 2))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, (0, 2), model=stopping(30))
    met: list[Progress] = []
    run(tmp_path, (1, 3), progress=met.append)
    assert 9 <= met[-1].resumed < 18  # 9 of its 18 samples are odd ones
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, (0, 3), model=stopping(20))
    rest = set(range(N)) - finished(tmp_path)
    run(tmp_path, progress=met.append)
    assert met[-1].done - met[-1].resumed == len(rest)
    check_same(tmp_path, whole)
    assert not list(tmp_path.glob("shard-*"))


def finished(folder: Path) -> set[int]:
    journals = folder.glob("*/journal.jsonl")
    return {json.loads(line)["index"] for path in journals for line in path.read_text().splitlines()}


def test_another_evaluation_does_not_join(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared, tmp_path / "run")
    shutil.rmtree(folder / "shard-1-of-3")
    for change in ({"seed": 1}, {"max_samples": 20}, {"data": tuple(part[:50] for part in samples())}):
        with pytest.raises(ValueError, match="holds an evaluation with another"):
            run(folder, (1, 3), **change)
        assert not (folder / "shard-1-of-3").exists()
    for attacks, says in (
        ("pgd", r"other attacks \(attack 1 was FGSM, now PGD\)"),
        ([sp.FGSM(THREAT), sp.PGD(THREAT, steps=9)], r"\(attack 2, PGD: steps 8, now 9\)"),
        ([sp.FGSM(THREAT)], r"\(3 of them, now 1\)"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            run(folder, (1, 3), attacks=attacks)
        assert len(str(error.value)) < 300 + len(str(folder))
    with pytest.raises(ValueError, match="sample 0 is not the one"):
        run(folder, (0, 3), data=(samples()[0].flip(0), samples()[1]))


def test_a_part_of_the_data_with_numbers_of_its_own(tmp_path: Path) -> None:
    numbers = torch.arange(N).flip(0) * 3 + 100
    settings: dict[str, Any] = {"max_samples": 20, "indices": numbers, "seed": 4}
    alone = run(tmp_path / "alone", **settings)
    for number in range(3):
        run(tmp_path / "shards", (number, 3), **settings)
    assert torch.equal(sp.merge(tmp_path / "shards").index, alone.index)
    check_same(tmp_path / "shards", tmp_path / "alone")


class Lines(IterableDataset[Any]):
    """A stream of unknown length."""

    def __iter__(self) -> Any:
        return iter(zip(*samples(), strict=True))


def test_a_stream_of_unknown_length(whole: Path, tmp_path: Path) -> None:
    for number in range(2):
        result = run(tmp_path, (number, 2), data=DataLoader(Lines(), batch_size=6))
        assert result.index.tolist() == list(range(number, N, 2))
    merged = sp.merge(tmp_path)
    theirs = sp.load_result(whole)
    assert torch.equal(merged.robust, theirs.robust)
    assert merged.document["attacks"][1]["backwards"] == theirs.document["attacks"][1]["backwards"]


def test_a_distributed_sampler_does_not_pad() -> None:
    """53 samples in two processes: torch's sampler hands out 54."""
    data = TensorDataset(*samples())
    seen: list[int] = []
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank)
        assert len(sampler) == 27
        source = Source(DataLoader(data, batch_size=8, sampler=sampler), 8, None, 0, shard=(rank, 2))
        seen += [index for batch in source for index in batch.index.tolist()]
    assert sorted(seen) == list(range(N))


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0, 0), (0.0, 2), "0/3", (1,), 4, (True, 2)])
def test_shards_that_are_none(shard: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard=.*: expected \(i, n\)"):
        run(tmp_path, shard)


def test_shards_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without out"):
        run(None, (0, 2))
    with pytest.raises(ValueError, match="shard 60 of 64 is empty, the data have 53 samples"):
        run(tmp_path, (60, 64))
    assert run(None, (0, 1)).clean_accuracy.total == N  # all of it, in this process alone


def test_one_plan_for_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adaptive cascade's pilot runs once; whoever comes later attacks by its plan; other plans are not merged."""
    alone = run(tmp_path / "alone", attacks="adaptive")
    studies = []
    study = evaluation_run.study
    monkeypatch.setattr(evaluation_run, "study", lambda *a, **k: studies.append(1) or study(*a, **k))
    folder = tmp_path / "shards"
    for number in (0, 1):
        run(folder, (number, 2), attacks="adaptive")
    assert len(studies) == 1
    result = sp.merge(folder)
    check_same(folder, tmp_path / "alone")
    assert result.document["plan"] == alone.document["plan"]
    shutil.rmtree(folder / "shard-1-of-2")
    plan = json.loads((folder / "plan.json").read_text())
    plan["plan"]["fooled"][0] += 1
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "result.json").unlink()
    run(folder, (1, 2), attacks="adaptive")
    assert len(studies) == 1
    with pytest.raises(ValueError, match=r"shard-1-of-2 and shard-0-of-2 differ in plan \(fooled"):
        sp.merge(folder)


def test_a_plan_of_another_evaluation_is_not_used(tmp_path: Path) -> None:
    file, mine = tmp_path / "plan.json", Plan((None,), 4, (4,), (0.5,), (1,), 8, 4)
    assert kept(file, {"model": "a"}, lambda: mine) == mine
    assert kept(file, {"model": "a"}, lambda: pytest.fail("a second pilot")) == mine
    assert kept(file, {"model": "b"}, lambda: replace(mine, samples=9)).samples == 9

    def overtaken() -> Plan:
        kept(file, {"model": "c"}, lambda: replace(mine, samples=7))
        return mine

    file.unlink()
    assert kept(file, {"model": "c"}, overtaken).samples == 7  # the first to come back decides
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    file.write_text("{")
    with pytest.raises(ValueError, match=r"plan.json: not a readable plan"):
        kept(file, {"model": "c"}, lambda: mine)


def test_two_processes_do_not_share_a_shard(tmp_path: Path) -> None:
    """A requeued task whose first life is not over, or torchrun with the same --shard for all."""
    code = "import sys, time; from sparring.evaluation.files import locked; from pathlib import Path; "
    code += "kept = locked(Path(sys.argv[1]) / 'lock'); print('locked', flush=True); time.sleep(60)"
    folder = tmp_path / "shard-0-of-2"
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=r"another process is at work in .*shard-0-of-2"):
            run(tmp_path, (0, 2))
    finally:
        other.kill()
        other.wait()
    assert run(tmp_path, (0, 2)).clean_accuracy.total == 27
