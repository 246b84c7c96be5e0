"""Figures of what an attack did: a matplotlib ``Figure`` comes out, nothing global changes."""

from sparring.inspection.figures import accuracy_curve, loss_curves, triptych
from sparring.inspection.style import save

__all__ = ["accuracy_curve", "loss_curves", "save", "triptych"]
