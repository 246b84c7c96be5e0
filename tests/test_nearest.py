"""The way inwards from an example: exact on linear models, and about as good as many more steps on a trained one."""

import pytest
import torch

import sparring as sp
from sparring.borrow import borrow
from sparring.evaluation.nearest import LOOKS, STEPS, draw_back, smallest_norm
from sparring.rows import Rows
from sparring.threat import Threat


def fooled_rows(net: torch.nn.Module, threat: Threat, count: int = 6) -> tuple[Rows, torch.Tensor]:
    """Points well inside a wide box, with examples that PGD found at full eps; and the logit margin of each."""
    x = 0.5 + 0.05 * torch.randn(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = net(x)
    y = z.argmax(1)
    adv = sp.PGD(threat, steps=40)(net, x, y)
    assert bool(adv.success.all())
    rows = Rows(torch.arange(count), torch.arange(count), x, y, threat.for_inputs(x))
    rows.best = adv.x
    return rows, (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)


@pytest.mark.parametrize(("norm", "dual", "ratio"), [("linf", 1, 1.001), ("l2", 2, 1.001), ("l1", torch.inf, 1.25)])
def test_finds_the_boundary_of_a_linear_model(norm: str, dual: float, ratio: float) -> None:
    net = torch.nn.Linear(12, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        net.bias.zero_()
    rows, margin = fooled_rows(net, Threat(norm, {"linf": 2.0, "l2": 6.0, "l1": 12.0}[norm], bounds=(-10.0, 10.0)))
    exact = margin / (net.weight[0] - net.weight[1]).norm(dual).item()
    with borrow(net) as model:
        found = smallest_norm(model, rows)
        assert (model.forwards, model.backwards) == (len(rows) * found.forwards, len(rows) * found.backwards)
    assert (found.forwards, found.backwards) == (STEPS + 1, STEPS)
    assert bool((found.norm >= exact * (1 - 1e-9)).all())
    assert bool((found.norm <= exact * ratio + 0.021 * exact).all())  # it comes to rest at 0.98 of the last success


def test_never_worse_than_the_example_and_exact_for_l0() -> None:
    net = torch.nn.Linear(12, 2).double()
    rows, _ = fooled_rows(net, Threat("linf", 2.0, bounds=(-10.0, 10.0)))
    rows.threat = Threat("l0", 12.0, bounds=(-10.0, 10.0))
    with borrow(net) as model:
        found = smallest_norm(model, rows)
        assert (found.forwards, found.backwards, model.forwards) == (0, 0, 0)
    assert torch.equal(found.norm, rows.threat.size(rows.original, rows.best))


def test_drawing_back_stops_where_the_segment_crosses_the_boundary() -> None:
    net = torch.nn.Linear(12, 2).double()
    rows, margin = fooled_rows(net, Threat("l2", 6.0, bounds=(-10.0, 10.0)))
    with torch.no_grad():
        z = net(rows.best)
    beyond = (z.gather(1, 1 - rows.y[:, None]) - z.gather(1, rows.y[:, None])).squeeze(1)
    crossing = margin / (margin + beyond)
    with borrow(net) as model:
        found = draw_back(model, rows)
    part = found.norm / rows.threat.size(rows.original, rows.best)
    assert bool(((part - crossing >= 0) & (part - crossing <= 2.0**-LOOKS + 1e-9)).all())
    assert (found.forwards, found.backwards) == (LOOKS, 0)
