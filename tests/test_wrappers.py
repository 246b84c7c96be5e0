"""What goes round a model: normalisation, the choice of an output, the choice of an input."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from networks import inputs, mlp


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 7), (3,)])
def test_normalized_is_its_formula_in_every_rank(shape: tuple[int, ...]) -> None:
    x, _ = inputs(2, shape)
    model = sp.normalized(lambda v: v, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    expected = torch.stack([(x[:, c] - 0.1 * (c + 1)) / (0.5 + 0.1 * c) for c in range(3)], 1)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(sp.normalized(lambda v: v, 0.5, 0.25)(x), (x - 0.5) / 0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_normalized_follows_the_dtype_and_keeps_its_numbers_exact(dtype: torch.dtype) -> None:
    model = sp.normalized(nn.Flatten(), [0.485], [0.229]).half().to(dtype)
    x = torch.full((1, 1, 2), 0.5, dtype=dtype)
    assert model(x).dtype == dtype
    assert model.mean.tolist() == [0.485]  # .half() would have left 0.4849
    expected = (torch.tensor(0.5, dtype=dtype) - torch.tensor(0.485, dtype=dtype)) / torch.tensor(0.229, dtype=dtype)
    assert torch.equal(model(x), expected.expand(1, 2))


def test_normalized_moves_and_saves_like_the_model_inside() -> None:
    inner = nn.Linear(3, 2)
    model = sp.normalized(inner, 0.5, 0.5)
    assert list(model.parameters()) == list(inner.parameters())
    assert set(model.state_dict()) == {"model.weight", "model.bias"}
    model.double()
    assert inner.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ([0.5, 0.5], [0.5], "as many means as stds"),
        ([0.5], [0.0], "every std above 0"),
        ([0.5], [-1.0], "every std above 0"),
        ([0.5], [float("nan")], "every std above 0"),
    ],
)
def test_normalized_refuses_numbers_that_do_not_fit(mean: list[float], std: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sp.normalized(nn.Identity(), mean, std)


def test_normalized_names_the_channels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"3 means for inputs with 1 channels \(shape \(2, 1, 4, 4\)\)"):
        sp.normalized(nn.Identity(), [0.5] * 3, [0.5] * 3)(torch.zeros(2, 1, 4, 4))


def test_output_picks_by_key_attribute_and_position() -> None:
    z = torch.ones(1, 2)
    Named = namedtuple("Named", ["logits", "hidden"])
    assert sp.output(lambda x: {"logits": x}, "logits")(z) is z
    assert sp.output(lambda x: {0: x}, 0)(z) is z
    assert sp.output(lambda x: Named(x, 0), "logits")(z) is z
    assert sp.output(lambda x: (0, x), 1)(z) is z
    assert sp.output(lambda x: [x, 0], -2)(z) is z


@pytest.mark.parametrize(
    ("model", "key", "words"),
    [
        (lambda x: {"a": x, "b": x}, "logits", ["'logits'", "['a', 'b']"]),
        (lambda x: x, "logits", ["'logits'", "Tensor"]),
        (lambda x: x, 0, ["output 0", "a Tensor"]),
        (lambda x: (x,), 1, ["output 1", "a tuple of 1"]),
    ],
)
def test_output_says_what_there_is(model: object, key: str | int, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        sp.output(model, key)(torch.zeros(1, 2))  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.meta = mlp((2, 3), seed=1), mlp((4,), seed=2)

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        return self.image(image) + self.meta(meta)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("attacked", [0, 1])
def test_one_input_of_two_is_attacked(by_name: bool, attacked: int) -> None:
    (image, y), (meta, _) = inputs(5, (2, 3), classes=4), inputs(5, (4,), seed=1)
    names, parts, net = ["image", "meta"], [image, meta], Pair()
    wrapped = sp.attacked_input(net, names[attacked] if by_name else attacked)
    x = dict(zip(names, parts)) if by_name else tuple(parts)
    kept = [p.clone() for p in parts]
    attack = sp.PGD(sp.Linf(0.2), steps=5, stop_when_fooled=True)  # samples leave: the other input must leave with them
    found = attack(wrapped, x, y)
    assert all(torch.equal(a, b) for a, b in zip(parts, kept))
    for b in range(5):  # each alone, with the other input held in a closure

        def alone(v: Tensor, b: int = b) -> Tensor:
            other = parts[1 - attacked][b : b + 1]
            return net(v, other) if attacked == 0 else net(other, v)

        one = attack(alone, parts[attacked][b : b + 1], y[b : b + 1], indices=torch.tensor([b]))
        assert torch.equal(one.x[0], found.x[b])
    arguments = [found.x if i == attacked else parts[i] for i in range(2)]
    assert torch.equal(net(*arguments).argmax(1), found.prediction)


@pytest.mark.parametrize(
    ("which", "x", "error", "words"),
    [
        ("image", torch.zeros(2, 3), TypeError, "takes x as a dict of tensors, not Tensor"),
        (0, {"image": torch.zeros(2, 3)}, TypeError, "takes x as a tuple of tensors, not dict"),
        ("picture", {"image": torch.zeros(2, 3), "meta": torch.zeros(2, 1)}, ValueError, "'picture'.*image, meta"),
        (2, (torch.zeros(2, 3), torch.zeros(2, 1)), ValueError, "attacked input 2.*0, 1"),
        ("image", {"image": torch.zeros(2, 3), "meta": torch.zeros(3, 1)}, ValueError, "'meta'.*3.*2"),
        ("image", {"image": torch.zeros(2, 3), "meta": "text"}, TypeError, "'meta'.*str.*tensor"),
    ],
)
def test_other_inputs_that_do_not_fit_get_one_line(which: str | int, x: object, error: type, words: str) -> None:
    model = sp.attacked_input(lambda image, meta: image, which)
    with pytest.raises(error, match=words) as caught:
        sp.FGSM(sp.Linf(0.1))(model, x, torch.zeros(2, dtype=torch.int64))
    assert "\n" not in str(caught.value)


def test_a_dict_without_the_wrapper_names_it() -> None:
    with pytest.raises(TypeError, match=r"x is dict: .*sp.attacked_input\(model"):
        sp.FGSM(sp.Linf(0.1))(lambda **x: x, {"image": torch.zeros(2, 3)}, torch.zeros(2, dtype=torch.int64))


def test_repr_names_the_callable_inside() -> None:
    assert "lambda" in repr(sp.normalized(lambda x: x, 0.5, 0.5))
