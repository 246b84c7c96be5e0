"""Attacks: small recipes over one loop, each called as ``attack(model, x, y) -> Adversarial``."""

from sparring.attacks.adversarial import Adversarial
from sparring.attacks.apgd import APGD
from sparring.attacks.base import Attack, GradientAttack
from sparring.attacks.diverse import DIFGSM
from sparring.attacks.fab import FAB
from sparring.attacks.margin import MarginAscent
from sparring.attacks.optimizer import OptimizerAttack
from sparring.attacks.pgd import PGD
from sparring.attacks.sign import FGSM, IFGSM, MIFGSM, RFGSM
from sparring.attacks.square import Square

__all__ = [
    "APGD",
    "DIFGSM",
    "FAB",
    "FGSM",
    "IFGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Adversarial",
    "Attack",
    "GradientAttack",
    "MarginAscent",
    "OptimizerAttack",
    "Square",
]
