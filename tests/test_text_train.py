"""Tables of texts, and ``sparring train --task text``."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring import data, zoo
from sparring.cli.app import main
from sparring.data import open_texts
from sparring.text import TextClassifier, build_tokenizer

ROWS = [("a good film", "pos"), ("a bad film", "neg"), ("good, good", "pos"), ("what a bad day", "neg")] * 10
STORED = Path(os.environ.get("SPARRING_DATA", "nowhere")) / "text"


def table(path: Path, header: str | None = "review,sentiment", rows: list[tuple[str, str]] = ROWS) -> Path:
    lines = [] if header is None else [header]
    path.write_text("\n".join([*lines, *(f'"{text}",{label}' for text, label in rows)]) + "\n", "utf-8")
    return path


# tables


def test_columns_are_found_or_told(tmp_path: Path) -> None:
    found = open_texts(table(tmp_path / "a.csv"))
    assert (found.texts[2], found.labels[:4], found.classes) == ("good, good", [1, 0, 1, 0], ["neg", "pos"])
    bare = open_texts(table(tmp_path / "b.csv", None))
    assert (bare.texts, bare.labels) == (found.texts, found.labels)
    (tmp_path / "c.tsv").write_text('id\tlabel\twords\n1\t0\tsay "good"\n2\t1\tbad\t\n', "utf-8")
    told = open_texts(tmp_path / "c.tsv", text_column="words")
    assert (told.texts, told.labels) == (['say "good"', "bad"], [0, 1])
    assert open_texts(tmp_path / "c.tsv", text_column="2", label_column="0").labels == [0, 1]
    (tmp_path / "d.csv").write_text("\ufeffText;Label\na;10\nb;9\n", "utf-8")
    assert open_texts(tmp_path / "d.csv").classes == ["9", "10"], "numbers in their own order"
    with lzma.open(tmp_path / "e.tsv.xz", "wt", encoding="utf-8") as file:
        file.write("spam\tyou won\nham\tsee you\nspam\twin\n")
    assert open_texts(tmp_path / "e.tsv.xz").texts == ["you won", "see you", "win"]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"", {}, "it is empty"),
        (b"text,label\n", {}, "it has a header and no rows"),
        (b"text,label\ngood,1\n,0\nbad,0\n", {}, "row 3 has an empty text; skip_bad (--skip-bad) leaves such rows out"),
        (b"text,label\ngood,1\n ,0\nbad,\n", {}, "row 3 has an empty text (and 1 more rows are like it)"),
        (b"text,label\ngood,1\nbad\n", {}, "row 3 has 1 columns, expected 2"),
        (b"text,label\ngood,1\n\nbad\n", {}, "row 4 has 1 columns, expected 2"),
        (b"text,label\ngood,1\nlong, and bad,0\n", {}, "row 3 has 3 columns, expected 2: quote texts that hold commas"),
        (b"label,text\n1,good\n0,long, and bad\n", {}, "row 3 has 3 columns, expected 2: quote texts that hold commas"),
        (b"text,label\ngood,1\nbad,1\n", {}, "every row has the label '1': expected two classes or more"),
        ("text,label\nschön,1\nbad,0\n".encode("latin-1"), {}, "line 2 is no utf-8 (byte 0xf6)"),
        ("text,label\ngood,1\n".encode("utf-16"), {"encoding": "latin-1"}, "it holds zero bytes"),
        (b"text,label\ngood,1\n", {"encoding": "latin-99"}, "encoding='latin-99' is none that Python knows"),
        (
            b"text,label\ngood,1\nbad,0\n",
            {"text_column": "review"},
            "there is no column 'review' for the text: it has text, label",
        ),
        (
            b"text,label\ngood,1\nbad,0\n",
            {"label_column": "7"},
            "there is no column '7' for the label: it has text, label",
        ),
        (b"good\nbad\n", {}, "expected a column of texts and one of labels"),
        (b"text,label\ngood,1\nbad,2\n", {"classes": ["0", "1"]}, "row 3 has label '2': expected one of 0, 1"),
        (b'text,label\n"good" film,1\nbad,0\n', {}, "not a table of comma-separated values"),
        (
            "".join(f"{i},text {i}\n" for i in range(30)).encode(),
            {"label_column": "1"},
            "every row has a label of its own",
        ),
    ],
)
def test_bad_tables_get_one_line(tmp_path: Path, content: bytes, options: dict[str, str], said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        open_texts(path, **options)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_rows_left_out_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,1\n,0\nbad,0\nfine\n", "utf-8")
    found = open_texts(tmp_path / "a.csv", skip_bad=True)
    assert (found.texts, found.labels) == (["good", "bad"], [1, 0])
    assert found.skipped == ("row 3 has an empty text", "row 5 has 1 columns, expected 2")


def test_named_sets_are_known_and_come_in_parts() -> None:
    parts = [open_texts("sms-spam", split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 5574
    assert all(abs(sum(part.labels) / len(part) - 747 / 5574) < 0.002 for part in parts)
    with pytest.raises(FileNotFoundError, match="nor a known name"):
        open_texts("imdb-2")
    with pytest.raises(ValueError, match="brings its own columns"):
        open_texts("sms-spam", text_column="text")


@pytest.mark.skipif(not STORED.is_dir(), reason="needs the texts under $SPARRING_DATA")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("rotten-tomatoes", (8528, 1066, 1068)), ("sst2", (6920, 872, 1821)), ("imdb-sample", (1800, 200, 2000))],
)
def test_stored_sets(name: str, sizes: tuple[int, int, int]) -> None:
    parts = [open_texts(name, split) for split in data.text.SPLITS]
    assert tuple(map(len, parts)) == sizes
    assert parts[0].classes == ["negative", "positive"]


# training


def run(path: Path, *more: str, epochs: int = 1) -> int:
    small = ("--model-args", "embedding=8", "hidden=8", "--batch-size", "8", "--quiet", "--lr", "0.05")
    more = (*more, "--epochs", str(epochs))
    return main(["train", "--task", "text", "--data", str(path), "--out", str(path.parent / "run"), *small, *more])


def test_a_table_becomes_a_folder_that_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "reviews.csv")
    assert run(path, "--pretrain", "1", "--json", "--strategy", "both", "--ema", "0.8", epochs=8) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["classes"] == ["neg", "pos"]
    model = TextClassifier.load(tmp_path / "run")
    assert model.logits(["good film", "bad film"]).argmax(1).tolist() == [1, 0]
    assert (tmp_path / "run" / "language" / "history.json").is_file()
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert run(path, "--pretrain", "1", "--json", "--strategy", "both", "--ema", "0.8", epochs=8) == 0
    assert "nothing was learned again" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("more", [(), ("--pretrain", "1"), ("--unlabelled", "others.txt", "--strategy", "vat")])
def test_texts_of_like_length_share_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Columns that are computed beside tokens that there are: padding is spared, unless chance is asked for."""
    texts = [(" ".join(["good" if i % 2 else "bad"] * (1 + i * 7 % 40)), "pos" if i % 2 else "neg") for i in range(240)]
    (tmp_path / "others.txt").write_text("\n".join(text for text, _ in texts), "utf-8")
    monkeypatch.chdir(tmp_path)
    path, encoded, seen = table(tmp_path / "reviews.csv", rows=texts), TextClassifier.encoded, []

    def spy(self: TextClassifier, x: Any) -> Any:
        found = encoded(self, x)
        seen.append((found.ids.numel(), int(found.mask.sum())))
        return found

    monkeypatch.setattr(TextClassifier, "encoded", spy)
    waste = []
    for flag in ((), ("--no-by-length",)):
        seen.clear()
        assert run(path, "--fresh", "--validation", "none", *flag, *(more or ("--strategy", "standard"))) == 0
        waste.append(sum(columns for columns, _ in seen) / sum(tokens for _, tokens in seen))
    assert waste[0] < 1.1
    assert waste[1] > 1.5


@pytest.mark.parametrize("strategy", ["standard", "vat", "fgm", "freelb", "smart"])
def test_every_strategy_by_name(tmp_path: Path, strategy: str) -> None:
    others = tmp_path / "others.txt"
    others.write_text("an unheard good thing\n\nbad weather\n", "utf-8")
    more = ("--unlabelled", str(others)) if strategy == "vat" else ()
    assert run(table(tmp_path / "reviews.csv"), "--strategy", strategy, *more) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text("utf-8"))
    assert history["epochs"][0]["forwards"] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--strategy", "pgd"), "--strategy 'pgd': no such strategy for texts"),
        (("--strategy", "standard", "--eps", "1"), "--eps is no setting of standard, but of"),
        (("--model", "bert"), "--model 'bert': expected lstm, or the folder of a Hugging Face model"),
        (("--strategy", "vat", "--unlabelled", "no.txt"), "--unlabelled no.txt: no such file"),
        (
            ("--strategy", "standard", "--unlabelled", "no.txt"),
            "--unlabelled: standard learns nothing from texts without labels; --strategy vat and both do, and --pretrain",
        ),
        (("--validation", "no.csv"), "no such file, nor a known name"),
        (("--text-column", "texts"), "there is no column 'texts' for the text"),
        (("--eps", "0"), "eps=0.0"),
        (("--pretrain", "-1"), "expected a number of epochs, 0 or more"),
        (("--norm", "l2"), "Unknown option"),
    ],
)
def test_what_cannot_be_trained_gets_one_line(
    tmp_path: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(table(tmp_path / "reviews.csv"), *more) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_rate_of_zero_is_no_rate_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "reviews.csv")
    assert main(["train", "--task", "text", "--data", str(path), "--out", str(tmp_path / "run"), "--lr", "0"]) == 2
    assert "lr=0.0: expected" in capsys.readouterr().err


def test_a_hugging_face_folder_is_fine_tuned(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra sparring[huggingface]")

    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer([text for text, _ in ROWS]),
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
    )
    config = transformers.DistilBertConfig(vocab_size=30, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    path = table(tmp_path / "reviews.csv")
    command = [
        "train",
        "--task",
        "text",
        "--data",
        str(path),
        "--model",
        str(tmp_path / "bert"),
        "--epochs",
        "1",
        "--quiet",
    ]
    assert main([*command, "--out", str(tmp_path / "run"), "--strategy", "freelb"]) == 0
    assert TextClassifier.load(tmp_path / "run").classes == ["neg", "pos"]


def test_what_is_odd_about_the_tables_is_a_note_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = table(tmp_path / "one.csv", rows=[("a bad film", "neg")] * 4)
    rows = [("good " * 30, "pos"), *ROWS]
    assert run(table(tmp_path / "reviews.csv", rows=rows), "--validation", str(one), "--max-length", "20") == 0
    told = capsys.readouterr().err
    assert (
        "--validation one.csv holds only 'neg': its accuracy, which chooses the best epoch, says nothing of pos\n"
        in told
    )
    assert "\n1 of 41 texts are longer than 20 tokens: what comes after is not read\n" in f"\n{told}"
    assert "UserWarning" not in told
    assert ".py" not in told


def test_help_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """As `build` does it: FGM has its own length."""
    from sparring.cli.train_text import TextTrainSettings, build

    assert main(["train", "--task", "text", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "left out: 1/16 of a word vector's length, and 1 for fgm" in told
    assert "both: of the adversarial one" in told
    tokenizer = build_tokenizer([text for text, _ in ROWS])
    network = zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), embedding=8, hidden=8)
    model = TextClassifier(network, tokenizer, 2)
    eps = pytest.approx(model.vector_length() / 16, rel=1e-2)
    for strategy, expected in {"adversarial": eps, "vat": eps, "both": eps, "fgm": 1.0}.items():
        made = build(TextTrainSettings(strategy=strategy), model)
        assert made.settings()["eps"] == expected, strategy
    both = build(TextTrainSettings(strategy="both", weight=3.0), model)
    assert (both.settings()["weight"], both.parts[0].weight) == (3.0, 1.0)
