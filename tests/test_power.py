"""`sparring power`: power iteration on a matrix, and on the Hessian of a network that nobody forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparring.cli import main
from sparring.cli.app import BAD_INPUT, DONE
from sparring.experiments import power
from sparring.experiments.networks import Recipe


def test_the_trace_is_that_of_multiplying_and_dividing_by_hand() -> None:
    turns, eigenvalues = power.iterate([[2.0, 1.0], [1.0, 3.0]], seed=4)
    assert eigenvalues == pytest.approx(((5 + math.sqrt(5)) / 2, (5 - math.sqrt(5)) / 2))
    x = turns[0].x
    for turn in turns[1:]:
        product = (2 * x[0] + x[1], x[0] + 3 * x[1])
        length = math.hypot(*product)
        assert turn.length == pytest.approx(length)
        x = (product[0] / length, product[1] / length)
        assert turn.x == pytest.approx(x)
    assert turns[-1].angle <= 0.01 < turns[-2].angle
    shrinks = math.tan(math.radians(turns[4].angle)) / math.tan(math.radians(turns[3].angle))
    assert shrinks == pytest.approx(eigenvalues[1] / eigenvalues[0], rel=1e-6), "by the ratio of the eigenvalues"


def test_a_negative_eigenvalue_may_be_the_largest() -> None:
    turns, eigenvalues = power.iterate([[-3.0, 0.0], [0.0, 1.0]])
    assert eigenvalues[0] == -3.0
    assert turns[-1].length == pytest.approx(3.0, abs=1e-4)
    assert turns[-1].x[0] * turns[-2].x[0] < 0, "x turns round at each step, and lies on the same line"


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[1.0, 2.0]], "square"),
        ([[1.0]], "2×2 or larger"),
        ([[1.0, 2.0], [0.0, 1.0]], "symmetric"),
        ([[1.0, 0.0], [0.0, 1.0]], "none is larger"),
        ([[0.0, 1.0], [1.0, 0.0]], "none is larger"),
        ([[0.0, 0.0], [0.0, 0.0]], "none is larger"),
    ],
)
def test_matrices_without_a_dominant_eigenvector(matrix: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        power.iterate(matrix)


def test_the_eigenvector_is_the_hessians() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(3, 1, 2, 3, dtype=torch.float64)
    vectors, values, factor = power.dominant(model, x)
    for at, vector, value, f in zip(x, vectors, values, factor):

        def far(r: Tensor, at: Tensor = at) -> Tensor:
            p, q = (
                model(at[None]).log_softmax(1).detach(),
                model((at.flatten() + r)[None].view(1, 1, 2, 3)).log_softmax(1),
            )
            return (p.exp() * (p - q)).sum()

        h = torch.autograd.functional.hessian(far, torch.zeros(6, dtype=torch.float64))
        torch.testing.assert_close(f.T @ f, h)
        torch.testing.assert_close(h @ vector, value[0] * vector)
        torch.testing.assert_close(value[:2], torch.linalg.eigvalsh(h).flip(0)[:2])


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(power, "NETWORK", Recipe("softmax", epochs=1, lr=1e-2, batch_size=512))
    out = tmp_path / "out"
    arguments = ["--data", "fashion-mnist:bundled", "--samples", "16", "--iterations", "4", "--out", str(out)]
    assert main(["power", "--matrix", "4,1,0", "1,3,1", "0,1,2", *arguments]) == DONE
    printed = capsys.readouterr().out
    assert "step=1 length=" in printed
    assert "Eigenvalues: 4.732051, 3.000000, 1.267949" in printed
    assert {path.name for path in out.iterdir()} == {"power.png", "power.svg", "numbers.json"}
    numbers = json.loads((out / "numbers.json").read_text())
    exact, ours, papers = numbers["network"]
    assert exact["median"][0] > 80, "a random direction is nearly orthogonal"
    assert exact["median"][4] < exact["median"][1] < 45
    assert ours["median"][1] == pytest.approx(exact["median"][1], abs=1.0)
    assert papers["median"][4] > 2 * exact["median"][4], "rounding keeps the papers' ξ from arriving"
    assert 0.5 < numbers["caught"] <= 1
    assert main(["power", "--matrix", "a,b"]) == BAD_INPUT
    assert "expected rows of numbers" in capsys.readouterr().err
