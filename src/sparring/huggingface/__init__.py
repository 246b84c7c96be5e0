"""Adversarial training in Hugging Face's `Trainer`: `AdversarialTrainerMixin`."""

from sparring.huggingface.trainer import AdversarialTrainerMixin

__all__ = ["AdversarialTrainerMixin"]
