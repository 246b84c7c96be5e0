"""Tables of texts: without labels, and with headers of unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.data import open_texts
from sparring.data.text import open_unlabelled_texts
from test_text_train import table

# tables without labels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text\n"good, good"\na bad film\n'),
        ("b.csv", '"good, good"\na bad film\n'),
        ("c.csv", 'text,label\n"good, good",\na bad film,\n'),
        ("d.csv", 'text,label\n"good, good",unknown\na bad film,unknown\n'),
        ("e.csv", 'id,text\n1,"good, good"\n2,a bad film\n'),
        ("f.csv", 'comments,sentiment\n"good, good",pos\na bad film,\n'),
        ("g.csv", '7,"good, good"\n8,a bad film\n'),
        ("h.tsv", "id\tlabel\ttext\n1\t\tgood, good\n2\t\ta bad film\n"),
        ("i.txt", "good, good\n\n a bad film \n"),
    ],
)
def test_texts_are_read_without_labels(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert open_unlabelled_texts(tmp_path / name) == (["good, good", "a bad film"], ())


def test_unlabelled_texts_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,good\n2,\n", "utf-8")
    with pytest.raises(ValueError, match=r"a\.csv: row 3 has an empty text; skip_bad"):
        open_unlabelled_texts(path)
    assert open_unlabelled_texts(path, skip_bad=True) == (["good"], ("row 3 has an empty text",))
    assert open_unlabelled_texts(path, text_column="id") == (["1", "2"], ())
    with pytest.raises(ValueError, match=r"there is no column 'body' for the text: it has id, text"):
        open_unlabelled_texts(path, text_column="body")
    (tmp_path / "b.txt").write_text("schön", "latin-1")
    with pytest.raises(ValueError, match=r"b\.txt: line 1 is no utf-8"):
        open_unlabelled_texts(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text("\n", "utf-8")
    with pytest.raises(ValueError, match=r"c\.txt: it is empty"):
        open_unlabelled_texts(tmp_path / "c.txt")
    with pytest.raises(FileNotFoundError, match="no such file, nor a known name"):
        open_unlabelled_texts(tmp_path / "d.csv")
    assert len(open_unlabelled_texts("sms-spam")[0]) == len(open_texts("sms-spam"))


# headers of unknown names


@pytest.mark.parametrize("header", ["foo,bar", "foo,1st opinion"])
def test_a_header_of_unknown_names_is_no_row(tmp_path: Path, header: str) -> None:
    path = table(tmp_path / "a.csv", header)
    with pytest.raises(ValueError) as raised:
        open_texts(path)
    label = header.split(",")[1]
    quoted = label if label == "bar" else f"'{label}'"
    assert f"row 1 looks like a header, as no other row has its label, {label!r}" in str(raised.value)
    assert f"name the columns (--text-column foo --label-column {quoted})" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert open_texts(path, text_column="foo", label_column=label).classes == ["neg", "pos"]
    with pytest.raises(ValueError, match="row 1 looks like a header"):
        open_texts(path, classes=["neg", "pos"])


def test_tables_without_a_header_are_read_as_before(tmp_path: Path) -> None:
    """A label that comes once may be a rare class: a number, one that was told, one among others, that of a long text."""
    long = "a film of which nobody in the whole of this house could say what it was about"
    for first, rows, options in (
        (("so so", "3"), [("bad", "1"), ("good", "5")] * 5, {}),
        (("so so", "neg"), [("good", "pos")] * 5, {"classes": ["neg", "pos"]}),
        (("so so", "mixed"), [("good", "pos"), ("bad", "neg")], {}),
        ((long, "mixed"), [("good", "pos"), ("bad", "neg")] * 5, {}),
    ):
        found = open_texts(table(tmp_path / "a.csv", None, [first, *rows]), **options)
        assert found.texts[0] == first[0]
