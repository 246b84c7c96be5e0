"""The AutoAttack ensemble as a list of attacks, so that its verdict and ours can be had in the same way."""

from __future__ import annotations

from sparring.attacks import APGD, FAB, Attack, Square
from sparring.threat import Threat


def standard(threat: Threat) -> list[Attack]:
    """AutoAttack's standard version. Croce and Hein (2020), with the settings of their package; l1: Croce and Hein (2021).

    Auto-PGD on the cross-entropy (100 steps; l1: 5 restarts), Auto-PGD on the targeted DLR loss for the 9 likeliest wrong
    classes (l1: 5), FAB for the same 9, and Square (5,000 queries). For l1 Auto-PGD's balls shrink, and Square, which
    has no l1 form here, is left out. A model with fewer classes has fewer rivals; where it has 3 the targeted DLR loss is
    scaled by the spread of all three logits, and where it has 2 it is the margin (AutoAttack refuses those models).

    Raises ValueError for l0, and for eps = inf.
    """
    if threat.norm not in ("linf", "l2", "l1"):
        raise ValueError(f"'autoattack' has no form for {threat.norm}: expected linf, l2 or l1")
    sparse = threat.norm == "l1"
    attacks: list[Attack] = [
        APGD(threat, restarts=5 if sparse else 1, shrinking=sparse),
        APGD(threat, objective="dlr", rivals=5 if sparse else 9, shrinking=sparse),
        FAB(threat, search_steps=0, stop_when_fooled=True),
    ]
    return attacks if sparse else [*attacks, Square(threat, queries=5000, p_init=0.8)]


def randomised(threat: Threat) -> list[Attack]:
    """AutoAttack's version for models that answer at random: Auto-PGD on the cross-entropy and on the DLR loss.

    The gradients that it averages come from the model: give `evaluate` the model as `sparring.expectation(model, samples=20)`.
    """
    return [APGD(threat), APGD(threat, objective="dlr")]
