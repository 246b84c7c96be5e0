"""JUnit XML that the strictest schema in use accepts, and what fails a build."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import sparring as sp
from networks import inputs, linear
from sparring.cli import main
from sparring.evaluation import junit_xml

SHAPE = (3, 4, 5)

# The rules of Ant's JUnit.xsd: attributes (required, optional) and children, in this order.
RULES: dict[str, tuple[set[str], set[str], list[str]]] = {
    "testsuites": (set(), set(), ["testsuite"]),
    "testsuite": (
        {"name", "timestamp", "hostname", "tests", "failures", "errors", "time", "package", "id"},
        {"skipped"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, set(), []),
    "testcase": ({"name", "classname", "time"}, set(), ["skipped", "error", "failure", "system-out"]),
    "failure": ({"type"}, {"message"}, []),
    "skipped": (set(), {"message"}, []),
    "system-out": (set(), set(), []),
    "system-err": (set(), set(), []),
}


def check(element: ET.Element) -> None:
    required, optional, children = RULES[element.tag]
    assert required <= set(element.attrib) <= required | optional, element.tag
    order = [children.index(child.tag) for child in element]
    assert order == sorted(order), element.tag
    for name in {"tests", "failures", "errors", "skipped", "id"} & set(element.attrib):
        assert element.attrib[name].isdigit()
    if "time" in element.attrib:
        assert re.fullmatch(r"\d+\.\d+", element.attrib["time"])
    if element.tag == "testsuite":
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.attrib["timestamp"])
        assert [child.tag for child in element if child.tag != "testcase"] == ["properties", "system-out", "system-err"]
        assert int(element.attrib["tests"]) == len(element.findall("testcase"))
        for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(element.attrib[name]) == len(element.findall(f"testcase/{kind}"))
    if element.tag == "testcase":
        assert len([child for child in element if child.tag != "system-out"]) <= 1
    for child in element:
        check(child)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    x, _ = inputs(40, SHAPE)
    model = linear(SHAPE, 3)
    threat = sp.Linf(0.02)
    y = model(x).argmax(1)
    y[::8] = (y[::8] + 1) % 3
    found = sp.evaluate(model, (x, y), threat, attacks=[sp.PGD(threat, steps=5)], checkup=False).document
    warnings = [{"code": "masking", "message": 'a <look> & "say": gradients\nhide'}]
    return copy.deepcopy(found) | {"warnings": warnings}


def parse(text: str) -> ET.Element:
    root = ET.fromstring(text.encode())
    check(root)
    return root


def test_the_schema_and_the_numbers(document: dict[str, Any]) -> None:
    root = parse(junit_xml(document))
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "0", "1")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert set(cases) == {"clean accuracy", "robust accuracy, linf 0.02", "warning: masking"}
    share = document["robust_accuracy"]
    assert f"{share['count']} of 40 samples" in (cases["robust accuracy, linf 0.02"].findtext("system-out") or "")
    assert cases["warning: masking"][0].get("message", "").split() == document["warnings"][0]["message"].split()
    values = {part.get("name"): part.get("value") for part in suite.iter("property")}
    assert float(values["robust_accuracy"] or 0) == share["value"]
    assert values["data sha256"] == document["data"]["sha256"]


def test_below_the_limit_is_a_failure(document: dict[str, Any]) -> None:
    value = document["robust_accuracy"]["value"]
    assert 0 < value < 1
    assert parse(junit_xml(document, value))[0].get("failures") == "0"  # at the limit is not below it
    suite = parse(junit_xml(document, value + 1e-6))[0]
    assert suite.get("failures") == "1"
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("type") == "fail-under"
    assert "is below" in failure.get("message", "")


def test_attacks_of_one_name_are_told_apart(document: dict[str, Any]) -> None:
    lines = (
        parse(junit_xml(document | {"attacks": document["attacks"] * 2}))[0].findtext("system-out") or ""
    ).splitlines()
    assert [line.split(",")[0] for line in lines] == ["1. PGD", "2. PGD"]
    assert "PGD, 5 steps, cross-entropy: fooled" in lines[0]


def test_characters_that_xml_has_no_place_for(document: dict[str, Any]) -> None:
    strange = document | {"model": document["model"] | {"name": "net\x00\x1b[31m <&\ud800 é 🏖"}}
    name = parse(junit_xml(strange))[0].get("name", "")
    assert "é 🏖" in name
    assert "<&" in name
    assert "\x00" not in name


def test_the_command_writes_it_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, net = "fashion-mnist:bundled", "softmax"
    typed = ["evaluate", "--model", net, "--data", data, "--max-samples", "60", "--attacks", "fgsm", "--eps", "0.01"]
    typed += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    xml = tmp_path / "deep" / "robust.xml"
    assert main([*typed, "--junit", str(xml), "--fail-under", "0"]) == 0
    assert parse(xml.read_text())[0].get("failures") == "0"
    assert main([*typed, "--junit", str(xml), "--fail-under", "1"]) == 1  # untrained; the folder holds the result
    assert parse(xml.read_text())[0].get("failures") == "1"
    assert "is below --fail-under 100.0%" in capsys.readouterr().out
    for option in ("--junit", "--fail-under"):
        assert main([*typed, option, "0.5", "--shard", "0/2"]) == 2
        assert f"{option} judges a whole result, not a shard" in capsys.readouterr().err
    for wrong in ("2/2", "1", "a/b", "-1/2"):
        assert main([*typed, f"--shard={wrong}"]) == 2
        assert "expected I/N" in capsys.readouterr().err


def test_shards_and_merge_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["evaluate", "--model", "softmax", "--data", "fashion-mnist:bundled", "--max-samples", "61"]
    typed += ["--attacks", "fgsm", "--eps", "0.01", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*typed, "--shard", "0/2"]) == 0
    assert f"Shard 0 of 2 is done. When all are: sparring merge {tmp_path / 'run'}" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "run")]) == 2
    assert "of 2 shards 1 is missing: run them with --shard 1/2" in capsys.readouterr().err
    assert main([*typed, "--shard", "1/2"]) == 0
    xml = tmp_path / "robust.xml"
    assert main(["merge", str(tmp_path / "run"), "--fail-under", "1", "--junit", str(xml)]) == 1
    assert "of 61 samples withstand" in capsys.readouterr().out
    assert parse(xml.read_text())[0].get("failures") == "1"
    assert main(["verify", str(tmp_path / "run"), "--samples", "5"]) == 0
