"""What data an evaluation takes, which samples it picks, and what it says about data, models and attacks it can't use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import sparring as sp
from networks import inputs, linear, mlp
from sparring.evaluation.source import Source

SHAPE = (3, 4, 5)
THREAT = sp.Linf(0.01)
N = 50


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return mlp(SHAPE)


@pytest.fixture(scope="module")
def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    x, y = inputs(N, SHAPE)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return x, y


def quick(model: Any, data: Any, threat: sp.Threat = THREAT, **settings: Any) -> sp.EvaluationResult:
    return sp.evaluate(model, data, threat, **{"attacks": sp.PGD(threat, steps=2), "batch_size": 16} | settings)


class Streamed(IterableDataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pairs)


class Wide(TensorDataset):
    classes = ("cat", "dog", "fish", "fox")
    name = "animals"


def test_every_kind_of_data_gives_the_same_result(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    expected = list(quick(model, data).samples())
    assert [row["index"] for row in expected] == list(range(N))
    kinds = {
        "numpy labels": (x, y.numpy()),
        "int32 labels": (x, y.int()),
        "list of labels": (x, y.tolist()),
        "data set": Wide(x, y),
        "loader": DataLoader(Wide(x, y), batch_size=7),
        "shuffled loader": DataLoader(Wide(x, y), batch_size=7, shuffle=True),
        "drop_last does not drop": DataLoader(Wide(x, y), batch_size=7, drop_last=True),
        "a loader's larger batches": DataLoader(Wide(x, y), batch_sampler=[list(range(40)), list(range(40, N))]),
        "workers": DataLoader(Wide(x, y), batch_size=7, num_workers=2),
        "stream": Streamed(x, y),
        "loader of a stream": DataLoader(Streamed(x, y), batch_size=23),
        "subset": Subset(Wide(torch.cat([x[:3], x]), torch.cat([y[:3], y])), range(3, N + 3)),
    }
    for name, kind in kinds.items():
        assert list(quick(model, kind).samples()) == expected, name
    document = quick(model, kinds["shuffled loader"]).document
    assert document["data"]["class_names"] == list(Wide.classes)
    assert document["data"]["name"] == "animals"
    assert document["per_class"][1]["name"] == "dog"


def test_no_batch_is_larger_than_asked_for(data: tuple[Tensor, Tensor]) -> None:
    for kind in (DataLoader(Wide(*data), batch_sampler=[list(range(45)), list(range(45, N))]), data):
        batches = list(Source(kind, 8, None, 0))
        assert max(len(batch.y) for batch in batches) == 8
        assert torch.equal(torch.cat([batch.x for batch in batches]), data[0])
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(N))


def test_a_sampler_of_the_users_own_is_followed_the_same_way_each_time(data: tuple[Tensor, Tensor]) -> None:
    loader = DataLoader(Wide(*data), batch_size=4, sampler=SubsetRandomSampler(range(10, 30)))
    first, again, other = (torch.cat([b.x for b in Source(loader, 8, None, seed)]) for seed in (0, 0, 1))
    rows = {tuple(row.flatten().tolist()) for row in data[0][10:30]}
    assert {tuple(row.flatten().tolist()) for row in first} == rows
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_max_samples_is_a_random_part_with_the_right_numbers(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    whole = {row["index"]: row for row in quick(model, data).samples()}
    for kind in (data, Wide(x, y), DataLoader(Wide(x, y), shuffle=True, num_workers=1)):
        part = quick(model, kind, max_samples=20)
        assert list(part.samples()) == [whole[i] for i in part.index.tolist()]
        assert len(part.index) == 20
        assert part.document["data"]["available"] == N
    assert part.index.tolist() != list(range(20))
    assert torch.equal(quick(model, data, max_samples=20).index, part.index)
    assert not torch.equal(quick(model, data, max_samples=20, seed=1).index, part.index)
    assert quick(model, Streamed(x, y), max_samples=20).index.tolist() == list(range(20))  # a stream: the first ones
    assert len(quick(model, data, max_samples=1000).index) == N


def test_indices_are_the_samples_numbers(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    numbers = torch.arange(N).flip(0) * 3 + 100
    result = quick(model, data, indices=numbers)
    assert result.index.tolist() == sorted(numbers.tolist())
    assert torch.equal(result.correct, quick(model, data).correct.flip(0))
    for wrong, line in (
        (numbers[:-1], "49 indices for 50 samples"),
        (numbers * 0, "same number twice"),
        (numbers.float(), "expected whole numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=line):
            quick(model, data, indices=wrong)


def test_eps_and_masks_of_each_sample_go_by_position(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    eps = torch.where(torch.arange(N) % 2 == 0, 0.0, 0.05).double()
    mask = torch.zeros(N, *SHAPE, dtype=torch.bool)
    mask[::3, 0], mask[1::3] = True, True
    threat = sp.Linf(eps, mask=mask)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shuffled = sp.Linf(eps[order], mask=mask[order])
    result = quick(model, data, threat)
    assert 0 < result.robust_accuracy.count < result.clean_accuracy.count
    for index, original, adversarial in result.examples:
        assert eps[index] > 0
        assert mask[index].any()
        assert ((adversarial - original).abs() <= eps[index] + 1e-12).all()
        assert (adversarial == original)[~mask[index]].all()
    for size in (1, 7, 500):  # also where a batch holds one sample
        assert list(quick(model, data, threat, batch_size=size).samples()) == list(result.samples())
    again = quick(model, (x[order], y[order]), shuffled, indices=order)
    assert list(again.samples()) == list(result.samples())
    one = quick(model, data, sp.Linf(0.05, mask=mask[:1]), batch_size=49)  # one mask for all, with a batch dimension
    assert list(one.samples()) == list(quick(model, data, sp.Linf(0.05, mask=mask[0])).samples())
    part = quick(model, data, threat, max_samples=20)
    whole = {row["index"]: row for row in result.samples()}
    assert list(part.samples()) == [whole[i] for i in part.index.tolist()]
    for wrong in (sp.Linf(eps[:-1]), sp.Linf(0.1, mask=mask[:-1]), sp.Linf(torch.cat([eps, eps]))):
        with pytest.raises(ValueError, match="expected one for all, or one per sample"):
            quick(model, data, wrong)


def test_a_model_of_several_inputs(data: tuple[Tensor, Tensor]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(SHAPE)

        def forward(self, image: Tensor, bias: Tensor) -> Tensor:
            return self.net(image) + 0.3 * bias

    model, (x, _) = Two(), data
    bias = torch.nn.functional.one_hot(torch.arange(N) % 4, 4).double()
    y = model(x, bias).argmax(1)
    named = sp.attacked_input(model, "image")
    threat = sp.Linf(0.1)
    result = quick(named, ({"image": x, "bias": bias}, y), threat, batch_size=7)
    assert result.clean_accuracy.value == 1
    assert 0 < result.robust_accuracy.count < N
    for index, original, adversarial in result.examples:
        assert torch.equal(original, x[index])
        assert int(model(adversarial[None], bias[index : index + 1]).argmax()) != int(y[index])
    placed = quick(sp.attacked_input(model, 0), ((x, bias), y), threat, batch_size=16)
    assert torch.equal(placed.robust, result.robust)
    with pytest.raises(TypeError, match="takes x as a dict"):
        quick(named, (x, y))


class Rounded(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.net, self.change = linear(SHAPE, 4), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net(x))


def one_nan(logits: Tensor) -> Tensor:
    return torch.where(torch.arange(len(logits))[:, None] == 3, torch.nan, logits)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (one_nan, r"NaN or inf for 1 clean samples \(first: sample 3\)"),
        (lambda z: {"scores": z}, r"sp\.output\(model, 'scores'\)"),
        (lambda z: (z, z), r"sp\.output\(model, 0\)"),
        (lambda z: z[:, :, None], r"returned shape \(16, 4, 1\)"),
        (lambda z: z[:1], r"returned shape \(1, 4\)"),
        (lambda z: z[:, :1], "1 logit a sample"),
        (lambda z: z.argmax(1), "one row of logits a sample"),
        (lambda z: z.detach(), "no gradient"),
        (lambda z: z[:, :3], "holds classes from 0 to 3, the model has 3"),
    ],
)
def test_models_that_return_something_else(change: Any, line: str, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    y = linear(SHAPE, 4)(x).argmax(1)
    y[0], y[1] = 0, 3
    with pytest.raises((TypeError, ValueError), match=line) as error:
        quick(Rounded(change), (x, y))
    assert "\n" not in str(error.value)


def test_probabilities_are_warned_of(data: tuple[Tensor, Tensor]) -> None:
    result = quick(Rounded(lambda z: z.softmax(1)), data)
    assert "probabilities" in [warning.code for warning in result.warnings]
    assert "probabilities" not in [warning.code for warning in quick(Rounded(lambda z: z), data).warnings]


def nan_at(x: Tensor, *where: int) -> Tensor:
    x = x.clone()
    x[list(where), 0] = torch.nan
    return x


BAD: list[tuple[Any, str]] = [
    (lambda x, y: (x[:0], y[:0]), "empty"),
    (lambda x, y: Streamed(x[:0], y[:0]), "empty"),
    (lambda x, y: DataLoader(Wide(x, y), sampler=SubsetRandomSampler([])), "empty"),
    (lambda x, y: x, "data is Tensor: expected a Dataset"),
    (lambda x, y: "cifar10", "data is str: expected a Dataset"),
    (lambda x, y: {"x": x, "y": y}, "data is dict: expected a Dataset"),
    (lambda x, y: x.numpy(), "data is ndarray: expected a Dataset"),
    (lambda x, y: None, "data is NoneType: expected a Dataset"),
    (lambda x, y: (x, y, y), "tuple of 3: expected the pair"),
    (lambda x, y: (x.numpy(), y), r"ndarray: expected a tensor \(N, ...\); use torch.from_numpy"),
    (lambda x, y: (x, y[:-1]), "50 inputs and 49 labels"),
    (lambda x, y: TensorDataset(x), "the data yields a list of 1: expected pairs"),
    (lambda x, y: (x, nn.functional.one_hot(y, 4)), "not one-hot"),
    (lambda x, y: (x, y.double()), "expected class numbers of an integer dtype"),
    (lambda x, y: (x, y + 1), "holds classes from 1 to 4, the model has 4"),
    (lambda x, y: (x, y - 1), "holds classes from -1 to 2, the model has 4"),
    (lambda x, y: ((x * 255).byte(), y), "divide by 255 first"),
    (lambda x, y: (x * 255, y), r"samples 0 to 15: .*outside the box.*sp\.normalized\(model, mean, std\)"),
    (lambda x, y: (nan_at(x, 37, 41), y), r"samples 32 to 47: x holds NaN or inf in 2 \(first: sample 37\)"),
]


@pytest.mark.parametrize(("make", "line"), BAD)
def test_data_that_can_not_be_evaluated(make: Any, line: str, data: tuple[Tensor, Tensor], model: nn.Module) -> None:
    with pytest.raises((TypeError, ValueError), match=line) as error:
        quick(model, make(*data))
    assert "\n" not in str(error.value)


def test_bad_data_loses_nothing(model: nn.Module, data: tuple[Tensor, Tensor], tmp_path: Any) -> None:
    x, y = data
    with pytest.raises(ValueError, match="first: sample 37"):
        quick(model, (nan_at(x, 37), y), out=tmp_path, batch_size=8)
    kept = (tmp_path / ".parts" / "journal.jsonl").read_text().splitlines()
    assert len(kept) >= 5  # the samples that the model got wrong, at least
    mended = quick(model, data, out=tmp_path)
    assert list(mended.samples()) == list(quick(model, data).samples())


def returns(change: Any) -> Any:
    def foreign(model: Any, x: Tensor, y: Tensor) -> Any:
        return change(x)

    return foreign


def test_foreign_attacks_are_projected_and_asked_again(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    threat = sp.Linf(0.05)
    far = quick(model, data, threat, attacks=returns(lambda x: 1e3 - x))
    assert 0 < far.attacks[0]["fooled"] < N
    assert far.attacks[0]["name"] == "foreign"
    for _, original, adversarial in far.examples:
        assert (adversarial - original).abs().max() <= 0.05 + 1e-12
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
    corner = (x + 0.05).clamp(0, 1)  # where 1000 − x ends up
    right = model(x).argmax(1) == y
    assert torch.equal(far.robust, right & (model(corner).argmax(1) == y))
    assert quick(model, data, threat, attacks=returns(lambda x: x)).attacks[0]["fooled"] == 0
    assert quick(model, data, threat, attacks=returns(lambda x: x * torch.nan)).attacks[0]["fooled"] == 0
    same = quick(model, data, threat, attacks=[lambda m, x, y: sp.PGD(threat, steps=3)(m, x, y)])
    assert same.attacks[0]["fooled"] > 0  # an Adversarial is taken too
    with torch.no_grad():  # what the caller has switched off is switched on for the attack
        assert quick(model, data, threat, attacks=lambda m, x, y: sp.FGSM(threat)(m, x, y)).attacks[0]["fooled"] > 0


@pytest.mark.parametrize(
    ("attacks", "line"),
    [
        (returns(lambda x: x[:1]), r"attack foreign returned shape \(1, 3, 4, 5\): expected \(\d+, 3, 4, 5\)"),
        (returns(lambda x: x.flatten(1)), "attack foreign returned shape"),
        (returns(lambda x: None), "attack foreign returned NoneType"),
        ("pdg", "attack 'pdg': did you mean 'pgd'\\? Expected 'adaptive', 'autoattack', .* one of fgsm, .*pgd"),
        (["pgd", "adaptive"], "give it alone"),
        ([], "attacks is empty"),
        (3, "attack 3: expected an attack, its name, or a callable"),
        ([3], "attack 3: expected an attack, its name, or a callable"),
        (sp.PGD(sp.Linf(0.02)), "give both the same threat"),
        (sp.PGD(sp.Linf(0.001)), "give both the same threat"),
        (sp.PGD(sp.L2(0.01)), "give both the same threat"),
        (sp.PGD(sp.Linf(0.01, bounds=(-1, 1))), "give both the same threat"),
        (sp.PGD(sp.Linf(0.01, mask=torch.ones(5, dtype=torch.bool))), "give both the same threat"),
        (sp.PGD(sp.Linf(torch.full((N,), 0.01))), "give both the same threat"),
    ],
)
def test_attacks_that_can_not_be_run(attacks: Any, line: str, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises((TypeError, ValueError), match=line) as error:
        quick(model, data, attacks=attacks)
    assert "\n" not in str(error.value)


def test_attacks_go_by_name_class_or_instance(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    rows = [quick(model, data, attacks=a).attacks[0] for a in ("PGD", "pgd", sp.PGD, [sp.PGD(THREAT)])]
    assert all({**row, "seconds": 0} == {**rows[0], "seconds": 0} for row in rows)
    assert [row["name"] for row in quick(model, data, attacks=["mi-fgsm", "r_fgsm"]).attacks] == ["MIFGSM", "RFGSM"]
    names = [row["name"] for row in quick(model, data, attacks="Adaptive").attacks]
    assert names[:3] == ["MarginAscent"] * 2 + ["APGD"]
    assert "Square" in names


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("max_samples", 0), ("threat", 0.1)])
def test_settings_out_of_range(name: str, value: Any, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    settings = {"threat": THREAT} | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"{name}={value}: expected"):
        sp.evaluate(model, data, **settings)


def test_random_models_are_not_believed(data: tuple[Tensor, Tensor]) -> None:
    """A success that is gone when the model is asked again does not count, and is told."""
    generator, x = torch.Generator().manual_seed(0), data[0]

    def shaky(x: Tensor) -> Tensor:
        z = linear(SHAPE, 4)(x)
        if torch.is_grad_enabled():
            return z + 30 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
        return z

    result = quick(shaky, (x, linear(SHAPE, 4)(x).argmax(1)), sp.Linf(1e-9))
    assert result.robust_accuracy.count == N
    assert "not-reproducible" in [warning.code for warning in result.warnings]
    assert np.isinf(result.distance.numpy()).all()


def test_a_list_of_samples_is_a_data_set_of_any_length() -> None:
    samples = [(torch.full((2,), float(i)), i) for i in range(3)]
    for count in (1, 2, 3):
        batches = list(Source(samples[:count], 8, None, 0))
        assert torch.cat([batch.y for batch in batches]).tolist() == list(range(count))


@pytest.mark.parametrize(("batch_size", "max_samples", "word"), [(0, None, "batch_size=0"), (4, 0, "max_samples=0")])
def test_sizes_that_are_none_get_one_line(batch_size: int, max_samples: int | None, word: str) -> None:
    with pytest.raises(ValueError, match=f"{word}: expected a whole number, at least 1"):
        Source((torch.rand(3, 2), torch.zeros(3).long()), batch_size, max_samples, 0)
