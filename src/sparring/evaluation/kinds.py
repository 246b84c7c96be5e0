"""Two kinds of evaluation, of inputs of numbers and of texts, keep other records and tell other things: `facts["task"]` says."""

from __future__ import annotations

from typing import Any

from sparring.evaluation.document import summarize
from sparring.evaluation.gallery import MOST
from sparring.evaluation.parts import Parts
from sparring.evaluation.records import Records
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.texts.document import summarize_texts
from sparring.evaluation.texts.records import TextRecords
from sparring.evaluation.texts.result import TextResult


def records_for(facts: dict[str, Any]) -> Records:
    """Empty ones, for an evaluation of these facts."""
    return (TextRecords if facts.get("task") == "text" else Records)(len(facts["attacks"]))


def result_of(facts: dict[str, Any], kept: Parts, gallery: list[dict[str, Any]]) -> EvaluationResult:
    """What the facts of a run, and its records, sorted, add up to. gallery: all that was looked at for it, the best first."""
    if facts.get("task") == "text":
        assert isinstance(kept.records, TextRecords)
        return TextResult(summarize_texts(facts, kept.records), kept)
    return EvaluationResult(summarize(facts, kept.records, gallery[:MOST], len(gallery)), kept)
