"""Word substitution: the best substitution where it is known, and what holds for every text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparring as sp
from bags import LABELS, SYNONYMS, TEXTS, bag, lstm
from sparring.text import TextClassifier, WordSubstitution
from sparring.text.attacks.words import STOP_WORDS, Words, cased, differing

WORDS = ["alpha", "beta", "gamma", "delta", "kappa", "sigma", "omega", "theta", "zeta", "iota"]
weights_of = st.lists(st.integers(-8, 8), min_size=len(WORDS), max_size=len(WORDS))
text_of = st.lists(st.sampled_from([*WORDS, "the", "of"]), min_size=1, max_size=9)
table_of = st.dictionaries(st.sampled_from(WORDS), st.lists(st.sampled_from(WORDS), max_size=4), max_size=8)


def greedy(
    words: list[str], weights: dict[str, float], label: int, table: dict[str, list[str]], most: int
) -> list[str]:
    """The search on a bag of words, by hand: the heaviest words first, each by its lightest synonym, until it is wrong."""
    sign = 1 if label else -1
    now = list(words)

    def margin(text: list[str]) -> float:
        return -sign * sum(weights.get(word, 0.0) for word in text)

    def wrong(text: list[str]) -> bool:
        return margin(text) > 0 or (margin(text) == 0 and label == 1)  # of equal logits the first class is predicted

    options = {i: [o for o in dict.fromkeys(table.get(w, [])) if o != w] for i, w in enumerate(words)}
    order = sorted((i for i in options if options[i]), key=lambda i: -sign * weights.get(words[i], 0.0))
    changed = 0
    for i in order if not wrong(now) else []:
        if changed == most:
            break
        tried = [[*now[:i], other, *now[i + 1 :]] for other in options[i]]
        best = max(tried, key=margin)
        if wrong(best) or margin(best) > margin(now):
            now, changed = best, changed + 1
        if wrong(now):
            break
    return now


@given(weights_of, text_of, table_of, st.integers(0, 1), st.sampled_from([0.3, 0.5, 1.0]))
def test_a_bag_of_words_is_attacked_as_by_hand(
    numbers: list[int], words: list[str], table: dict[str, list[str]], label: int, share: float
) -> None:
    # all different, so that no order among equals is left to chance
    weights = {word: number + k / 64 for k, (word, number) in enumerate(zip(WORDS, numbers))}
    model = bag(weights, [" ".join([*WORDS, "the", "of"])])
    attack = WordSubstitution(table, max_changed=share)
    found = attack(model, [" ".join(words)], [label])
    expected = greedy(words, weights, label, table, math.floor(share * len(words) + 1e-9))
    assert found.texts == [" ".join(expected)]
    assert found.changed == [tuple(i for i, (a, b) in enumerate(zip(words, expected)) if a != b)]
    total = sum(weights.get(word, 0.0) for word in expected)
    assert float(found.objective[0]) == pytest.approx(-total if label else total, abs=1e-9)
    by_gradient = WordSubstitution(table, max_changed=share, rank="gradient")(model, [" ".join(words)], [label])
    assert by_gradient.texts == found.texts  # the margin is linear, so the gradient says what a deletion does
    assert by_gradient.backwards <= 1


def test_what_it_costs_and_what_it_says() -> None:
    found = WordSubstitution(SYNONYMS, max_changed=1.0)(bag(), TEXTS[:2], LABELS[:2])
    # text 0: itself, two deletions, two synonyms of good; text 1: the same and film's, since bad's do not suffice
    assert found.queries.tolist() == [5, 6]
    assert found.forwards == 11
    assert found.success.tolist() == [True, False]
    assert found.texts == ["a great film", "a weak film"]
    assert found.similarity.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert "no sentence encoder" in found.measure
    assert repr(found) == "AdversarialTexts(1 of 2 succeeded, 11 forwards, 0 backwards)"


def test_what_is_wrong_to_begin_with_is_left_as_it_is() -> None:
    found = WordSubstitution(SYNONYMS)(bag(), ["a good film"], [0])
    assert found.success.all()
    assert found.texts == ["a good film"]
    assert found.queries.tolist() == [1]


@given(
    st.text(st.sampled_from("Ga bé'-.,!?\t\n0’好_"), min_size=1, max_size=60).filter(lambda text: bool(text.strip())),
    st.integers(0, 1),
    st.integers(1, 12),
    st.sampled_from(["deletion", "gradient"]),
    st.sampled_from([0.25, 1.0]),
)
def test_nothing_changes_but_what_is_reported(text: str, label: int, budget: int, rank: str, share: float) -> None:
    words = Words(text)
    table = {word.lower(): ["alpha", "beta-gamma", "zé", "G"] for word in words.words}
    model = lstm([text, "alpha beta gamma zé g"], seed=budget)
    attack = WordSubstitution(table, rank=rank, max_changed=share, queries=budget)
    found = attack(model, [text], [label])
    assert int(found.queries[0]) <= budget
    assert int(found.words[0]) == len(words)
    assert differing(text, found.texts[0]) == found.changed[0]
    assert len(found.changed[0]) <= share * len(words)
    new = Words(found.texts[0]).words
    for i in found.changed[0]:
        assert words.words[i].lower() not in STOP_WORDS
        assert new[i] in {cased(other, words.words[i]) for other in table[words.words[i].lower()]}
    said = model.logits(found.texts).argmax(1)
    assert said.tolist() == found.prediction.tolist()
    assert (said != label).tolist() == found.success.tolist()
    assert attack.wrong_with(text, found.texts[0]) is None


@pytest.mark.parametrize("rank", ["deletion", "gradient"])
def test_company_and_order_do_not_matter(rank: str) -> None:
    texts = [
        f"{a} {b} , {c} ."
        for a in ("Good", "bad")
        for b in ("film", "story tale of")
        for c in ("lovely", "AWFUL boring")
    ]
    labels = [i % 2 for i in range(len(texts))]
    model, attack = lstm(texts), WordSubstitution(SYNONYMS, rank=rank, max_changed=1.0)
    whole = attack(model, texts, labels, batch_size=256)
    for batch_size in (1, 3):
        again = attack(model, texts[::-1], labels[::-1], batch_size=batch_size)
        assert again.texts[::-1] == whole.texts
        assert again.queries.tolist()[::-1] == whole.queries.tolist()
        assert torch.allclose(again.objective.flip(0), whole.objective, atol=1e-12)
    alone = [attack(model, [text], [label]).texts[0] for text, label in zip(texts, labels)]
    assert alone == whole.texts


def test_the_budget_is_spent_and_no_more() -> None:
    model = bag()
    text = "good good good good lovely lovely story"
    asked = []
    for budget in range(1, 40):
        found = WordSubstitution(SYNONYMS, max_changed=1.0, queries=budget)(model, [text], [1])
        asked.append(int(found.queries[0]))
        assert asked[-1] <= budget
    assert asked == sorted(asked)
    free = WordSubstitution(SYNONYMS, max_changed=1.0)(model, [text], [1])
    assert int(free.queries[0]) == asked[-1] > 10


def test_capitals_and_what_stands_between_words_are_kept() -> None:
    found = WordSubstitution(SYNONYMS, max_changed=1.0)(bag(), ["  Good,\tlovely FILM... (bad)!\n"], [1])
    assert found.success.all()
    assert found.texts == ["  Great,\tlovely FILM... (bad)!\n"]


def test_stop_words_and_words_without_synonyms_cost_nothing() -> None:
    model = bag()
    found = WordSubstitution({"the": ["good"], "and": ["good"]})(model, ["the bad and the boring"], [0])
    assert found.queries.tolist() == [1]
    allowed = WordSubstitution({"and": ["good", "lovely"]}, stop_words=frozenset(), max_changed=1.0)
    assert allowed(model, ["the bad and the boring"], [0]).texts == ["the bad good the boring"]


class Parts:
    """Tags from a list of verbs; everything else is a noun."""

    def __init__(self, *verbs: str) -> None:
        self.verbs = verbs

    def tags(self, words: Sequence[str]) -> list[frozenset[str]]:
        return [frozenset({"verb" if word.lower() in self.verbs else "noun"}) for word in words]

    def describe(self) -> dict[str, str]:
        return {"tagger": "a list"}


def test_a_synonym_must_be_the_same_part_of_speech() -> None:
    free = WordSubstitution(SYNONYMS, max_changed=1.0)(bag(), ["a good film"], [1])
    bound = WordSubstitution(SYNONYMS, max_changed=1.0, tagger=Parts("great"))(bag(), ["a good film"], [1])
    assert free.texts == ["a great film"]
    assert bound.texts == ["a fine movie"]
    assert int(bound.queries[0]) == 5  # great was never asked for


class Counts:
    """A sentence's vector: how often it has each letter."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(text.count(chr(97 + k))) for k in range(26)] for text in texts])

    def describe(self) -> dict[str, str]:
        return {"encoder": "letters"}


def test_a_text_must_stay_like_the_original() -> None:
    model, text = bag(), "good story film"
    for least in (0.99, 0.95, 0.9, 0.5):
        found = WordSubstitution(SYNONYMS, max_changed=1.0, encoder=Counts(), min_similarity=least)(model, [text], [1])
        vectors = Counts()([text, found.texts[0]])
        cosine = float(torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:]))
        assert cosine >= least
        assert float(found.similarity[0]) == pytest.approx(cosine)
    assert found.success.all()
    assert found.measure == "cosine of sentences"


def test_of_texts_that_fool_the_most_similar_counts() -> None:
    model = bag({"good": 1.0, "goof": -1.0, "xyzw": -3.0})
    table = {"good": ["xyzw", "goof"]}
    assert WordSubstitution(table, max_changed=1.0)(model, ["good"], [1]).texts == ["xyzw"]
    kept = WordSubstitution(table, max_changed=1.0, encoder=Counts(), min_similarity=0.0)
    assert kept(model, ["good"], [1]).texts == ["goof"]


def test_logits_that_are_not_finite_are_no_success() -> None:
    model = bag({"good": 1.0, "fine": math.nan})
    found = WordSubstitution({"good": ["fine"]}, max_changed=1.0)(model, ["a good film"], [1])
    assert not found.success.any()
    assert found.texts == ["a good film"]


def test_the_model_is_given_back_as_it_was() -> None:
    model = lstm().train()
    weight = model.model.out.weight
    weight.grad = torch.ones_like(weight)
    WordSubstitution(SYNONYMS, rank="gradient")(model, TEXTS, LABELS)
    assert all(module.training for module in model.modules())
    assert weight.requires_grad
    assert bool((weight.grad == 1).all())


@pytest.mark.parametrize(
    ("texts", "y", "message"),
    [
        ("a good film", [1], "texts is str: expected a list of strings"),
        (["a good film", " \n"], [1, 0], "text 1 is empty: take it out"),
        ([b"good"], [1], "text 0 is bytes, expected a string: decode it first"),
        (["good \udcff film"], [1], "text 0 holds half a character"),
        (["good"], [2], "the model has 2"),
        (["good"], [0, 1], "for 1 texts: expected"),
        (["good"], [0.5], "expected whole numbers"),
        (["good"], ["one"], "expected whole numbers"),
    ],
)
def test_what_can_not_be_attacked_gets_one_line(texts: object, y: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        WordSubstitution(SYNONYMS)(bag(), texts, y)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_bare_network_is_no_text_classifier() -> None:
    with pytest.raises(TypeError, match=r"expected sparring\.text\.TextClassifier"):
        WordSubstitution(SYNONYMS)(bag().model, TEXTS, LABELS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": "loss"}, "expected 'deletion' or 'gradient'"),
        ({"queries": 0}, "queries=0"),
        ({"candidates": 1.5}, "candidates=1.5"),
        ({"max_changed": 0.0}, "a share above 0"),
        ({"min_similarity": 0.9}, "needs encoder="),
        ({"encoder": Counts(), "min_similarity": 2}, "expected a cosine"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordSubstitution(SYNONYMS, **settings)  # type: ignore[arg-type]


def test_no_texts_are_no_problem() -> None:
    found = WordSubstitution(SYNONYMS)(bag(), [], [])
    assert len(found) == 0
    assert found.forwards == 0


def test_it_is_on_the_public_face() -> None:
    assert sp.WordSubstitution is WordSubstitution
    assert isinstance(bag(), TextClassifier)


@given(st.text(max_size=40), st.data())
def test_words_are_put_back_where_they_were(text: str, data: st.DataObject) -> None:
    words = Words(text)
    assert words.replaced({}) == text
    assert words.replaced(dict(enumerate(words.words))) == text
    if len(words):
        i = data.draw(st.integers(0, len(words) - 1))
        other = "changed" if words.words[i] != "changed" else "other"
        assert differing(text, words.replaced({i: other})) == (i,)
        assert len(Words(words.without(i))) <= len(words)
        assert differing(text, words.replaced({i: "two words"})) is None
