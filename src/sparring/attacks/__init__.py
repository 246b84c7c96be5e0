"""Attacks: small recipes over one loop, each called as ``attack(model, x, y) -> Adversarial``."""

from sparring.attacks.adversarial import Adversarial
from sparring.attacks.apgd import APGD
from sparring.attacks.base import Attack, GradientAttack
from sparring.attacks.carlini_wagner import CarliniWagner
from sparring.attacks.ddn import DDN
from sparring.attacks.deepfool import DeepFool
from sparring.attacks.diverse import DIFGSM
from sparring.attacks.fab import FAB
from sparring.attacks.fmn import FMN
from sparring.attacks.hopskipjump import HopSkipJump
from sparring.attacks.margin import MarginAscent
from sparring.attacks.optimizer import OptimizerAttack
from sparring.attacks.pgd import PGD
from sparring.attacks.sign import FGSM, IFGSM, MIFGSM, RFGSM
from sparring.attacks.square import Square

__all__ = [
    "APGD",
    "DDN",
    "DIFGSM",
    "FAB",
    "FGSM",
    "FMN",
    "IFGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Adversarial",
    "Attack",
    "CarliniWagner",
    "DeepFool",
    "GradientAttack",
    "HopSkipJump",
    "MarginAscent",
    "OptimizerAttack",
    "Square",
]
