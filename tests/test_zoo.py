"""Networks by name, and weights from files that may be anything."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparring import data, zoo
from sparring.zoo.efficientnet import PACKAGE, ConvNorm
from sparring.zoo.maxout import Maxout

REAL = os.environ.get("SPARRING_DATA")
needs_weights = pytest.mark.skipif(not importlib.util.find_spec(PACKAGE), reason=f"{PACKAGE} is not installed")
SHAPES = {
    **dict.fromkeys(("softmax", "mlp", "small-cnn", "lenet5", "maxout"), (1, 28, 28)),
    **dict.fromkeys(("conv-maxout", "small-resnet", "preact-resnet18"), (3, 32, 32)),
    "efficientnet-lite0": (3, 64, 48),
}
SMALL = {"efficientnet-lite0": {"pretrained": False}, "preact-resnet18": {"width": 16}}


@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "lstm"])  # of texts, below
def test_networks_are_deterministic_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model, again, other = (zoo.build(name, seed=seed, **SMALL.get(name, {})) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.rand(3, *SHAPES[name])
    logits, same, different = (m.eval()(x) for m in (model, again, other))
    assert torch.equal(logits, same)
    assert not torch.allclose(logits, different)
    assert logits.shape == (3, 1000 if name.startswith("eff") else 10)
    assert torch.allclose(model(x[1:2]), logits[1:2], atol=1e-4)


def test_the_lstm_is_deterministic_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (zoo.build("lstm", seed=s, vocabulary=20, embedding=4, hidden=5).eval() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randint(2, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(x)
    assert torch.equal(one(x, mask), same(x, mask))
    assert not torch.allclose(one(x, mask), other(x, mask))


def test_other_shapes() -> None:
    for name in ("softmax", "mlp", "small-cnn", "lenet5", "maxout"):
        assert zoo.build(name, in_channels=3, size=32, classes=43)(torch.rand(2, 3, 32, 32)).shape == (2, 43)
    assert zoo.build("conv-maxout", in_channels=1, size=28)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_wrong_names_and_arguments() -> None:
    with pytest.raises(ValueError, match="did you mean 'small-cnn'"):
        zoo.build("small_cnn")
    with pytest.raises(TypeError, match="softmax takes no width"):
        zoo.build("softmax", width=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        zoo.build("small-cnn", size=30)


def test_maxout_is_the_largest_of_each_unit_s_pieces() -> None:
    x = torch.rand(2, 6, 4, 4)
    out = Maxout(3)(x)
    assert torch.equal(out, torch.stack([x[:, :3].max(1).values, x[:, 3:].max(1).values], 1))


def test_same_padding_puts_the_odd_row_at_the_end() -> None:
    layer = ConvNorm(1, 1, 3, stride=2, active=False).eval()
    nn.init.ones_(layer.conv.weight)
    out = layer(torch.ones(1, 1, 4, 4)) * (1 + 1e-3) ** 0.5
    torch.testing.assert_close(out[0, 0], torch.tensor([[9.0, 6.0], [6.0, 4.0]]))


# Weights


@pytest.fixture
def model() -> nn.Module:
    return zoo.build("mlp", size=4, hidden=(5,))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_kind_of_file(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pt")
    for file in ("a.safetensors", "plain.pt", "wrapped.pt"):
        other = zoo.build("mlp", seed=9, size=4, hidden=(5,))
        assert not same(other, model)
        assert same(zoo.load_weights(other, tmp_path / file), model)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_full_pickle_only_when_asked(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "module.pt")
    other = zoo.build("mlp", seed=9, size=4, hidden=(5,))
    with pytest.raises(ValueError, match="unsafe"):
        zoo.load_weights(other, tmp_path / "module.pt")
    assert same(zoo.load_weights(other, tmp_path / "module.pt", unsafe_pickle=True), model)
    torch.save({"state_dict": Bomb(tmp_path / "pwned")}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt"):
        zoo.load_weights(other, tmp_path / "bomb.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("end", ["pt", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_files(model: nn.Module, tmp_path: Path, end: str, damage: str) -> None:
    path = tmp_path / f"a.{end}"
    if end == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "garbage": b"hello " * 99, "empty": b""}[damage])
    with pytest.raises(ValueError, match=f"a.{end}: ") as error:
        zoo.load_weights(model, path)
    assert "\n" not in str(error.value)


def test_weights_of_another_network(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    state["extra"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(7, 5)
    del state["1.bias"]
    torch.save(state, tmp_path / "a.pt")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        zoo.load_weights(model, tmp_path / "a.pt")
    for part in ("a.pt", "missing 1.bias", "unexpected extra", "3.weight is (7, 5), expected (10, 5)"):
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected tensors by name"):
        zoo.load_weights(model, tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="no such weights"):
        zoo.load_weights(model, tmp_path / "none.pt")


@pytest.mark.skipif(not REAL, reason="SPARRING_DATA is not set")
def test_published_weights_reach_their_published_accuracy() -> None:
    assert REAL
    model = zoo.load_weights(zoo.build("small-cnn"), Path(REAL) / "robust-weights" / "fastadv_mnist_fgsm.pth")
    x, y = data.open("mnist").tensors()
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean().item() == pytest.approx(0.9850, abs=2e-4)


# EfficientNet-Lite0


def test_missing_imagenet_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.zoo.efficientnet.PACKAGE", "no_such_package_at_all")
    with pytest.raises(ModuleNotFoundError, match=r"sparring\[imagenet\]"):
        zoo.build("efficientnet-lite0")


@needs_weights
def test_the_bundled_photograph_is_a_cat() -> None:
    model = zoo.build("efficientnet-lite0")
    assert not model.training
    with torch.no_grad():
        top = model(data.read_image(data.photograph(), resize=256)[None]).softmax(1)[0].topk(3)
    names = data.imagenet_classes()
    assert {names[i] for i in top.indices.tolist()} == {"tabby", "tiger cat", "Egyptian cat"}
    assert top.values.sum() > 0.8


@needs_weights
@pytest.mark.skipif(not REAL, reason="SPARRING_DATA is not set")
def test_photographs_are_classified_as_by_the_published_network() -> None:
    folder = Path(REAL or "") / "imagenet-samples"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = data.imagenet_classes()
    y = torch.tensor([int(row["class_index"]) for row in rows])
    confidence = torch.tensor([float(row["efficientnet_lite0_confidence"]) for row in rows])
    assert [names[i] for i in y] == [row["name"] for row in rows]
    model = zoo.build("efficientnet-lite0")
    with torch.no_grad():
        p = torch.cat([model(data.read_image(folder / row["file"], resize=256)[None]).softmax(1) for row in rows])
    assert (p.argmax(1) == y).float().mean() >= 0.94
    # The confidences were taken before the photographs were scaled down and saved as JPEG.
    assert (p[torch.arange(len(y)), y] - confidence).abs().median() < 0.03
