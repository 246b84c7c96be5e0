"""How robust is it? A cascade of attacks over streamed data, a verdict with intervals, and evidence to check again."""

from sparring.evaluation.comparison import Comparison, compare
from sparring.evaluation.document import schema
from sparring.evaluation.estimate import Estimate, estimate
from sparring.evaluation.junit import junit_xml
from sparring.evaluation.merging import merge
from sparring.evaluation.progress import Progress
from sparring.evaluation.result import EvaluationResult, load_result
from sparring.evaluation.run import evaluate
from sparring.evaluation.shards import finished
from sparring.evaluation.statistics import Proportion
from sparring.evaluation.texts.result import TextResult
from sparring.evaluation.verifier import Verification, verify
from sparring.evaluation.warnings import Warning

__all__ = [
    "Comparison",
    "Estimate",
    "EvaluationResult",
    "Progress",
    "Proportion",
    "TextResult",
    "Verification",
    "Warning",
    "compare",
    "estimate",
    "evaluate",
    "finished",
    "junit_xml",
    "load_result",
    "merge",
    "schema",
    "verify",
]
