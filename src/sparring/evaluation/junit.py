"""A result as JUnit XML, which continuous integration shows: a test case for each accuracy and each warning."""

from __future__ import annotations

import datetime
import re
from typing import Any
from xml.etree import ElementTree as ET

from sparring.evaluation.labels import labels

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0, escaped or not


def junit_xml(document: dict[str, Any], fail_under: float | None = None) -> str:
    """The XML of a result document.

    Robust accuracy below `fail_under` (0 to 1) is a failure. A warning is a skipped case: seen, but no failure. Obeys the
    schema of Ant's JUnit task, which is the strictest in use, and so that of Jenkins.
    """
    about = f"{document['model']['name']} on {document['data']['name']}"
    threat = f"{document['threat']['norm']} {document['threat']['eps_typed']}"
    robust = document["robust_accuracy"]
    failed = fail_under is not None and robust["value"] < fail_under
    seconds = f"{document['seconds']:.3f}"
    root = ET.Element("testsuites")
    suite = _add(
        root, "testsuite", name=f"robustness of {about}, {threat}", package="sparring", id="0", hostname="localhost",
        timestamp=_timestamp(document["created"]), tests=str(2 + len(document["warnings"])), failures=str(int(failed)),
        errors="0", skipped=str(len(document["warnings"])), time=seconds,
    )  # fmt: skip
    properties = _add(suite, "properties")
    for name, value in _properties(document).items():
        _add(properties, "property", name=name, value=str(value))
    classname = f"sparring.{document['model']['name']}"
    clean = _add(suite, "testcase", name="clean accuracy", classname=classname, time="0.000")
    _add(clean, "system-out").text = _clean(_words(document["clean_accuracy"]))
    case = _add(suite, "testcase", name=f"robust accuracy, {threat}", classname=classname, time=seconds)
    if failed:
        line = f"robust accuracy {robust['value']:.2%} is below {fail_under:.2%}"
        _add(case, "failure", message=line, type="fail-under").text = _clean(f"{line}: {_words(robust)}")
    else:
        _add(case, "system-out").text = _clean(f"at most {_words(robust)}")
    for warning in document["warnings"]:
        case = _add(suite, "testcase", name=f"warning: {warning['code']}", classname=classname, time="0.000")
        _add(case, "skipped", message=warning["message"])
    rows = document["attacks"]
    named = zip(labels(rows), rows, strict=True)
    attacks = [f"{label}: fooled {row['fooled']} of {row['attacked']}" for label, row in named]
    _add(suite, "system-out").text = _clean("\n".join(attacks))
    _add(suite, "system-err")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add(parent: ET.Element, tag: str, /, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, {key: _clean(value) for key, value in attributes.items()})


def _clean(text: str) -> str:
    return FORBIDDEN.sub("�", text)


def _timestamp(created: str) -> str:
    """UTC to the second and without a zone, as the schema has it."""
    moment = datetime.datetime.fromisoformat(created).astimezone(datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def _words(share: dict[str, Any]) -> str:
    return (
        f"{share['value']:.2%} (95% interval {share['low']:.2%} to {share['high']:.2%}, "
        f"{share['count']} of {share['total']} samples)"
    )


def _properties(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "sparring": document["tool"]["version"],
        "model sha256": document["model"]["sha256"],
        "data sha256": document["data"]["sha256"],
        "seed": document["seed"],
        "forwards": document["passes"]["forwards"],
        "backwards": document["passes"]["backwards"],
        "clean_accuracy": document["clean_accuracy"]["value"],
        "robust_accuracy": document["robust_accuracy"]["value"],
    }
