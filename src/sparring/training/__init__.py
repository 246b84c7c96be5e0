"""Training a network that holds: strategies, what stands round them, and `fit`, which drives them."""

from sparring.training.averaging import EMA, SWA
from sparring.training.awp import AWP
from sparring.training.callbacks import Callback, MaxNorm
from sparring.training.diagnosis import Diagnosis, diagnose
from sparring.training.fast import NFGSM, FastFGSM, GradAlign
from sparring.training.findings import Finding
from sparring.training.fitting import FitResult, Progress, Run, fit
from sparring.training.free import Free
from sparring.training.generator import GeneratorTraining
from sparring.training.health import HealthCheck
from sparring.training.history import Epoch
from sparring.training.losses import Batch, Loss
from sparring.training.parts import Part
from sparring.training.recalibration import recalibrate
from sparring.training.smart import SMART
from sparring.training.sources import AdvProp, EnsembleTraining
from sparring.training.strategy import Strategy
from sparring.training.supervised import FGSMTraining, Mixed, PGDTraining, Standard
from sparring.training.text import FGM, FreeLB, TextAdversarial, TextVAT
from sparring.training.trades import MART, TRADES
from sparring.training.trades_yopo import TRADESYOPO
from sparring.training.unlabelled import Unlabelled
from sparring.training.vat import VAT, VirtualAdversarial
from sparring.training.virtual import virtual_perturbation
from sparring.training.yopo import YOPO

__all__ = [
    "AWP",
    "EMA",
    "FGM",
    "MART",
    "NFGSM",
    "SMART",
    "SWA",
    "TRADES",
    "TRADESYOPO",
    "VAT",
    "YOPO",
    "AdvProp",
    "Batch",
    "Callback",
    "Diagnosis",
    "EnsembleTraining",
    "Epoch",
    "FGSMTraining",
    "FastFGSM",
    "Finding",
    "FitResult",
    "Free",
    "FreeLB",
    "GeneratorTraining",
    "GradAlign",
    "HealthCheck",
    "Loss",
    "MaxNorm",
    "Mixed",
    "PGDTraining",
    "Part",
    "Progress",
    "Run",
    "Standard",
    "Strategy",
    "TextAdversarial",
    "TextVAT",
    "Unlabelled",
    "VirtualAdversarial",
    "diagnose",
    "fit",
    "recalibrate",
    "virtual_perturbation",
]
