"""The report: self-contained, escaped, true to the document, and whole for every kind of result."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sparring.report import pictures, render, words

VOID = {"meta", "img", "input", "br", "hr", "link"}
WARNING = {
    "code": "masking",
    "message": "Four fell. It hides. Look.",
    "seen": "Four fell.",
    "why": "It hides.",
    "todo": "Look.",
}
EVIL = "<script>alert(1)</script>\"' onload=x & a_token_without_any_space" + "_x" * 60


def accuracy(count: int, total: int, low: float, high: float) -> dict[str, Any]:
    return {"value": count / total if total else 0.0, "low": low, "high": high, "count": count, "total": total}


def document(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "schema_version": 1, "finished": True, "created": "2026-11-21T10:12:33+00:00", "seconds": 83.2, "seed": 7,
        "tool": {"name": "sparring", "version": "0.1.0"},
        "environment": {"torch": "2.13.0", "python": "3.11.7", "platform": "Linux", "device": "cpu", "threads": 1},
        "threat": {"norm": "linf", "eps": 8 / 255, "eps_typed": "8/255", "bounds": [0.0, 1.0]},
        "model": {"name": "Net", "sha256": "ab" * 32, "parameters": 1234, "spec": "my net.py:make"},
        "data": {"name": "clothes", "sha256": None, "samples": 1000, "shape": [1, 8, 8], "classes": 3,
                 "class_names": ["shirt", "coat", "bag"], "spec": None},
        "clean_accuracy": accuracy(912, 1000, 0.893, 0.928),
        "robust_accuracy": accuracy(423, 1000, 0.393, 0.454),
        "attacks": [{"name": "PGD", "settings": {"steps": 20}, "attacked": 912, "fooled": 489,
                     "robust_accuracy": accuracy(423, 1000, 0.393, 0.454), "forwards": 14211, "backwards": 13900,
                     "seconds": 31.4}],
        "passes": {"forwards": 110123, "backwards": 107700, "clean": 1000, "distance": 2900, "gallery": 32},
        "per_class": [{"label": 0, "name": "shirt", "samples": 400, "correct": 380, "robust": 300},
                      {"label": 1, "name": "coat", "samples": 400, "correct": 350, "robust": 20},
                      {"label": 2, "name": "bag", "samples": 0, "correct": 0, "robust": 0}],
        "curve": [{"eps": 0.0, "value": 0.912, "low": 0.893, "high": 0.928},
                  {"eps": 8 / 255, "value": 0.423, "low": 0.393, "high": 0.454}],
        "gallery": [{"index": i, "label": 0, "attack": "PGD", "norm": 8 / 255, "distance": d,
                     "before": [{"label": 0, "probability": 0.97}, {"label": 1, "probability": 0.03}],
                     "after": [{"label": 2, "probability": 0.88}, {"label": 0, "probability": 0.12}]}
                    for i, d in ((17, 4 / 255), (3, 1 / 255))],
        "warnings": [], "files": {"samples.jsonl": "cd" * 32},
    }  # fmt: skip
    return {**copy.deepcopy(base), **changes}


def picture(index: int, shape: tuple[int, ...] = (1, 8, 8)) -> tuple[Tensor, Tensor]:
    original = torch.rand(shape, generator=torch.Generator().manual_seed(index)) * 0.5 + 0.2
    return original, original + 8 / 255


class Page(HTMLParser):
    """Every tag with its attributes; opening and closing tags must match; text by tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_nothing_is_fetched_and_the_policy_allows_only_its_own_style_and_script() -> None:
    html = render(document(), picture)
    page = Page(html)
    for _, attributes in page.tags:
        assert "style" not in attributes, "the policy forbids inline styles"
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "@import" not in html
    assert "url(http" not in html
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    html = render(document(warnings=[WARNING]), picture)
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    wanted += re.findall(r'aria-labelledby="([^"]+)"', html)
    assert wanted
    assert set(wanted) <= set(ids)


def test_the_first_screen_says_what_was_found() -> None:
    page = Page(render(document(), picture))
    assert "Of 1,000 images the network classifies 91.2% correctly; after the attack at most 42.3% remain." in page.text
    assert "Wilson 95% interval 39.3–45.4%" in page.text
    assert "An upper bound" in page.text
    assert "change every pixel value by at most 8/255 (0.03137), inside [0, 1]" in page.text
    assert "218,000 passes" in page.text
    assert "sparring verify FOLDER --model 'my net.py:make'" in page.text
    for fact in ("2.13.0", "0.1.0", "ab" * 32, "cd" * 32, "steps 20", "14,211", "31.4 s"):
        assert fact in page.text


def test_text_of_the_document_is_escaped_everywhere() -> None:
    evil = {"code": EVIL, "message": EVIL}
    changed = document(
        warnings=[evil, {**evil, "seen": EVIL, "why": EVIL, "todo": EVIL}], files={EVIL: EVIL}, created=EVIL
    )
    changed["data"].update(class_names=[EVIL] * 3, name=EVIL, spec=EVIL)
    changed["model"].update(name=EVIL, spec=EVIL)
    changed["attacks"][0].update(name=EVIL, settings={EVIL: EVIL})
    changed["threat"]["eps_typed"] = EVIL
    changed["environment"]["platform"] = EVIL
    changed["per_class"][0]["name"] = EVIL
    changed["gallery"][0]["attack"] = EVIL
    html = render(changed, picture)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert "<script>alert" not in html


def test_classes_and_gallery_are_sorted_by_the_worst() -> None:
    text = Page(render(document(), picture)).text
    table = text[text.index("Class by class") :]
    assert table.index("coat") < table.index("shirt"), "5% robust comes before 75%"
    assert "bag" not in table[: table.index("What was tried")], "a class without samples has no accuracy"
    gallery = text[text.index("The worst failures") : text.index("Class by class")]
    assert gallery.index("1/255") < gallery.index("4/255")
    assert "perturbation × 15" in gallery.replace("\u00a0", " ")


def test_pictures_hold_the_pixels_of_original_and_adversarial() -> None:
    page = Page(render(document(), picture))
    images = page.all("img")
    assert len(images) == 6
    first = images[0]["src"]
    assert first is not None
    with Image.open(io.BytesIO(base64.b64decode(first.split(",")[1]))) as png:
        shown = torch.from_numpy(np.array(png)).long()
    assert torch.equal(shown, (picture(3)[0][0].double() * 255).round().long())
    assert all(image["alt"] for image in images)
    assert all("pixelated" in (image["class"] or "") for image in images)


def test_1000_classes_collapse_into_the_worst_and_a_fold() -> None:
    rows = [{"label": c, "name": None, "samples": 5, "correct": 4, "robust": c % 5} for c in range(1000)]
    changed = document(per_class=rows)
    changed["data"].update(classes=1000, class_names=None)
    html = render(changed, picture)
    text = Page(html).text
    assert "The 12 least robust of 1,000 classes" in text
    assert "All 1,000 classes" in text
    assert html.index("The 12 least robust") < html.index('id="all-classes"')
    assert "class 995" in text


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 9, 9), (64,), (3, 50), (1,), (2, 3, 4, 4), (1, 500, 600)])
def test_every_shape_of_sample_is_shown_or_explained(shape: tuple[int, ...]) -> None:
    changed = document()
    changed["data"]["shape"] = list(shape)
    page = Page(render(changed, lambda index: picture(index, shape)))
    drawn = len(page.all("img")) + sum(svg.get("class") == "signal" for svg in page.all("svg"))
    assert drawn == (0 if len(shape) == 4 else 6)
    if len(shape) == 4:
        assert "No picture: samples of shape (2, 3, 4, 4)" in page.text
    if shape == (1, 500, 600):
        assert "Shown smaller than its 600 × 500 pixels" in page.text


def test_edges_nothing_fooled_nothing_left_nothing_right_one_sample() -> None:
    none = document(robust_accuracy=accuracy(912, 1000, 0.893, 0.928), gallery=[], curve=[], per_class=[])
    none["attacks"][0]["fooled"] = 0
    assert "at most 91.2% remain" in Page(render(none, picture)).text
    assert "no attack of this run fooled the network" in Page(render(none, picture)).text
    assert "none remains" in words.verdict(document(robust_accuracy=accuracy(0, 1000, 0, 0.004)))
    wrong = document(
        clean_accuracy=accuracy(0, 9, 0, 0.3), robust_accuracy=accuracy(0, 9, 0, 0.3), gallery=[], attacks=[]
    )
    assert "none correctly: nothing is left to attack" in Page(render(wrong, picture)).text
    one = document(clean_accuracy=accuracy(1, 1, 0.2, 1), robust_accuracy=accuracy(0, 1, 0, 0.8))
    assert "right, and the attack fooled it" in Page(render(one, picture)).text
    empty = document(clean_accuracy=accuracy(0, 0, 0, 1), robust_accuracy=accuracy(0, 0, 0, 1), finished=False)
    assert "No image has been through the attack yet" in Page(render(empty, picture)).text


def test_a_run_that_is_not_finished_says_so_before_the_verdict() -> None:
    changed = document(finished=False)
    changed["data"]["available"] = 60_000
    changed["settings"] = {"max_samples": 10_000}
    text = Page(render(changed, picture)).text
    assert text.index("This run is not finished") < text.index("Of 1,000 images")
    assert "1,000 of 10,000 images have been through the attack" in text
    assert "not finished" not in Page(render(document(), picture)).text


def test_warnings_are_announced_on_the_first_screen() -> None:
    text = Page(render(document(warnings=[WARNING] * 2), picture)).text
    assert text.index("2 warnings: read them") < text.index("Clean accuracy")
    assert "warning" not in Page(render(document(), picture)).text


def test_a_warning_says_what_was_seen_why_it_matters_and_what_to_do() -> None:
    text = Page(render(document(warnings=[WARNING]), picture)).text
    assert "masking Four fell. It hides. What to do. Look." in text


def test_a_curve_drawn_by_misleading_gradients_is_called_loose() -> None:
    note = "below this run's eps the curve is a loose upper bound"
    text = Page(render(document(warnings=[WARNING]), picture)).text
    assert f"{note}, since it follows gradients inwards from each example, and they mislead here (masking)" in text
    other = {"code": "rounding", "message": "Rounded."}
    assert note not in Page(render(document(warnings=[other]), picture)).text


def test_attacks_of_one_name_have_numbers() -> None:
    attacks = document()["attacks"]
    text = Page(render(document(attacks=attacks * 2), picture)).text
    assert "1. PGD" in text
    assert "2. PGD" in text
    assert "1. PGD" not in Page(render(document(), picture)).text


def test_attacks_that_no_sample_came_to_are_counted_and_empty_settings_left_out() -> None:
    (attack,) = document()["attacks"]
    idle = {**attack, "name": "Square", "attacked": 0, "fooled": 0}
    told = {**attack, "name": "APGD", "settings": {"steps": 7, "targets": None, "trace": False, "rival": 1}}
    text = Page(render(document(attacks=[attack, idle, told]), picture)).text
    assert "1. PGD" in text
    assert "3. APGD steps 7, rival 1 912" in text, "it has the number that it has among all"
    assert "Square" not in text
    assert "Not shown: 1 attack that no image came to." in text
    text = Page(render(document(attacks=[idle]), picture)).text
    assert "Square" in text
    assert "Not shown" not in text


def test_a_warning_in_one_part_is_shown_whole() -> None:
    text = Page(render(document(warnings=[{"code": "probabilities", "message": "Return logits."}]), picture)).text
    assert "probabilities Return logits." in text
    assert "What to do" not in text


@pytest.mark.parametrize(
    ("norm", "eps", "typed", "says"),
    [
        ("linf", 0.3, "0.3", "every pixel value by at most 0.3, inside"),
        ("l2", 0.5, "0.5", "at most 0.5 in Euclidean length"),
        ("l1", 12.0, None, "by 12 in all"),
        ("l0", 10, "10", "at most 10 pixel values"),
        ("linf", float("inf"), "inf", "without limit"),
    ],
)
def test_the_threat_model_in_words(norm: str, eps: float, typed: str | None, says: str) -> None:
    changed = document(threat={"norm": norm, "eps": eps, "eps_typed": typed, "bounds": [0.0, 1.0]})
    assert says in Page(render(changed, picture)).text


def test_a_mask_is_part_of_the_threat_model() -> None:
    changed = document()
    changed["threat"]["masked"] = True
    assert "(0.03137), where the mask allows it, inside [0, 1]" in Page(render(changed, picture)).text


def test_no_bounds_and_no_names_still_make_a_page() -> None:
    changed = document()
    changed["threat"]["bounds"] = None
    changed["data"]["class_names"] = None
    text = Page(render(changed, picture)).text
    assert "class 2" in text
    assert len(Page(render(changed, picture)).all("img")) == 6


def test_the_same_document_gives_the_same_page() -> None:
    assert render(document(), picture) == render(document(), picture)


def test_extra_keys_are_left_alone() -> None:
    assert render(document(extra_pictures=["x"]), picture) == render(document(), picture)


def test_a_foreign_document_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="schema_version=2: expected 1"):
        render(document(schema_version=2), picture)
    broken = document()
    del broken["curve"]
    with pytest.raises(ValueError, match="'curve'"):
        render(broken, picture)
    with pytest.raises(ValueError, match="same shape"):
        pictures.panels(torch.rand(1, 8, 8), torch.rand(1, 8, 9), (0.0, 1.0))
