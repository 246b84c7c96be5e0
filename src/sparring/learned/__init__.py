"""Attacks that are learned from data once, and then applied in one pass."""

from sparring.learned.base import LearnedAttack
from sparring.learned.fitting import FitRecord
from sparring.learned.generator import AdvGAN
from sparring.learned.patch import AdversarialPatch, PlacementRates
from sparring.learned.universal import UniversalPerturbation

__all__ = ["AdvGAN", "AdversarialPatch", "FitRecord", "LearnedAttack", "PlacementRates", "UniversalPerturbation"]
