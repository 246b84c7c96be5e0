"""Keras 3 models on the torch backend."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="needs the [keras] extra")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend", allow_module_level=True)

import sparring as sp  # noqa: E402
from sparring.keras import KerasModel  # noqa: E402
from sparring.training.batchnorm import layers  # noqa: E402

L = keras.layers


def network(*end: Any, momentum: float = 0.9) -> Any:
    keras.utils.set_random_seed(0)
    end = end or (L.Dense(3, activation="softmax"),)
    return keras.Sequential(
        [keras.Input((6, 5, 2)), L.Conv2D(4, 3), L.BatchNormalization(momentum=momentum), L.ReLU(), L.Flatten(), *end]
    )


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, 6, 5, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def answered(net: KerasModel, x: Tensor) -> Tensor:
    torch.manual_seed(0)  # dropout draws from torch's generator, as elsewhere
    return net(x)


@pytest.mark.parametrize(
    "end", [(), (L.Dense(3), L.Activation("softmax")), (L.Dense(3), L.Softmax()), (L.Dense(3),)], ids=str
)
def test_logits_are_those_of_keras(end: tuple[Any, ...]) -> None:
    model, (x, _) = network(*end), images()
    ours = KerasModel(model).eval()(x)
    theirs = model(x.permute(0, 2, 3, 1), training=False)
    found = ours if len(end) == 1 else ours.softmax(1)
    torch.testing.assert_close(found, theirs)
    assert not torch.allclose(ours.sum(1), torch.ones(len(x)))
    after = model(x.permute(0, 2, 3, 1), training=False)
    assert torch.equal(after, theirs), "the Keras model answers as before"


def test_training_mode_is_that_of_keras_but_for_the_n_in_the_variance() -> None:
    (x, _), ours, theirs = images(), network(), network()
    theirs.set_weights(ours.get_weights())
    net = KerasModel(ours).train()
    torch.testing.assert_close(net(x).softmax(1), theirs(x.permute(0, 2, 3, 1), training=True))
    mean, var = (getattr(ours.layers[1], name).value for name in ("moving_mean", "moving_variance"))
    n = 24 * 4 * 3
    torch.testing.assert_close(mean, theirs.layers[1].moving_mean.value)
    torch.testing.assert_close((var - 0.9) * (n - 1) / n, theirs.layers[1].moving_variance.value - 0.9)
    assert int(net.normalisations[0].num_batches_tracked) == 1


def test_batchnorm_is_seen_and_frozen_layers_stay_frozen() -> None:
    model = network()
    assert (
        layers(KerasModel(model).train()) == [KerasModel(model).normalisations[0]]
        or len(layers(KerasModel(model))) == 1
    )
    model.layers[1].trainable = False
    net = KerasModel(model).train()
    assert layers(net) == []
    before = model.layers[1].moving_mean.value.clone()
    net(images()[0])
    assert torch.equal(model.layers[1].moving_mean.value, before)


def test_an_evaluation_leaves_it_as_it_was_and_attacks_the_logits() -> None:
    model, (x, y) = network(), images()
    net = KerasModel(model).train()
    before = [w.copy() for w in model.get_weights()]
    adversarial = sp.PGD(sp.Linf(0.05), steps=3)(net, x, y)
    assert (adversarial.x - x).abs().max() <= 0.05 + 1e-6
    assert all((a == b).all() for a, b in zip(before, model.get_weights()))
    assert net.training
    result = sp.evaluate(net, (x, net.eval()(x).argmax(1)), sp.Linf(0.3), batch_size=8)
    assert result.clean_accuracy.value == 1
    assert result.robust_accuracy.value < 0.5
    assert not any("probabilit" in warning.code for warning in result.warnings)


def test_fit_trains_the_keras_model_and_recalibrate_sets_its_statistics(tmp_path: Path) -> None:
    x, _ = images(96)
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    model = network(momentum=0.999)
    net = KerasModel(model)
    result = sp.fit(
        net,
        (x, y),
        sp.PGDTraining(sp.Linf(0.01), steps=2),
        epochs=8,
        lr=0.01,
        optimizer="adam",
        batch_size=16,
        out=tmp_path,
    )
    assert result.history[-1].robust_accuracy is not None
    assert result.history[-1].robust_accuracy > 0.65
    assert any("caught up" in note for note in result.notes), "a momentum of .999 is too slow"
    sp.recalibrate(net, (x, y))
    inside = model.layers[0](x.permute(0, 2, 3, 1))
    torch.testing.assert_close(
        model.layers[1].moving_mean.value.data, inside.mean((0, 1, 2)).detach(), rtol=1e-4, atol=1e-5
    )
    model.save(tmp_path / "net.keras")
    again = KerasModel(keras.saving.load_model(tmp_path / "net.keras")).eval()
    torch.testing.assert_close(again(x), net.eval()(x))


def test_its_state_is_a_torch_state() -> None:
    x, _ = images()
    a, b = (
        KerasModel(network(L.Dropout(0.5), L.Dense(3))).train(),
        KerasModel(network(L.Dropout(0.5), L.Dense(3))).train(),
    )
    for _ in range(3):
        a(x)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.eval()(x), b.eval()(x))
    assert torch.equal(b.normalisations[0].running_mean, b.model.layers[1].moving_mean.value)
    c = copy.deepcopy(a.train())
    assert torch.equal(answered(a, x), answered(b.train(), x))
    assert torch.equal(answered(a, x), answered(c, x))
    assert c.model is not a.model
    b.to("cpu", torch.float32)
    assert b.normalisations[0].running_mean.data_ptr() == b.model.layers[1].moving_mean.value.data_ptr()


@pytest.mark.parametrize("policy", ["auto", "batch", "eval", "train", "split"])
def test_crafting_moves_no_statistics_under_any_policy(policy: str) -> None:
    model, (x, y) = network(), images()
    net = KerasModel(model).train()
    strategy = sp.Mixed(sp.PGD(sp.Linf(0.05), steps=2), bn=policy)
    for loss in strategy(net, (x, y)):
        loss.value.backward()
    assert int(net.normalisations[0].num_batches_tracked) == 1, "one forward is learned from"
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_bad_input_is_one_line() -> None:
    with pytest.raises(TypeError, match=r"given Linear: expected a Keras model"):
        KerasModel(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has no weights yet"):
        KerasModel(keras.Sequential([L.Dense(3)]))
