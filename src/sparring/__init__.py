"""sparring finds out how a PyTorch model breaks, and trains one that doesn't.

Names are imported when they are first used (PEP 562), so that the command line answers before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparring.ascent import Trace as Trace
    from sparring.attacks import APGD as APGD
    from sparring.attacks import DDN as DDN
    from sparring.attacks import DIFGSM as DIFGSM
    from sparring.attacks import FAB as FAB
    from sparring.attacks import FGSM as FGSM
    from sparring.attacks import FMN as FMN
    from sparring.attacks import IFGSM as IFGSM
    from sparring.attacks import MIFGSM as MIFGSM
    from sparring.attacks import PGD as PGD
    from sparring.attacks import RFGSM as RFGSM
    from sparring.attacks import Adversarial as Adversarial
    from sparring.attacks import CarliniWagner as CarliniWagner
    from sparring.attacks import DeepFool as DeepFool
    from sparring.attacks import HopSkipJump as HopSkipJump
    from sparring.attacks import MarginAscent as MarginAscent
    from sparring.attacks import OptimizerAttack as OptimizerAttack
    from sparring.attacks import Square as Square
    from sparring.combined import ensemble as ensemble
    from sparring.combined import expectation as expectation
    from sparring.evaluation import EvaluationResult as EvaluationResult
    from sparring.evaluation import compare as compare
    from sparring.evaluation import evaluate as evaluate
    from sparring.evaluation import load_result as load_result
    from sparring.evaluation import merge as merge
    from sparring.evaluation import verify as verify
    from sparring.learned import AdversarialPatch as AdversarialPatch
    from sparring.learned import AdvGAN as AdvGAN
    from sparring.learned import UniversalPerturbation as UniversalPerturbation
    from sparring.text import EmbeddingPerturber as EmbeddingPerturber
    from sparring.text import EmbeddingPGD as EmbeddingPGD
    from sparring.text import FrequencyNormalizedEmbedding as FrequencyNormalizedEmbedding
    from sparring.text import TextClassifier as TextClassifier
    from sparring.text import WordSubstitution as WordSubstitution
    from sparring.threat import L0 as L0
    from sparring.threat import L1 as L1
    from sparring.threat import L2 as L2
    from sparring.threat import Linf as Linf
    from sparring.threat import Threat as Threat
    from sparring.training import AWP as AWP
    from sparring.training import EMA as EMA
    from sparring.training import FGM as FGM
    from sparring.training import MART as MART
    from sparring.training import NFGSM as NFGSM
    from sparring.training import SMART as SMART
    from sparring.training import SWA as SWA
    from sparring.training import TRADES as TRADES
    from sparring.training import TRADESYOPO as TRADESYOPO
    from sparring.training import VAT as VAT
    from sparring.training import YOPO as YOPO
    from sparring.training import AdvProp as AdvProp
    from sparring.training import Batch as Batch
    from sparring.training import Diagnosis as Diagnosis
    from sparring.training import EnsembleTraining as EnsembleTraining
    from sparring.training import FastFGSM as FastFGSM
    from sparring.training import FGSMTraining as FGSMTraining
    from sparring.training import Finding as Finding
    from sparring.training import Free as Free
    from sparring.training import FreeLB as FreeLB
    from sparring.training import GeneratorTraining as GeneratorTraining
    from sparring.training import GradAlign as GradAlign
    from sparring.training import HealthCheck as HealthCheck
    from sparring.training import Mixed as Mixed
    from sparring.training import PGDTraining as PGDTraining
    from sparring.training import Standard as Standard
    from sparring.training import TextAdversarial as TextAdversarial
    from sparring.training import TextVAT as TextVAT
    from sparring.training import Unlabelled as Unlabelled
    from sparring.training import VirtualAdversarial as VirtualAdversarial
    from sparring.training import diagnose as diagnose
    from sparring.training import fit as fit
    from sparring.training import recalibrate as recalibrate
    from sparring.training import virtual_perturbation as virtual_perturbation
    from sparring.transfer import TransferMatrix as TransferMatrix
    from sparring.transfer import transfer_matrix as transfer_matrix
    from sparring.transforms import rotated as rotated
    from sparring.wrappers import attacked_input as attacked_input
    from sparring.wrappers import from_labels as from_labels
    from sparring.wrappers import from_probabilities as from_probabilities
    from sparring.wrappers import normalized as normalized
    from sparring.wrappers import output as output
    from sparring.wrappers import straight_through as straight_through

__version__ = "0.1.0"

_HOMES = {
    "sparring.ascent": ["Trace"],
    "sparring.attacks": [
        "FMN",
        "DeepFool",
        "DDN",
        "CarliniWagner",
        "FAB",
        "APGD",
        "DIFGSM",
        "FGSM",
        "IFGSM",
        "MIFGSM",
        "PGD",
        "RFGSM",
        "Adversarial",
        "MarginAscent",
        "OptimizerAttack",
        "HopSkipJump",
        "Square",
    ],
    "sparring.combined": ["ensemble", "expectation"],
    "sparring.evaluation": ["EvaluationResult", "compare", "evaluate", "load_result", "merge", "verify"],
    "sparring.learned": ["AdversarialPatch", "AdvGAN", "UniversalPerturbation"],
    "sparring.text": [
        "EmbeddingPGD",
        "EmbeddingPerturber",
        "FrequencyNormalizedEmbedding",
        "TextClassifier",
        "WordSubstitution",
    ],
    "sparring.threat": ["L0", "L1", "L2", "Linf", "Threat"],
    "sparring.training": [
        "AWP",
        "AdvProp",
        "Batch",
        "EMA",
        "EnsembleTraining",
        "FGSMTraining",
        "FastFGSM",
        "Free",
        "GeneratorTraining",
        "GradAlign",
        "MART",
        "Mixed",
        "NFGSM",
        "PGDTraining",
        "SWA",
        "Standard",
        "TRADES",
        "FGM",
        "FreeLB",
        "SMART",
        "TextAdversarial",
        "TextVAT",
        "TRADESYOPO",
        "Unlabelled",
        "VAT",
        "VirtualAdversarial",
        "YOPO",
        "fit",
        "Diagnosis",
        "Finding",
        "HealthCheck",
        "diagnose",
        "recalibrate",
        "virtual_perturbation",
    ],
    "sparring.transfer": ["TransferMatrix", "transfer_matrix"],
    "sparring.transforms": ["rotated"],
    "sparring.wrappers": [
        "attacked_input",
        "from_labels",
        "from_probabilities",
        "normalized",
        "output",
        "straight_through",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sparring' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
