"""`evaluate` and `verify` of text models: two attacks side by side, evidence that is checked, a report that shows words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import sparring as sp
from bags import LABELS, SYNONYMS, TEXTS, bag, lstm
from crew import torchrun
from sparring import data, report
from sparring.evaluation import TextResult, merge, schema

MANY = [f"{text} {i}" for i in range(6) for text in TEXTS] + ["<script>alert('x')</script> a good film & more"]
ANSWERS = LABELS * 6 + [1]


def words(**settings: Any) -> sp.WordSubstitution:
    return sp.WordSubstitution(SYNONYMS, **({"max_changed": 1.0} | settings))


def attacks() -> list[Any]:
    return [sp.EmbeddingPGD(0.7, steps=5), words()]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TextResult:
    folder = tmp_path_factory.mktemp("texts") / "run"
    found = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), attacks=attacks(), out=folder, batch_size=8)
    assert isinstance(found, TextResult)
    return found


def test_each_attack_alone_and_all_together(result: TextResult) -> None:
    model = bag(more=MANY)
    right = model.logits(MANY).argmax(1) == torch.tensor(ANSWERS)
    fell = [attack(model, MANY, ANSWERS).success & right for attack in attacks()]
    assert result.clean_accuracy.count == int(right.sum())
    assert 0 < int(fell[0].sum()) < int(right.sum())
    assert 0 < int(fell[1].sum()) < int(right.sum())
    for number, name in enumerate(("EmbeddingPGD", "WordSubstitution")):
        assert result.accuracy_under(name).count == int((right & ~fell[number]).sum())
    assert result.robust_accuracy.count == int((right & ~fell[0] & ~fell[1]).sum())
    assert result.robust.tolist() == (right & ~fell[0] & ~fell[1]).tolist()
    assert result.robust_accuracy.count < min(result.accuracy_under(0).count, result.accuracy_under(1).count)
    with pytest.raises(ValueError, match="expected one of EmbeddingPGD, WordSubstitution"):
        result.accuracy_under("PGD")


def test_the_document_obeys_the_schema_and_counts_every_pass(result: TextResult) -> None:
    document = result.document
    jsonschema.validate(document, schema())
    assert document["task"] == "text"
    rows = list(result.samples())
    assert sum(row["forwards"] for row in rows) == result.forwards
    found = attacks()[1](bag(more=MANY), MANY, ANSWERS)
    for row, queries in zip(rows, found.queries.tolist()):
        assert row["text"] == MANY[row["index"]]
        if row["correct"]:
            assert row["attacks"][1]["queries"] == queries
            # the clean look, what both attacks asked, and each success asked again
            again = sum(entry["fooled"] for entry in row["attacks"])
            assert row["forwards"] == 1 + again + sum(entry["queries"] for entry in row["attacks"])
        else:
            assert row["attacks"] == []
    assert document["attacks"][1]["alone"]["queries"] == pytest.approx(
        sum(row["attacks"][1]["queries"] for row in rows if row["correct"]) / sum(row["correct"] for row in rows)
    )


def test_the_curve_counts_words(result: TextResult) -> None:
    shares = {
        row["index"]: len(row["attacks"][1]["changed"]) / row["attacks"][1]["words"]
        for row in result.samples()
        if row["correct"] and row["attacks"][1]["fooled"]
    }
    right = int(result.correct.sum())
    for point in result.curve:
        below = sum(share <= point["eps"] * (1 + 1e-9) for share in shares.values())
        assert point["value"] == pytest.approx((right - below) / len(MANY))
    assert result.curve[-1]["value"] == pytest.approx(result.accuracy_under("WordSubstitution").value)
    assert result.accuracy_at(0.0).count == right
    assert result.accuracy_at(1.0) == result.accuracy_under("WordSubstitution")
    assert result.accuracy_at(0.3).count == right - sum(share <= 0.3 for share in shares.values())
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        result.accuracy_at(1.5)
    assert repr(result).startswith("TextResult(clean ")


def test_examples_are_texts_that_fool(result: TextResult) -> None:
    model, examples = bag(more=MANY), list(result.examples)
    assert len(examples) == len(MANY) - result.accuracy_under(1).count - int((~result.correct).sum())
    for index, original, changed in examples:
        assert original == MANY[index]
        assert int(model.logits([changed]).argmax()) != ANSWERS[index]
    fooled = examples[0][0]
    assert result.picture(fooled)[0] == MANY[fooled]
    with pytest.raises(KeyError, match="was not fooled"):
        result.picture(int(result.index[result.robust][0]))


def test_the_report_marks_what_was_taken_out_and_put_in(result: TextResult) -> None:
    assert result.folder is not None
    html = (result.folder / "report.html").read_text("utf-8")
    assert "<del>good</del> <ins>great</ins>" in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", html)
    assert (
        "share of a text&#39;s words that may be changed" in html
        or "share of a text's words that may be changed" in html
    )
    assert "samples.jsonl" in html
    for name in ("EmbeddingPGD", "WordSubstitution", "All together"):
        assert name in html


def test_a_report_of_embeddings_alone(tmp_path: Path) -> None:
    found = sp.evaluate(bag(), (TEXTS, LABELS), attacks=sp.EmbeddingPGD(2.0), out=tmp_path)
    assert found.curve == []
    with pytest.raises(ValueError, match="no attack of this run changes words"):
        found.accuracy_at(0.1)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "their words are as they were" in html
    assert "<del>" not in html
    jsonschema.validate(found.document, schema())
    assert sp.verify(tmp_path, bag(), (TEXTS, LABELS)).ok


def test_long_texts_are_shown_round_their_changes() -> None:
    from sparring.report.texts import pieces

    original = " ".join(["word"] * 200 + ["good"] + ["more"] * 200)
    shown = pieces(original, original.replace("good", "great"), [200])
    assert [piece.kind for piece in shown] == ["gap", "kept", "removed", "inserted", "kept", "gap"]
    assert len("".join(piece.text for piece in shown)) < 400
    whole = pieces("a good film", "a great film", [1])
    assert "".join(piece.text for piece in whole if piece.kind != "inserted") == "a good film"
    assert "".join(piece.text for piece in whole if piece.kind != "removed") == "a great film"


def test_nothing_is_fooled_and_the_report_says_so(tmp_path: Path) -> None:
    found = sp.evaluate(bag(), (TEXTS, LABELS), attacks=sp.WordSubstitution({"zebra": ["horse"]}), out=tmp_path)
    assert found.robust_accuracy.count == found.clean_accuracy.count
    assert "no attack of this run fooled the network on any text" in (tmp_path / "report.html").read_text("utf-8")


def test_batches_and_files_do_not_change_the_verdict(result: TextResult, tmp_path: Path) -> None:
    pairs = list(zip(MANY, ANSWERS, strict=True))
    again = sp.evaluate(bag(more=MANY), pairs, attacks=attacks(), batch_size=3)
    assert [row["attacks"] for row in again.samples()] == [row["attacks"] for row in result.samples()]
    assert again.document["data"]["sha256"] == result.document["data"]["sha256"]
    assert again.document["per_class"] == result.document["per_class"]
    loaded = sp.load_result(again.save(tmp_path))
    assert isinstance(loaded, TextResult)
    assert list(loaded.samples()) == list(again.samples())
    assert list(loaded.examples) == list(again.examples)
    assert report.render(loaded.document, loaded.picture)


def test_a_part_of_the_texts() -> None:
    found = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), attacks=words(), max_samples=10, seed=4)
    assert len(found.index) == 10
    assert found.index.tolist() == sorted(set(found.index.tolist()))
    assert found.document["data"]["available"] == len(MANY)
    assert {row["text"] for row in found.samples()} <= set(MANY)


def stopping(after: int) -> Callable[[Any], None]:
    def stop(now: Any) -> None:
        if now.done >= after:
            raise KeyboardInterrupt

    return stop


def test_stopped_and_started_again(result: TextResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.evaluation.tally.TELL_SECONDS", 0.0)
    folder = tmp_path / "run"
    settings: dict[str, Any] = {"attacks": attacks(), "out": folder, "batch_size": 4}
    for after in (5, 20):
        with pytest.raises(KeyboardInterrupt):
            sp.evaluate(bag(more=MANY), (MANY, ANSWERS), **settings, progress=stopping(after))
        kept = len((folder / ".parts" / "journal.jsonl").read_text("utf-8").splitlines())
        assert kept >= after
        assert not (folder / "result.json").exists()
    resumed: list[Any] = []
    found = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), **settings, progress=resumed.append)
    assert resumed[0].resumed >= 20
    assert list(found.samples()) == list(result.samples())
    assert not (folder / ".parts").exists()
    calls = bag(more=MANY)
    calls.forward = None  # type: ignore[method-assign, assignment]
    assert list(sp.evaluate(calls, (MANY, ANSWERS), **settings).samples()) == list(result.samples())


def told(result: TextResult) -> dict[str, Any]:
    """What a result tells of texts and attacks; not of clocks and folders."""
    gone = ("created", "seconds", "settings", "environment", "files")
    kept = {name: value for name, value in result.document.items() if name not in gone}
    return kept | {"attacks": [row | {"seconds": 0} for row in kept["attacks"]]}


def test_shards_merged_are_the_result_of_one_process(result: TextResult, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"attacks": attacks(), "out": tmp_path, "batch_size": 8}
    for number in (2, 0, 1):
        share = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), shard=(number, 3), **settings)
        assert isinstance(share, TextResult)
        assert share.index.tolist() == list(range(number, len(MANY), 3))
        assert share.document["settings"]["shard"] == [number, 3]
    calls = bag(more=MANY)
    calls.forward = None  # type: ignore[method-assign, assignment]
    again = sp.evaluate(calls, (MANY, ANSWERS), shard=(1, 3), **settings)
    assert list(again.samples()) == [row for row in result.samples() if row["index"] % 3 == 1], "known, not asked again"
    merged = merge(tmp_path)
    assert isinstance(merged, TextResult)
    assert list(merged.samples()) == list(result.samples())
    assert told(merged) == told(result)
    assert list(merged.examples) == list(result.examples)
    assert merged.document["settings"]["shards"] == 3
    (tmp_path / "shard-1-of-3" / "shard.json").unlink()
    with pytest.raises(ValueError, match="of 3 shards 1 is not finished"):
        merge(tmp_path)


def test_one_process_takes_over_what_shards_have_finished(result: TextResult, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"attacks": attacks(), "out": tmp_path, "batch_size": 8}
    sp.evaluate(bag(more=MANY), (MANY, ANSWERS), shard=(1, 2), **settings)
    seen: list[Any] = []
    whole = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), **settings, progress=seen.append)
    assert seen[0].resumed == len(MANY) // 2
    assert list(whole.samples()) == list(result.samples())
    assert told(whole) == told(result)


def test_a_folder_of_another_evaluation_is_left_alone(tmp_path: Path) -> None:
    sp.evaluate(bag(), (TEXTS, LABELS), attacks=words(), out=tmp_path)
    with pytest.raises(ValueError, match=r"another tokenizer|another model"):
        sp.evaluate(bag(more=["zebra"]), (TEXTS, LABELS), attacks=words(), out=tmp_path)
    with pytest.raises(ValueError, match=r"other attacks .*max_changed 1\.0, now 0\.5"):
        sp.evaluate(bag(), (TEXTS, LABELS), attacks=words(max_changed=0.5), out=tmp_path)
    with pytest.raises(ValueError, match="evaluation of other data"):
        sp.evaluate(bag(), (TEXTS[::-1], LABELS[::-1]), attacks=words(), out=tmp_path)


def test_time_runs_out(tmp_path: Path) -> None:
    found = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), attacks=words(), batch_size=4, time_limit=1e-6, out=tmp_path)
    assert not found.finished
    assert 0 < len(found.index) < len(MANY)
    assert "time-limit" in [warning.code for warning in found.warnings] or found.unfinished == 0
    whole = sp.evaluate(bag(more=MANY), (MANY, ANSWERS), attacks=words(), batch_size=4, out=tmp_path)
    assert whole.finished
    assert len(whole.index) == len(MANY)


def test_one_class_is_warned_of() -> None:
    found = sp.evaluate(bag(), (TEXTS[::2], LABELS[::2]), attacks=words())
    assert [warning.code for warning in found.warnings] == ["one-class"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (["good", ""], [1, 0])}, "text 1 is empty: take it out"),
        ({"data": (["good", "bad"], [1, 2])}, "the model has 2"),
        ({"data": (["good", "bad"], [1, -1])}, "the model has 2"),
        ({"data": (["good", "bad"], [1])}, "data has 2 texts and 1 labels"),
        ({"data": ([], [])}, "empty"),
        ({"data": (torch.zeros(2, 3), torch.zeros(2).long())}, "expected pairs"),
        ({"data": ([b"good", b"bad"], [1, 0])}, "text 0 is bytes, expected a string: decode it first"),
        ({"attacks": "adaptive"}, "a text model needs its attacks named"),
        ({"attacks": []}, "attacks is empty"),
        ({"attacks": ["pgd"]}, "does not attack texts"),
        ({"attacks": sp.PGD(sp.Linf(0.1))}, "does not attack texts"),
        ({"threat": sp.L2(1.0)}, "is not for texts"),
        ({"access": "scores"}, "is not for texts"),
        ({"shard": (0, 2)}, r"shard=\(0, 2\) without out"),
        ({"time_limit": 0}, "expected seconds"),
    ],
)
def test_what_can_not_be_evaluated_gets_one_line(change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"data": (TEXTS, LABELS), "attacks": words()} | change
    data = settings.pop("data")
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        sp.evaluate(bag(), data, **settings)
    assert "\n" not in str(caught.value)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    model = bag()
    model.classes = ["pos", "neg"]
    (tmp_path / "a.csv").write_text("text,label\na good film,pos\na bad film,neg\n", "utf-8")
    with pytest.raises(
        ValueError, match=r"classes neg, pos, and the model pos, neg: open .* with classes=model\.classes"
    ):
        sp.evaluate(model, data.open_texts(tmp_path / "a.csv"), attacks=[words()])
    turned = data.open_texts(tmp_path / "a.csv", classes=model.classes)
    assert len(sp.evaluate(model, turned, attacks=[words()]).index) == 2
    model.classes = ["0", "1"]  # a model that only counts its classes says nothing about their order
    assert len(sp.evaluate(model, turned, attacks=[words()]).index) == 2


def test_a_bad_text_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    class Reviews:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> tuple[str, int]:
            return (" " if i == 9 else TEXTS[i % 6]), LABELS[i % 6]

    with pytest.raises(ValueError, match="text 9 is empty"):
        sp.evaluate(bag(), Reviews(), attacks=words(), batch_size=2, out=tmp_path)
    assert len((tmp_path / ".parts" / "journal.jsonl").read_text("utf-8").splitlines()) >= 6


class TestVerify:
    @pytest.fixture
    def folder(self, result: TextResult, tmp_path: Path) -> Path:
        return result.save(tmp_path / "run")

    def check(self, folder: Path, **settings: Any) -> Any:
        return sp.verify(folder, bag(more=MANY), (MANY, ANSWERS), **settings)

    def tamper(self, folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Rewrite the samples' lines, with the hash that goes with them."""
        from sparring.evaluation.files import sha256

        path = folder / "samples.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        document = json.loads((folder / "result.json").read_text("utf-8"))
        document["files"]["samples.jsonl"] = sha256(path)
        (folder / "result.json").write_text(json.dumps(document), "utf-8")

    def test_the_truth_passes(self, folder: Path) -> None:
        found = self.check(folder, attacks=attacks())
        assert found.ok, found.lies
        assert found.examples == found.fooling > 0
        assert found.attacked_again > 0
        assert found.fallen == 0

    def entry(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return next(row["attacks"][1] for row in rows if row["correct"] and row["attacks"][1]["fooled"])

    def test_a_text_that_does_not_fool(self, folder: Path) -> None:
        def change(rows: list[dict[str, Any]]) -> None:
            entry = self.entry(rows)
            entry["text"] = entry["text"].replace("great", "fine")

        self.tamper(folder, change)
        assert any("saved texts do not fool the model" in lie for lie in self.check(folder).lies)

    def test_a_text_that_differs_elsewhere(self, folder: Path) -> None:
        def change(rows: list[dict[str, Any]]) -> None:
            self.entry(rows)["text"] += "!"

        self.tamper(folder, change)
        assert any("differ from their originals in other ways" in lie for lie in self.check(folder).lies)

    def test_a_text_of_another_sample(self, folder: Path) -> None:
        def change(rows: list[dict[str, Any]]) -> None:
            rows[3]["text"] = "another text"

        self.tamper(folder, change)
        lies = self.check(folder).lies
        assert any("not those of their fingerprints (first: text 3)" in lie for lie in lies)

    def test_a_verdict_that_was_turned(self, folder: Path) -> None:
        def change(rows: list[dict[str, Any]]) -> None:
            row = next(row for row in rows if row["correct"] and not row["robust"])
            row["robust"] = True

        self.tamper(folder, change)
        lies = self.check(folder).lies
        assert any("does not follow from what the attacks did to it" in lie for lie in lies)
        assert any("robust_accuracy" in lie for lie in lies)

    def test_a_text_said_to_fall_that_stands(self, folder: Path) -> None:
        def change(rows: list[dict[str, Any]]) -> None:
            for row in rows:
                if row["correct"] and row["robust"]:
                    row["attacks"][0] |= {
                        "fooled": True,
                        "norm": 0.7,
                        "prediction": 1 - row["label"],
                        "confidence": 0.6,
                    }
                    row |= {"robust": False, "attack": 0, "prediction": 1 - row["label"]}
                    return

        self.tamper(folder, change)
        assert any("said to fall to EmbeddingPGD do not" in lie for lie in self.check(folder).lies)

    def test_another_model_tokenizer_or_data(self, folder: Path) -> None:
        other = bag(more=[*MANY, "zebra"])
        lies = sp.verify(folder, other, (MANY, ANSWERS)).lies
        assert any("the model's weights are not those of the run" in lie for lie in lies)
        assert any("the model's tokenizer" in lie for lie in lies)
        lies = sp.verify(folder, bag(more=MANY), (MANY[::-1], ANSWERS[::-1])).lies
        assert any("the data is not that of the run" in lie for lie in lies)

    def test_a_picture_model_is_told_apart(self, folder: Path) -> None:
        with pytest.raises(TypeError, match="the result is about texts and the model is a Linear"):
            sp.verify(folder, torch.nn.Linear(2, 2))

    def test_recorded_attacks_find_what_was_called_robust(self, tmp_path: Path) -> None:
        (tmp_path / "pairs.txt").write_text("good great\nlovely dull\nstory tale\n", "utf-8")
        folder = tmp_path / "run"
        sp.evaluate(
            bag(), (TEXTS, LABELS), attacks=sp.WordSubstitution(tmp_path / "pairs.txt", max_changed=1.0), out=folder
        )
        assert sp.verify(folder, bag(), (TEXTS, LABELS)).attacked_again > 0

        def change(rows: list[dict[str, Any]]) -> None:
            row = next(row for row in rows if not row["robust"])
            row["attacks"][0] = {"fooled": False, "queries": row["attacks"][0]["queries"], "backwards": 0}
            row |= {"robust": True, "attack": -1, "prediction": -1, "norm": None, "distance": None}

        self.tamper(folder, change)
        assert any("claimed robust fall to WordSubstitution" in lie for lie in sp.verify(folder, bag()).lies)


def lines(path: Path) -> Iterator[str]:
    return iter(path.read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("command")
    model = lstm(MANY, seed=3)
    model.save(home / "model")
    labels = model.logits(MANY).argmax(1).tolist()
    labels[0] = 1 - labels[0]
    rows = ["review;sentiment", *(f'"{t}";{("negative", "positive")[y]}' for t, y in zip(MANY, labels))]
    (home / "reviews.csv").write_text("\n".join(rows), "utf-8")
    (home / "pairs.txt").write_text("good bad\nlovely awful\nfilm tale\n", "utf-8")
    return home


class TestCommandLine:
    def run(self, capsys: pytest.CaptureFixture[str], *tokens: object) -> tuple[int, str, str]:
        from sparring.cli import main

        code = main([str(token) for token in tokens])
        said = capsys.readouterr()
        return code, said.out, said.err

    def asked(self, reviews: Path, data: str = "reviews.csv", **options: object) -> list[object]:
        given = {"model": reviews / "model", "data": reviews / data, "synonyms": reviews / "pairs.txt", **options}
        named = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
        return ["evaluate", "--task", "text", *named]

    def test_evaluate_and_verify(self, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
        asked = [
            *self.asked(reviews, out=reviews / "run"),
            "--attacks",
            "embeddings:eps=1,steps=5",
            "words:max_changed=1",
        ]
        code, out, err = self.run(capsys, *asked, "--fail-under", "0.99", "--junit", reviews / "junit.xml")
        assert code == 1, err
        assert "EmbeddingPGD, 5 steps" in out
        assert "37 texts withstand changes of 100% of the words or L2 1 in the embeddings" in out
        assert "robust accuracy" in (reviews / "junit.xml").read_text("utf-8")
        rows = [json.loads(line) for line in lines(reviews / "run" / "samples.jsonl")]
        assert sum(row["correct"] for row in rows) == 36
        code, out, err = self.run(capsys, "verify", reviews / "run")
        assert code == 0, err + out
        assert "The result says the truth." in out
        assert "attacked again" in out

    def test_shards_and_merge(self, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for number in (0, 1):
            code, out, err = self.run(
                capsys, *self.asked(reviews, out=reviews / "shares", attacks="words", shard=f"{number}/2")
            )
            assert code == 0, err
            assert f"Shard {number} of 2 is done." in out
        code, out, err = self.run(capsys, "merge", reviews / "shares")
        assert code == 0, err
        assert "texts withstand changes" in out
        assert self.run(capsys, *self.asked(reviews, out=reviews / "whole", attacks="words"))[0] == 0
        assert list(lines(reviews / "shares" / "samples.jsonl")) == list(lines(reviews / "whole" / "samples.jsonl"))
        assert self.run(capsys, "verify", reviews / "shares")[0] == 0
        code, _, err = self.run(capsys, *self.asked(reviews, shard="2/2"))
        assert code == 2
        assert "--shard 2/2: expected I/N" in err

    @pytest.mark.slow
    @pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch can't talk to other processes")
    def test_two_processes_find_what_one_does(self, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
        typed = [str(part) for part in self.asked(reviews, attacks="words")] + ["--batch-size", "8", "--device", "cpu"]
        done = torchrun(reviews, "-m", "sparring", *typed, "--out", "both", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["settings"]["shards"] == 2
        assert self.run(capsys, *typed, "--out", reviews / "one")[0] == 0
        assert list(lines(reviews / "both" / "samples.jsonl")) == list(lines(reviews / "one" / "samples.jsonl"))
        assert not list((reviews / "both").glob("shard-*"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"synonyms": None}, "--synonyms is missing: give a file of them, ppdb or wordnet"),
            ({"synonyms": "none.txt"}, "no synonyms file none.txt"),
            ({"model": "nowhere"}, "--model nowhere: no such folder"),
            ({"data": "nowhere.csv"}, "no such file"),
            ({"norm": "l2"}, "--norm is about images: leave it out with --task text"),
            ({"attacks": "pgd"}, "texts are attacked by words or embeddings"),
            ({"attacks": "words:max_change=1"}, "words has no setting 'max_change'. Did you mean 'max_changed'?"),
            ({"attacks": "embeddings"}, "needs a length, such as embeddings:eps=5"),
            ({"time-limit": "0"}, "expected seconds, above 0"),
        ],
    )
    def test_mistakes_get_one_line(
        self, reviews: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
    ) -> None:
        code, _, err = self.run(capsys, *self.asked(reviews, **change))
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1

    def test_stopped_with_ctrl_c_it_goes_on(
        self, reviews: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = [
            *self.asked(reviews, out=reviews / "stopped"),
            "--attacks",
            "embeddings:eps=1,steps=1",
            "--batch-size",
            "4",
        ]
        from sparring.text import TextClassifier

        ask, looks = TextClassifier.forward, 0

        def forward(self: TextClassifier, x: Any) -> torch.Tensor:
            nonlocal looks
            looks += 1
            if looks == 20:
                raise KeyboardInterrupt
            return ask(self, x)

        monkeypatch.setattr(TextClassifier, "forward", forward)
        monkeypatch.setattr("sparring.evaluation.tally.TELL_SECONDS", 0.0)
        code, _, err = self.run(capsys, *asked)
        assert code == 130
        assert f"samples kept in {reviews / 'stopped'}; the same command goes on from there" in err.splitlines()[-1]
        code, _, err = self.run(capsys, *asked)
        assert code == 0, err
        assert "samples were done by an earlier start: going on from there" in err

    def test_verify_reads_another_table_like_the_results_own(
        self, reviews: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The columns can't be found: one of numbers, and one of notes, stand before them."""
        rows = (reviews / "reviews.csv").read_text("utf-8").splitlines()[1:]
        table = "\n".join(["id;note;wrote;felt", *(f"{i};some note;{row}" for i, row in enumerate(rows))])
        for name in ("own.csv", "copy.csv"):
            (reviews / name).write_bytes(table.encode("utf-16"))
        how = {"text-column": "wrote", "label-column": "felt", "encoding": "utf-16", "out": reviews / "named"}
        code, _, err = self.run(capsys, *self.asked(reviews, "own.csv", **how))
        assert code == 0, err
        code, out, err = self.run(capsys, "verify", reviews / "named", "--data", reviews / "copy.csv")
        assert code == 0, err + out
        assert "The result says the truth." in out

    def test_another_encoding(self, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = reviews / "latin.csv"
        path.write_bytes("text,label\na good café,positive\na bad film,negative\n".encode("latin-1"))
        asked = self.asked(reviews, "latin.csv")
        code, _, err = self.run(capsys, *asked, "--out", reviews / "latin")
        assert code == 2
        assert "save it as UTF-8, or say which encoding it has" in err
        code, _, err = self.run(capsys, *asked, "--out", reviews / "latin", "--encoding", "latin-1")
        assert code == 0, err
        assert "café" in json.loads(next(lines(reviews / "latin" / "samples.jsonl")))["text"]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pages

    monkeypatch.chdir(tmp_path)
    names, blocks = pages.run("text-attacks.md")
    assert blocks == 3
    assert names["checked"].ok
    result = names["result"]
    assert result.clean_accuracy.value > 0.85
    assert result.robust_accuracy.count < result.accuracy_under("WordSubstitution").count < result.clean_accuracy.count
    assert [warning.code for warning in result.warnings] == []


def test_a_hugging_face_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({w for t in TEXTS for w in t.lower().split()}),
        "##s",
    ]
    vocabulary += sorted({word for others in SYNONYMS.values() for word in others} - set(vocabulary))
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    tokenizer = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    model = sp.TextClassifier(transformers.BertForSequenceClassification(config), tokenizer)
    labels = model.logits(TEXTS).argmax(1).tolist()
    tried = [sp.EmbeddingPGD(2.0, steps=5), words(), words(rank="gradient")]
    found = sp.evaluate(model, (TEXTS, labels), attacks=tried, out=tmp_path / "run", batch_size=4)
    assert found.clean_accuracy.value == 1.0
    assert found.accuracy_under(0).count < len(TEXTS)
    assert found.backwards > 0
    model.save(tmp_path / "model")
    again = sp.TextClassifier.load(tmp_path / "model")
    checked = sp.verify(tmp_path / "run", again, (TEXTS, labels), attacks=tried)
    assert checked.ok, checked.lies
    assert checked.fallen == 0
