"""What a threat accepts and refuses, and how it follows its samples."""

from __future__ import annotations

import math

import pytest
import torch

from sparring.threat import L0, L1, L2, Linf, Threat, parse_eps


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.3", 0.3), (0, 0.0), ("1e-2", 0.01)]
)
def test_eps_is_read_as_typed(text: str, value: float) -> None:
    assert parse_eps(text) == value
    assert Threat("l2", text).eps == value


@pytest.mark.parametrize("bad", ["eight", "1/0", "", -0.1, "-1/255", math.nan, "nan", None, [1]])
def test_bad_eps_gets_one_line(bad: object) -> None:
    with pytest.raises(ValueError, match="eps=") as caught:
        Linf(bad)  # type: ignore[arg-type]
    assert "expected a number" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linf(8), ["eps=8", "[0, 1]", "did you mean 8/255?"]),
        (lambda: Linf(4, bounds=(-1, 1)), ["eps=4", "[-1, 1]", "did you mean 4/255?"]),
        (lambda: Linf(300, bounds=(0, 255)), ["eps=300", "[0, 255]", "the box is smaller than eps"]),
        (lambda: Threat("linfinity", 0.1), ["norm='linfinity'", "linf, l2, l1, l0"]),
        (lambda: L2(1, bounds=(1.0, 0.0)), ["bounds=(1.0, 0.0)", "low < high"]),
        (lambda: L2(1, bounds=(0.0, math.nan)), ["bounds=", "low < high"]),
        (lambda: L0(5, bounds=None), ["l0", "needs bounds"]),
        (lambda: L2(torch.tensor([[0.1]])), ["eps of shape (1, 1)", "(B,)"]),
        (lambda: L2(torch.tensor([0.1, -1.0])), ["eps of shape (2,)", "none negative"]),
        (lambda: L2(torch.tensor([0.1, math.nan])), ["eps of shape (2,)"]),
        (lambda: L1(torch.ones(2)).for_inputs(torch.zeros(3, 4)), ["eps has 2 values for 3 samples"]),
        (lambda: Linf(torch.tensor([0.1, 8.0])).for_inputs(torch.zeros(2, 4)), ["[0, 1]", "8/255"]),
        (
            lambda: L1(1, mask=torch.ones(5, dtype=torch.bool)).for_inputs(torch.zeros(3, 4)),
            ["mask of shape (5,)", "(3, 4)"],
        ),
        (
            lambda: L1(1, mask=torch.ones(2, 4, dtype=torch.bool)).for_inputs(torch.zeros(3, 4)),
            ["mask of shape (2, 4)"],
        ),
    ],
)
def test_bad_threats_get_one_line(make: object, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_mask_that_is_not_bool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"mask of dtype torch.float32: expected torch.bool"):
        L2(1, mask=torch.ones(4)).for_inputs(torch.zeros(2, 4))


def test_per_sample_values_follow_their_samples() -> None:
    x = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    eps = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    far = torch.full_like(x, 9.0)
    for norm in ("linf", "l2", "l1"):
        whole = Threat(norm, eps, mask=mask).for_inputs(x)
        moved = whole.project(x, far)
        order = torch.tensor([3, 0, 4])
        part = whole[order]
        torch.testing.assert_close(part.project(x[order], far[order]), moved[order], rtol=0, atol=0)
        joined = part.joined(whole[torch.tensor([1, 2])])
        torch.testing.assert_close(joined.project(x[[3, 0, 4, 1, 2]], far), moved[[3, 0, 4, 1, 2]], rtol=0, atol=0)
        for b in range(5):
            single = Threat(norm, float(eps[b]), mask=mask[b]).for_inputs(x[b : b + 1])
            torch.testing.assert_close(single.project(x[b : b + 1], far[b : b + 1]), moved[b : b + 1])


def test_a_shared_mask_stays_shared() -> None:
    x = torch.zeros(3, 3, 2)  # as many samples as rows: the mask's rank tells, not its length
    mask = torch.tensor([[True], [False], [True]]).expand(3, 2)
    threat = L2(9.0, mask=mask).for_inputs(x)
    moved = threat[torch.tensor([2])].project(x[:1], torch.ones(1, 3, 2))
    assert torch.equal(moved[0], mask.float())


@pytest.mark.parametrize(
    ("norm", "expected"), [("linf", [4.0, 0.0]), ("l2", [5.0, 0.0]), ("l1", [7.0, 0.0]), ("l0", [2.0, 0.0])]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_size(norm: str, expected: list[float], dtype: torch.dtype) -> None:
    x = torch.ones(2, 1, 3, dtype=dtype)
    moved = x.clone()
    moved[0, 0, :2] += torch.tensor([3.0, -4.0], dtype=dtype)
    size = Threat(norm, 1).size(x, moved)
    assert size.tolist() == expected
    assert size.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_size_in_half_precision_is_computed_in_float32() -> None:
    x = torch.zeros(1, 300, dtype=torch.float16)
    moved = torch.full((1, 300), 250.0, dtype=torch.float16)  # the sum, 75,000, is beyond float16
    assert float(L1(1).size(x, moved)) == 75_000.0


def test_it_says_what_it_is() -> None:
    assert repr(Linf("8/255")) == "Linf(8/255)"
    assert repr(L2(0.5, bounds=None)) == "L2(0.5, bounds=None)"
    assert "masked" in repr(L1(1, mask=torch.ones(1, dtype=torch.bool)))
    assert "one per sample" in repr(L1(torch.ones(2)))
