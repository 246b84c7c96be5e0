"""Killed at any moment and started again, an evaluation ends with the same result; nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import sparring as sp
from networks import inputs, mlp
from sparring.evaluation import Progress, tally
from sparring.evaluation.store import Store

SHAPE = (3, 4, 5)
THREAT = sp.Linf(0.02)
N = 120


def attacks() -> list[Any]:
    return [sp.FGSM(THREAT), sp.PGD(THREAT, steps=8), sp.PGD(THREAT, steps=8, objective="margin")]


def network() -> nn.Module:
    return mlp(SHAPE)


def samples() -> tuple[Tensor, Tensor]:
    x, _ = inputs(N, SHAPE)
    y = network()(x).argmax(1)
    y[::9] = (y[::9] + 1) % 4
    return x, y


def run(out: Path, model: nn.Module | None = None, data: Any = None, **settings: Any) -> sp.EvaluationResult:
    return sp.evaluate(
        model or network(), data or samples(), THREAT, **{"attacks": attacks(), "batch_size": 16, "out": out} | settings
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_same(folder: Path, whole: Path) -> None:
    """The same files, the same bytes of samples and examples, the same document but for times."""
    mine, theirs = files(folder), files(whole)
    assert mine.keys() == theirs.keys()  # no .parts and no temporary file either
    evidence = [name for name in mine if name.endswith((".jsonl", ".safetensors"))]
    assert len(evidence) == 2
    assert {name: mine[name] for name in evidence} == {name: theirs[name] for name in evidence}
    documents = []
    for path in (folder, whole):
        document = json.loads((path / "result.json").read_text())
        del document["created"], document["seconds"]
        for row in document["attacks"]:
            del row["seconds"]
        documents.append(document)
    assert documents[0] == documents[1]


def child(out: str, moment: str, count: int, kind: int) -> None:
    """An evaluation that is hurt where a file is written for the `count`-th time."""
    replace, append, calls = os.replace, Store._append, 0

    def hurt() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), kind)
            time.sleep(5)

    def replacing(source: Any, target: Any) -> None:
        if Path(target).name.startswith(moment):
            hurt()
        replace(source, target)

    def appending(self: Store, data: bytes) -> None:
        torn = moment == "journal" and calls + 1 == count and kind == signal.SIGKILL
        append(self, data[: len(data) // 2] if torn else data)
        if moment == "journal":
            hurt()

    # a shell's background jobs ignore SIGINT, and so would this child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.replace, Store._append, tally.FLUSH_SECONDS = replacing, appending, 0.0  # type: ignore[assignment,method-assign]
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    run(Path(out))


@pytest.mark.parametrize(
    ("moment", "count", "kind"),
    [
        ("run.json", 1, signal.SIGKILL),
        ("part-", 1, signal.SIGKILL),
        ("part-", 4, signal.SIGKILL),
        ("journal", 5, signal.SIGKILL),  # half of what was to be written is there
        ("adversarial-", 1, signal.SIGKILL),
        ("result.json", 1, signal.SIGKILL),
        ("part-", 3, signal.SIGINT),
        ("journal", 3, signal.SIGINT),
    ],
)
def test_killed_and_started_again(moment: str, count: int, kind: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    context = multiprocessing.get_context("forkserver")  # imports torch once, and computes nothing before it forks
    context.set_forkserver_preload([__name__])
    process = context.Process(target=child, args=(str(out), moment, count, kind))
    process.start()
    process.join(60)
    assert process.exitcode == (-signal.SIGKILL if kind == signal.SIGKILL else 1)  # 1: KeyboardInterrupt
    if out.exists():
        with pytest.raises(ValueError, match="unfinished evaluation: run it again with the same out"):
            sp.load_result(out)
    met: list[Progress] = []
    run(out, progress=met.append)
    if count > 2:
        assert met[-1].resumed > 0
    check_same(out, whole)


def test_killed_at_random_moments_many_times(whole: Path, tmp_path: Path) -> None:
    """Every 145 calls of the model: each start goes a little further."""
    out, starts = tmp_path / "out", 0
    while True:
        starts += 1
        model, calls = network(), 0

        def stop(module: nn.Module, args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 145:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(stop)
        try:
            run(out, model)
            break
        except KeyboardInterrupt:
            assert starts < 50
    assert starts > 2
    check_same(out, whole)


def interrupted(out: Path, after: int = 60) -> None:
    """A run that stops after so many calls of the model."""
    model, calls = network(), 0

    def stop(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(out, model)


def test_lines_that_are_torn_or_there_twice(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path)
    journal = tmp_path / ".parts" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 10
    journal.write_bytes(b"".join(lines) + lines[2] + lines[5] + lines[-1][:40])
    run(tmp_path)
    check_same(tmp_path, whole)


def test_a_journal_damaged_in_the_middle_is_told(tmp_path: Path) -> None:
    interrupted(tmp_path)
    journal = tmp_path / ".parts" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for wrong in (b"{]\n", b"[1, 2]\n", b'{"index": 3}\n'):
        journal.write_bytes(lines[0] + wrong + lines[1])
        with pytest.raises(ValueError, match=r"journal.jsonl, line 2: not a sample's record .*remove") as error:
            run(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / ".parts" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json: not readable JSON"):
        run(tmp_path)


def other_weights() -> nn.Module:
    model = network()
    model[1].bias.data += 1e-6
    return model


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 1}, "another seed"),
        ({"attacks": [sp.FGSM(THREAT)]}, "other attacks"),
        ({"max_samples": 50}, "another max_samples"),
        ({"model": other_weights()}, "another model"),
        ({"data": tuple(part[:50] for part in samples())}, r"another number of samples \(120, now 50\)"),
        ({"data": (samples()[0].flip(0), samples()[1])}, "sample 0 (is not the one|differs)|other data"),
        ({"data": (samples()[0], (samples()[1] + 1) % 4)}, "sample 0 (is not the one|differs)|other data"),
    ],
)
def test_another_evaluation_does_not_go_into_the_folder(
    change: Any, line: str, finished: bool, whole: Path, tmp_path: Path
) -> None:
    out = whole if finished else tmp_path
    if not finished:
        interrupted(out)
    before = files(out)
    with pytest.raises(ValueError, match=line) as error:
        run(out, **change)
    assert "\n" not in str(error.value)
    assert files(out) == before
    if not finished:
        run(out)
        check_same(out, whole)


def test_normalisation_belongs_to_the_model(tmp_path: Path) -> None:
    """mean and std are no part of a state_dict, but of what is evaluated."""
    run(tmp_path, sp.normalized(network(), 0.4, 1.0))
    with pytest.raises(ValueError, match="another model"):
        run(tmp_path, sp.normalized(network(), 0.5, 1.0))


def test_a_finished_folder_is_returned_at_once(whole: Path) -> None:
    before, model = files(whole), network()
    model.register_forward_pre_hook(lambda module, args: pytest.fail("the model was asked"))
    again = run(whole, model)
    assert files(whole) == before
    assert again.document == json.loads((whole / "result.json").read_text())


def test_a_time_limit_and_then_none(whole: Path, tmp_path: Path) -> None:
    earlier = run(tmp_path, time_limit=1e-9)
    assert not earlier.finished
    loaded = sp.load_result(tmp_path)
    assert (loaded.unfinished, loaded.robust_accuracy) == (earlier.unfinished, earlier.robust_accuracy)
    assert loaded.unfinished > 0
    assert (tmp_path / ".parts").exists()
    run(tmp_path, time_limit=1e-9)
    result = run(tmp_path)
    assert result.finished
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert settings["time_limit"] is None
    check_same(tmp_path, whole)


def test_warnings_survive_a_kill_after_the_last_sample(tmp_path: Path) -> None:
    """What the model's outputs looked like is known, though it is not asked about any sample again."""
    save, kept = sp.EvaluationResult.save, []
    for softmax in (False, True):
        model = nn.Sequential(network(), nn.Softmax(1)) if softmax else network()
        out = tmp_path / str(softmax)
        with pytest.MonkeyPatch.context() as patch:

            def fail(self: Any, folder: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(sp.EvaluationResult, "save", fail)
            with pytest.raises(KeyboardInterrupt):
                run(out, model, attacks=attacks()[:1])
        assert sp.EvaluationResult.save is save
        result = run(out, model, attacks=attacks()[:1])
        assert result.document["data"]["classes"] == 4
        kept.append("probabilities" in [warning.code for warning in result.warnings])
    assert kept == [False, True]


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["run.json", "part-00000", "adversarial-00000", "samples.jsonl", "result.json"])
def test_no_space_leaves_nothing_half_written(moment: str, whole: Path, tmp_path: Path) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name.startswith(moment):
            no_space()
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=f"can't write .*{moment}.*: No space left on device") as error:
            run(tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert "\n" not in str(error.value)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith(".tmp") or name.startswith(moment)]
    run(tmp_path)
    check_same(tmp_path, whole)


def test_no_space_in_the_middle_of_the_journal(whole: Path, tmp_path: Path) -> None:
    """The half that was written is taken back, so that what comes later stands on a line of its own."""
    fsync, calls = os.fsync, 0

    def full(number: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            no_space()
        fsync(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr("sparring.evaluation.tally.FLUSH_SECONDS", 0.0)
        with pytest.raises(OSError, match=r"can't write .*journal.jsonl: No space left"):
            run(tmp_path)
    lines = (tmp_path / ".parts" / "journal.jsonl").read_text().splitlines()
    assert len({json.loads(line)["index"] for line in lines}) == len(lines) > 0
    run(tmp_path)
    check_same(tmp_path, whole)


def test_a_run_without_a_folder_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = run(None)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 1
    assert len(list(result.examples)) > 0
    del result
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="classes"):
        run(None, data=(samples()[0], samples()[1] + 1))  # type: ignore[arg-type]
    import gc

    gc.collect()
    assert not list(tmp_path.iterdir())


def test_out_that_can_not_be_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ValueError, match="file' is a file: expected a folder"):
        run(path)
    assert path.read_text() == "mine"
