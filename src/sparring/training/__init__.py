"""How the demo's and the experiments' small networks are trained."""

from sparring.training.averaging import EMA, SWA
from sparring.training.awp import AWP
from sparring.training.fast import NFGSM, FastFGSM, GradAlign
from sparring.training.fit import Callback, FitResult, Progress, Run, fit
from sparring.training.free import Free
from sparring.training.generator import GeneratorTraining
from sparring.training.loop import Epoch, History, train
from sparring.training.parts import Part
from sparring.training.recalibration import recalibrate
from sparring.training.sources import AdvProp, EnsembleTraining
from sparring.training.strategy import Batch, Loss, Strategy
from sparring.training.supervised import FGSMTraining, Mixed, PGDTraining, Standard
from sparring.training.trades import MART, TRADES
from sparring.training.trades_yopo import TRADESYOPO
from sparring.training.yopo import YOPO

__all__ = [
    "AWP",
    "EMA",
    "MART",
    "NFGSM",
    "SWA",
    "TRADES",
    "TRADESYOPO",
    "YOPO",
    "AdvProp",
    "Batch",
    "Callback",
    "EnsembleTraining",
    "Epoch",
    "FGSMTraining",
    "FastFGSM",
    "FitResult",
    "Free",
    "GeneratorTraining",
    "GradAlign",
    "History",
    "Loss",
    "Mixed",
    "PGDTraining",
    "Part",
    "Progress",
    "Run",
    "Standard",
    "Strategy",
    "fit",
    "recalibrate",
    "train",
]
