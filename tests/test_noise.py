"""Noise keyed by (seed, index, draw): equal where the key is, independent where it is not, with the right distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.noise import Noise

METHODS = ["bits", "uniform", "normal", "exponential", "sign"]


@given(
    indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=8, unique=True),
    seed=st.integers(-(2**62), 2**62),
    method=st.sampled_from(METHODS),
    shape=st.sampled_from([(2, 3), (1,), (13,), (5, 7)]),
    data=st.data(),
)
def test_a_sample_gets_the_same_noise_in_any_company(
    indices: list[int], seed: int, method: str, shape: tuple[int, ...], data: st.DataObject
) -> None:
    whole = getattr(Noise(seed, torch.tensor(indices)), method)(shape, "start", 1)
    order = data.draw(st.permutations(range(len(indices))))
    part = order[: data.draw(st.integers(1, len(order)))]
    alone = getattr(Noise(seed, torch.tensor([indices[i] for i in part])), method)(shape, "start", 1)
    assert torch.equal(alone, whole[part])


def test_a_number_that_differs_by_sample_is_that_number() -> None:
    noise = Noise(3, torch.arange(4))
    mixed = noise.uniform((5,), "step", torch.tensor([7, 7, 8, 9]))
    for row, step in enumerate([7, 7, 8, 9]):
        assert torch.equal(mixed[row], noise.uniform((5,), "step", step)[row])


def test_seed_index_and_draw_all_matter() -> None:
    def draw(seed: int, index: int, *parts: str | int) -> float:
        return float(Noise(seed, torch.tensor([index])).uniform((1,), *parts))

    values = [draw(s, i, d, r) for s in range(5) for i in range(5) for d in ("start", "target", "") for r in range(4)]
    assert len(set(values)) == len(values)


def kolmogorov(values: torch.Tensor, cdf: torch.Tensor) -> float:
    """√n · sup |F_n − F|; above 1.95 has a probability of 0.1%."""
    n = len(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (200, 100)])
def test_uniform(seed: int, shape: tuple[int, int]) -> None:
    u = Noise(seed, torch.arange(shape[0])).uniform((shape[1],), "u").flatten().double().sort().values
    assert float(u[0]) > 0
    assert float(u[-1]) < 1
    assert kolmogorov(u, u) < 1.95
    for power in (1, 2, 3):
        assert float((u**power).mean()) == pytest.approx(1 / (power + 1), abs=4 / math.sqrt(len(u)) / (power + 1))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000)])
def test_normal(seed: int, shape: tuple[int, int]) -> None:
    z = Noise(seed, torch.arange(shape[0])).normal((shape[1],), "z").flatten().double().sort().values
    assert kolmogorov(z, 0.5 * (1 + torch.erf(z / math.sqrt(2)))) < 1.95
    n = len(z)
    # standard errors of the first four moments: 1, √2, √15, √96 over √n
    for power, moment, error in ((1, 0, 1.0), (2, 1, 2.0), (3, 0, 15.0), (4, 3, 96.0)):
        assert float((z**power).mean()) == pytest.approx(moment, abs=4 * math.sqrt(error / n))


def test_exponential_and_root() -> None:
    noise = Noise(0, torch.arange(20_000))
    e = noise.exponential((1,), "e").flatten().double().sort().values
    assert kolmogorov(e, 1 - torch.exp(-e)) < 1.95
    r = noise.root(5, "r").flatten().double().sort().values
    assert kolmogorov(r, r**5) < 1.95
    by_sample = noise.root(torch.full((20_000, 1), 5), "r")
    assert torch.equal(by_sample, noise.root(5, "r"))


def test_sign_and_below_are_fair() -> None:
    noise = Noise(0, torch.arange(30_000))
    assert abs(float(noise.sign((1,), "s").mean())) < 4 / math.sqrt(30_000)
    assert set(noise.sign((3,), "s").unique().tolist()) == {-1.0, 1.0}
    counts = noise.below(7, (1,), "b").flatten().bincount(minlength=7).double()
    assert float(((counts - 30_000 / 7) ** 2 / (30_000 / 7)).sum()) < 22.5  # χ² of 6 degrees, 0.1%
    by_sample = noise.below(torch.arange(30_000)[:, None] % 5 + 1, (1,), "b").flatten()
    assert bool((by_sample < torch.arange(30_000) % 5 + 1).all())


@pytest.mark.parametrize("pair", ["seeds", "indices", "draws", "numbers", "entries", "methods"])
def test_streams_are_independent(pair: str) -> None:
    n = 20_000
    noise = Noise(0, torch.arange(n))
    a = noise.uniform((1,), "a", 0).flatten()
    b = {
        "seeds": lambda: Noise(1, torch.arange(n)).uniform((1,), "a", 0),
        "indices": lambda: Noise(0, torch.arange(1, n + 1)).uniform((1,), "a", 0),
        "draws": lambda: noise.uniform((1,), "b", 0),
        "numbers": lambda: noise.uniform((1,), "a", 1),
        "entries": lambda: noise.uniform((2,), "a", 0)[:, 1],
        "methods": lambda: noise.normal((1,), "a", 0),
    }[pair]().flatten()
    correlation = float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])
    assert abs(correlation) < 4 / math.sqrt(n)
    # and not only linearly: a 5 × 5 table of quantiles, χ² of 16 degrees, 0.1%
    rank = lambda v: v.argsort().argsort() * 5 // n  # noqa: E731
    table = (rank(a) * 5 + rank(b)).bincount(minlength=25).double()
    assert float(((table - n / 25) ** 2 / (n / 25)).sum()) < 39.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_like_and_range(dtype: torch.dtype) -> None:
    noise = Noise(0, torch.arange(100))
    like = torch.zeros(1, dtype=dtype)
    for values in (noise.uniform((50,), "u", like=like, low=-2, high=3), noise.sign((5,), "s", like=like)):
        assert values.dtype == dtype
    u = noise.uniform((50,), "u", like=like, low=-2.0, high=3.0)
    assert -2 <= float(u.min()) < -1.9
    assert 2.9 < float(u.max()) <= 3
    assert noise.normal((5,), "n", like=like).dtype == dtype


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    noise = Noise(0, torch.arange(3))
    for method in METHODS:
        getattr(noise, method)((4,), "x")
    noise.below(3, (2,), "x")
    assert torch.equal(before, torch.get_rng_state())


def test_the_numbers_themselves_stay_what_they_are() -> None:
    """A published result names its seed: the generator's numbers may not change between versions."""
    bits = Noise(0, torch.tensor([0, 1])).bits((2,), "start", 0)
    mask, gamma = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:  # SplitMix64 in plain whole numbers
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    from zlib import crc32

    for index in (0, 1):
        key = mix((index * gamma + mix(0)) & mask)
        for part in (crc32(b"start"), 0):
            key = mix((key + gamma + part) & mask)
        expected = [mix((key + (i + 1) * gamma) & mask) for i in range(2)]
        assert [b & mask for b in bits[index].tolist()] == expected
