"""On a linear model the optimum is known in closed form: how much of it does each attack reach?

The share is the growth of the margin over the growth at the optimum. 1 means the optimum.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparring as sp
from networks import SHAPES, best_linear_change, direction, inputs, linear
from sparring.threat import Threat

EPS = {"linf": 0.1, "l2": 0.8, "l1": 2.0}


def share(attack: Any, batch: int, rank: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    shape = SHAPES[rank]
    model, (x, y) = linear(shape, seed=seed), inputs(batch, shape, seed=seed, dtype=dtype)
    model = model.to(dtype)
    found = attack(model, x, y)
    gradient, threat = direction(model, y).double(), attack.threat
    change = (found.x.double() - x.double()).flatten(1)
    best = best_linear_change(threat.norm, gradient, x.double().flatten(1), float(threat.eps), threat.bounds)
    assert bool((threat.size(x, found.x) <= float(threat.eps) * (1 + 1e-5) + 1e-6).all())
    return (change * gradient).sum(1) / (best * gradient).sum(1)


def attacks(norm: str, bounds: tuple[float, float] | None) -> dict[str, tuple[Any, float]]:
    """Each attack with the share of the optimum that it must reach."""
    threat, eps = Threat(norm, EPS[norm], bounds), EPS[norm]
    boxed = bounds is not None
    sgd = sp.OptimizerAttack(threat, optimizer="sgd", lr=10.0, objective="margin", steps=25)
    if norm == "linf":
        found = {
            "FGSM": (sp.FGSM(threat), 1.0),
            "IFGSM": (sp.IFGSM(threat), 1.0),
            "MIFGSM": (sp.MIFGSM(threat), 1.0),
            "PGD": (sp.PGD(threat, steps=10), 1.0),
            "PGD cosine": (sp.PGD(threat, steps=10, schedule="cosine"), 1.0),
            "Adam": (sp.OptimizerAttack(threat, lr=0.02, steps=10), 1.0),
        }
    elif norm == "l2":
        # without the box the first step along the gradient is the optimum; with it, what the box holds back has to be
        # spent on other entries, and only repeated projection does that
        found = {
            "FGSM": (sp.FGSM(threat), 0.72 if boxed else 1.0),
            "IFGSM": (sp.IFGSM(threat, steps=10, step_size=eps), 0.999 if boxed else 1.0),
            "MIFGSM": (sp.MIFGSM(threat, steps=10), 0.72 if boxed else 1.0),
            "PGD": (sp.PGD(threat, steps=20), 0.92),  # the random start turns only slowly
            "PGD long steps": (sp.PGD(threat, steps=10, step_size=4 * eps), 0.9999),
        }
    else:
        # a default step is shared by one entry in twenty: fine on networks, not the optimum of a linear model, where the
        # best entry alone should move; sparsity -> 1 and more steps do that
        found = {
            "FGSM": (sp.FGSM(threat), 0.91),
            "PGD": (sp.PGD(threat, steps=20), 0.90),
            "PGD one entry": (sp.PGD(threat, steps=30, step_size=eps / 8, schedule="cosine", sparsity=0.9999), 0.99),
        }
    return found | {"SGD": (sgd, 0.999)}


NAMES = sorted({(norm, name) for norm in EPS for name in attacks(norm, None)})


@pytest.mark.parametrize(("norm", "name"), NAMES)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None], ids=["box", "free"])
def test_share_of_the_optimum(norm: str, name: str, bounds: tuple[float, float] | None) -> None:
    attack, least = attacks(norm, bounds)[name]
    worst = 9.0
    for batch in (1, 3, 8):
        for rank in (2, 3, 4):
            reached = share(attack, batch, rank)
            assert bool((reached <= 1 + 1e-9).all())
            worst = min(worst, float(reached.min()))
    assert worst >= least - 1e-9
