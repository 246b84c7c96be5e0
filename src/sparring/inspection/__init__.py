"""Figures of what networks and attacks do: a matplotlib ``Figure`` comes out, nothing global changes. See docs/gallery.md."""

from sparring.inspection.ascending import ClassAscent, ascend_class
from sparring.inspection.bars import layer_bars
from sparring.inspection.curves import accuracy_curve, accuracy_curves, loss_curves, norm_histogram
from sparring.inspection.gradients import confused_logits, logit_gradients, saliency
from sparring.inspection.heat import heat_maps
from sparring.inspection.histories import training_curves
from sparring.inspection.landscape import decision_plane, loss_surface
from sparring.inspection.lines import logits_along
from sparring.inspection.pictures import gallery, perturbation, triptych
from sparring.inspection.regions import decision_regions
from sparring.inspection.style import save

__all__ = [
    "ClassAscent",
    "accuracy_curve",
    "accuracy_curves",
    "ascend_class",
    "confused_logits",
    "decision_plane",
    "decision_regions",
    "gallery",
    "heat_maps",
    "layer_bars",
    "logit_gradients",
    "logits_along",
    "loss_curves",
    "loss_surface",
    "norm_histogram",
    "perturbation",
    "saliency",
    "save",
    "training_curves",
    "triptych",
]
