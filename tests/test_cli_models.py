"""From what a person types after --model to a model."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sparring import zoo
from sparring.cli import models
from sparring.cli.settings import ModelSettings

CPU = torch.device("cpu")
FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, bias=True):
        super().__init__()
        self.layer = nn.Linear(4, classes, bias=bias)
    def forward(self, x):
        return {"logits": self.layer(x.flatten(1)), "other": x}

def make(width=4):
    assert width < 9, "width is at most 8"
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 2))

ready = make()
number = 3
def nothing(): return None
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


def load(**settings: object) -> torch.nn.Module:
    return models.load(ModelSettings(**settings), CPU)  # type: ignore[arg-type, no-any-return]


def test_a_file_a_class_and_its_arguments(file: Path) -> None:
    net = load(model=f"{file}:Net", model_args=["classes=5", "bias=false"], output="logits")
    assert net(torch.zeros(2, 1, 2, 2)).shape == (2, 5)
    assert net.model.layer.bias is None
    assert not net.training


def test_a_module_in_the_working_directory_and_a_finished_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_test_pkg").mkdir()
    (tmp_path / "cli_test_pkg" / "nets.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load(model="cli_test_pkg.nets:ready")(torch.zeros(1, 4)).shape == (1, 2)
    with pytest.raises(ValueError, match="takes no --model-args"):
        load(model="cli_test_pkg.nets:ready", model_args=["width=2"])


def test_a_zoo_network_with_weights_and_normalisation(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trained = zoo.build("softmax", seed=7)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    x = torch.rand(3, 1, 28, 28)
    plain = load(model="softmax", weights=tmp_path / "w.safetensors")
    torch.testing.assert_close(plain(x), trained(x))
    normal = load(model="softmax", weights=tmp_path / "w.safetensors", normalize=("1/2", "0.25"))
    torch.testing.assert_close(normal(x), trained((x - 0.5) / 0.25))


def test_a_pickle_needs_permission(tmp_path: Path) -> None:
    torch.save(zoo.build("softmax"), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="unsafe_pickle"):
        load(model="softmax", weights=tmp_path / "whole.pt")
    load(model="softmax", weights=tmp_path / "whole.pt", unsafe_pickle=True)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"model": "sofmax"}, ValueError, "Did you mean 'softmax'"),
        ({"model": "qqq"}, ValueError, "Zoo: softmax"),
        ({"model": "FILE:mke"}, ValueError, "Did you mean 'make'"),
        ({"model": "FILE:number"}, TypeError, "is a int"),
        ({"model": "FILE:nothing"}, TypeError, "gave a NoneType"),
        (
            {"model": "FILE:make", "model_args": ["width=9"]},
            ValueError,
            "make.width=9. raised AssertionError: width is",
        ),
        ({"model": "FILE:make", "model_args": ["widht=2"]}, ValueError, "widht"),
        ({"model": "FILE:make", "model_args": ["width"]}, ValueError, "expected key=value"),
        ({"model": "FILE:make", "weights": Path("w.pt")}, FileNotFoundError, "w.pt: no such file"),
        ({"model": "netz.py:make"}, FileNotFoundError, "no file netz.py"),
        ({"model": "no_such_module_q:make"}, ValueError, "no module named 'no_such_module_q'"),
        ({"model": "softmax", "normalize": ("a", "1")}, ValueError, "'a' is not a number"),
        ({"model": "softmax", "normalize": ("0", "0")}, ValueError, "STD must be above 0"),
        ({}, ValueError, "--model is missing"),
    ],
)
def test_mistakes(file: Path, settings: dict[str, object], error: type[Exception], said: str) -> None:
    if "model" in settings:
        settings = settings | {"model": str(settings["model"]).replace("FILE", str(file))}
    with pytest.raises(error, match=said):
        load(**settings)


def test_an_error_inside_the_users_module_is_not_called_a_missing_module(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_q\n")
    with pytest.raises(ImportError, match=r"broken.py raised ModuleNotFoundError: No module named 'no_such_module_q'"):
        load(model=f"{tmp_path / 'broken.py'}:make")


def test_a_missing_and_a_mismatched_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm"):
        load(model="timm:resnet18")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms is unknown')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"does not work with torch .*nms.*install the torchvision that belongs"):
        load(model="torchvision:resnet18")


def test_timm_brings_its_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("timm")
    asked: dict[str, object] = {}

    def create_model(name: str, **kwargs: object) -> torch.nn.Module:
        asked.update(kwargs, name=name)
        net = torch.nn.Sequential(torch.nn.Flatten())
        net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        return net

    fake.create_model = create_model  # type: ignore[attr-defined]
    fake.is_model = lambda name: name == "resnet18"  # type: ignore[attr-defined]
    fake.list_models = lambda: ["resnet18"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    net = load(model="timm:resnet18")
    torch.testing.assert_close(net(torch.full((1, 3, 1, 1), 0.75)), torch.ones(1, 3))
    assert asked == {"name": "resnet18", "pretrained": True}
    with pytest.raises(ValueError, match="Did you mean 'resnet18'"):
        load(model="timm:resnet81")


def test_a_device_that_is_not_there() -> None:
    assert models.pick_device("cpu") == CPU
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"--device {name}: not usable here"):
            models.pick_device(name)


def test_resolving_needs_no_torch_until_a_model_is_built() -> None:
    code = "import sys; import sparring.cli.models, sparring.cli.recipes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
