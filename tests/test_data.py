"""Reading labelled images: every format, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparring import data
from sparring.data import cifar
from sparring.data.bundle import BUNDLED

REAL = os.environ.get("SPARRING_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="SPARRING_DATA is not set")
random = np.random.default_rng(0)


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, x: np.ndarray, y: np.ndarray, zipped: bool = False) -> None:
    for name, values in (("images-idx3", x), ("labels-idx1", y)):
        content = idx_bytes(values)
        path = folder / f"t10k-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


def picture(path: Path, width: int = 8, height: int = 8, mode: str = "RGB", **kwargs: object) -> np.ndarray:
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **kwargs)
    return np.asarray(image)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Names and the bundle


def test_bundled_subset_is_balanced_small_and_says_so() -> None:
    for split, each in (("train", 1000), ("test", 200)):
        images = data.open("fashion-mnist:bundled", split=split)
        assert "bundled subset" in images.name
        assert torch.bincount(images.labels).tolist() == [each] * 10
        assert images.shape == (1, 28, 28)
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 8e6
    assert "Zalando" in (BUNDLED / "LICENSE-fashion-mnist").read_text()


@needs_real
def test_bundled_subset_is_the_first_of_each_class() -> None:
    for split, each in (("train", 1000), ("test", 200)):
        x, y = data.open("fashion-mnist", split=split).tensors()
        keep = torch.cat([(y == label).nonzero().flatten()[:each] for label in range(10)]).sort().values
        small_x, small_y = data.open("fashion-mnist:bundled", split=split).tensors()
        assert torch.equal(x[keep], small_x)
        assert torch.equal(y[keep], small_y)


def test_fashion_mnist_falls_back_to_the_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_to = tmp_path / "FashionMNIST" / "raw"
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        images = data.open("fashion-mnist")
        assert "bundled subset" in images.name
        assert images.spec["spec"] == "fashion-mnist:bundled"
    write_to.mkdir(parents=True)
    write_idx(write_to, np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8))
    assert len(data.open("fashion-mnist")) == 3  # a real copy comes first
    with pytest.raises(FileNotFoundError) as error:
        data.open("cifar10")
    message = one_line(error)
    assert str(tmp_path) in message
    assert "torchvision" in message


def test_a_wrong_data_folder_is_not_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.open("fashion-mnist")


@needs_real
@pytest.mark.parametrize(("name", "shape", "count"), [("mnist", (1, 28, 28), 10000), ("cifar10", (3, 32, 32), 10000)])
def test_real_sets(name: str, shape: tuple[int, ...], count: int) -> None:
    images = data.open(name)
    x, y = images.tensors()
    assert x.shape == (count, *shape)
    assert images.classes is not None
    assert sorted(y.unique().tolist()) == list(range(10))
    assert 0 <= x.min() < x.max() <= 1
    one, label = images[7]
    assert torch.equal(one, x[7])
    assert label == y[7]


@needs_real
def test_gtsrb_says_that_it_is_a_part() -> None:
    images = data.open("gtsrb")
    assert "5,000 of 12,630" in images.name
    assert len(images.classes or ()) == 43


def test_specs_open_the_same_again(tmp_path: Path) -> None:
    write_idx(tmp_path, random.integers(0, 256, (4, 6, 5), dtype=np.uint8), np.arange(4, dtype=np.uint8))
    images = data.open(tmp_path, size=4)
    again = data.open(json.loads(json.dumps(images.spec)))
    assert again.shape == (1, 4, 4)
    assert torch.equal(images.tensors()[0], again.tensors()[0])
    with pytest.raises(ValueError, match="brings its own"):
        data.open(images.spec, size=3)


def test_unknown_places_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nor a known name"):
        data.open("fashion-mist")
    with pytest.raises(ValueError, match="split='val'"):
        data.open("fashion-mnist:bundled", split="val")
    with pytest.raises(ValueError, match="size=0"):
        data.open("fashion-mnist:bundled", size=0)
    with pytest.raises(ValueError, match="only fashion-mnist has"):
        data.open("mnist:bundled")


# idx


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path: Path, zipped: bool) -> None:
    x = random.integers(0, 256, (9, 6, 5), dtype=np.uint8)
    y = np.arange(9, dtype=np.uint8)
    write_idx(tmp_path, x, y, zipped)
    end = ".gz" if zipped else ""
    files = [tmp_path / f"t10k-{kind}-ubyte{end}" for kind in ("images-idx3", "labels-idx1")]
    for spec in (tmp_path, files[0], f"{files[0]},{files[1]}"):
        read_x, read_y = data.open(spec).tensors()
        np.testing.assert_array_equal((read_x * 255).round().byte().numpy()[:, 0], x)
        assert read_y.tolist() == y.tolist()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_cut_short(tmp_path: Path, zipped: bool) -> None:
    x = random.integers(0, 256, (200, 28, 28), dtype=np.uint8)
    write_idx(tmp_path, x, np.zeros(200, np.uint8), zipped)
    images = next(tmp_path.glob("*images*"))
    images.write_bytes(images.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="cut short") as error:
        data.open(tmp_path)
    assert images.name in one_line(error)
    kept = data.open(tmp_path, skip_bad=True)
    assert 0 < len(kept) < 200
    assert len(kept.skipped) == 1
    np.testing.assert_array_equal((kept.tensors()[0] * 255).round().byte().numpy()[:, 0], x[: len(kept)])


def test_idx_that_does_not_fit(tmp_path: Path) -> None:
    write_idx(tmp_path, np.zeros((4, 2, 2), np.uint8), np.zeros(3, np.uint8))
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match="3 labels for the 4 images"):
            data.open(tmp_path, skip_bad=skip_bad)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not an idx file"):
        data.open(tmp_path)


# npz


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_npz_layouts(tmp_path: Path, layout: str, kind: type) -> None:
    x = random.integers(0, 256, (5, 1 if layout == "NHW" else 3, 6, 7), dtype=np.uint8)
    saved = {"NHW": x[:, 0], "NCHW": x, "NHWC": x.transpose(0, 2, 3, 1)}[layout]
    np.savez(tmp_path / "a.npz", x=saved if kind is np.uint8 else saved / 255, y=np.arange(5)[:, None])
    read_x, read_y = data.open(tmp_path / "a.npz").tensors()
    assert read_x.dtype == torch.float32
    np.testing.assert_allclose(read_x.numpy(), x / 255, atol=1e-7)
    assert read_y.tolist() == list(range(5))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 4, 4), np.uint8)}, "no array named y"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.zeros(2, int)}, "2 labels for 3 images"),
        ({"x": np.full((3, 4, 4), 255.0), "y": np.zeros(3, int)}, "floats must be in"),
        ({"x": np.full((3, 4, 4), np.nan), "y": np.zeros(3, int)}, "floats must be in"),
        ({"x": np.zeros((3, 4), np.uint8), "y": np.zeros(3, int)}, "x has shape"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.zeros(3)}, "one whole number"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.array([0, -1, 0])}, "sample 1 has label -1"),
        ({"x": np.zeros((0, 4, 4), np.uint8), "y": np.zeros(0, int)}, "no images"),
        ({"x": np.array([{}]), "y": np.zeros(1, int)}, "not a readable"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        data.open(tmp_path / "a.npz")
    assert "a.npz" in one_line(error)


def test_npz_cut_short(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4, 4), np.uint8), y=np.zeros(3, int))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a readable"):
        data.open(tmp_path / "a.npz")


def test_labels_outside_the_classes_are_named_or_skipped(tmp_path: Path) -> None:
    x = random.integers(0, 256, (3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 2, 1]), classes=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="sample 1 has label 2, expected 0 to 1"):
        data.open(tmp_path / "a.npz")
    images = data.open(tmp_path / "a.npz", skip_bad=True)
    assert images.skipped == ["sample 1 (label 2)"]
    np.testing.assert_allclose(images.tensors()[0].numpy()[:, 0], x[[0, 2]] / 255, atol=1e-7)


# CIFAR-10 batches


def test_cifar_batches(tmp_path: Path) -> None:
    folder = tmp_path / cifar.FOLDER
    folder.mkdir()
    x = random.integers(0, 256, (4, 3072), dtype=np.uint8)
    for protocol in (2, 4):
        batch = {b"data": x, b"labels": [0, 1, 2, 9], b"filenames": [b"a"] * 4}
        (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        for spec in (tmp_path, folder):
            images = data.open(spec)
            np.testing.assert_allclose(images.tensors()[0].numpy().reshape(4, -1), x / 255, atol=1e-7)
            assert images.labels.tolist() == [0, 1, 2, 9]
    with pytest.raises(ValueError, match="data_batch_1: this batch is missing"):
        data.open(folder, split="train")
    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:-100])
    with pytest.raises(ValueError, match="test_batch: not a readable"):
        data.open(folder)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_cifar_pickle_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Bomb(tmp_path / "pwned"), "labels": []}))
    with pytest.raises(ValueError, match="refused"):
        data.open(tmp_path)
    assert not (tmp_path / "pwned").exists()


# Image folders


def test_folder_interleaves_classes_and_reads_pixels_exactly(tmp_path: Path) -> None:
    pixels = {(c, i): picture(tmp_path / c / f"{i}.png") for c in ("cat", "ant") for i in range(3)}
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    images = data.open(tmp_path)
    assert images.classes == ["ant", "cat"]
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
    x, _ = images.tensors()
    np.testing.assert_allclose(x[3].numpy(), pixels["cat", 1].transpose(2, 0, 1) / 255, atol=1e-7)


def test_folder_with_splits_keeps_class_indices(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "val/b"):
        picture(tmp_path / place / "x.png")
    assert data.open(tmp_path, "test").labels.tolist() == [1]
    assert data.open(tmp_path, "train").labels.tolist() == [0, 1]


def test_folder_of_grey_is_grey_and_mixed_is_rgb(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png", mode="L")
    assert data.open(tmp_path).shape == (1, 8, 8)
    picture(tmp_path / "a" / "y.png")
    images = data.open(tmp_path)
    assert images.shape == (3, 8, 8)
    grey = images[0][0]
    assert torch.equal(grey[0], grey[2])


def test_folder_of_differing_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    picture(tmp_path / "a" / "y.png", width=12, height=9)
    with pytest.raises(ValueError, match="give size=") as error:
        data.open(tmp_path)
    assert "12×9" in one_line(error)
    assert data.open(tmp_path, size=6).tensors()[0].shape == (2, 3, 6, 6)


def test_folder_with_bad_files(tmp_path: Path) -> None:
    for name in ("w", "x", "y", "z"):
        picture(tmp_path / "a" / f"{name}.png", 64, 64)
    cut, text = tmp_path / "a" / "x.png", tmp_path / "a" / "y.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match="not an image") as error:
        data.open(tmp_path)
    assert str(text) in one_line(error)
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(ValueError, match="cut short") as error:
        data.open(tmp_path)
    assert str(cut) in one_line(error)
    kept = data.open(tmp_path, skip_bad=True)
    assert len(kept) == 2
    assert kept.skipped == [str(cut), str(text)]
    assert kept.tensors()[0].shape == (2, 3, 64, 64)


def test_a_photograph_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(data.photograph().read_bytes()[:20000])
    images = data.open(tmp_path)  # its header is whole
    with pytest.raises(ValueError, match=r"x\.jpg: cut short"):
        images[0]
    with pytest.raises(ValueError, match="none of the 1 images"):
        data.open(tmp_path, skip_bad=True)


def test_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sub-folders"):
        data.open(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no images"):
        data.open(tmp_path)


def test_gtsrb_as_torchvision_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "gtsrb"
    picture(root / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", 40, 50)
    for sign in range(43):
        picture(root / "GTSRB" / "Training" / f"{sign:05}" / "0.ppm", 35, 33)
    (root / "GT-final_test.csv").write_text("Filename;Width;Height;ClassId\n00000.ppm;40;50;16\n")
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    test = data.open("gtsrb")
    assert (test.shape, test.labels.tolist()) == ((3, 32, 32), [16])
    assert data.open("gtsrb", "train").labels.tolist() == list(range(43))


# Single images


def test_orientation_alpha_and_sixteen_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to look at it
    pixels = picture(tmp_path / "a.png", width=8, height=4, exif=exif)
    turned = data.read_image(tmp_path / "a.png", size=None)
    assert turned.shape == (3, 8, 4)
    np.testing.assert_allclose(turned[0].numpy(), np.rot90(pixels[..., 0], -1) / 255, atol=1e-7)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert data.read_image(tmp_path / "clear.png", size=None).min() == 1  # white, not the hidden red
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert data.read_image(tmp_path / "deep.png", size=None).mean() == pytest.approx(128 / 255)


def test_size_is_short_side_and_centre(tmp_path: Path) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255  # the central square
    Image.fromarray(image).save(tmp_path / "a.png")
    assert data.read_image(tmp_path / "a.png", size=40).min() == 1
    assert data.read_image(tmp_path / "a.png", size=20, resize=40).shape == (3, 20, 20)


def test_bad_single_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no such image"):
        data.read_image(tmp_path / "none.png")
    (tmp_path / "t.jpg").write_text("hello")
    with pytest.raises(ValueError, match="not an image"):
        data.read_image(tmp_path / "t.jpg")
    (tmp_path / "cut.jpg").write_bytes(data.photograph().read_bytes()[:20000])
    with pytest.raises(ValueError, match="cut short"):
        data.read_image(tmp_path / "cut.jpg")
    monkeypatch.setattr("sparring.data.images.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="451×300 pixels"):
        data.read_image(data.photograph())


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path: Path, channels: int) -> None:
    x = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    data.save_png(x, tmp_path / "a.png")
    again = data.read_image(tmp_path / "a.png", size=None)[:channels]
    assert torch.equal(again, (x * 255).round() / 255)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    for bad in (x + 1, x * float("nan"), x[None], x.byte()):
        with pytest.raises(ValueError):
            data.save_png(bad, tmp_path / "a.png")
    assert torch.equal(data.read_image(tmp_path / "a.png", size=None)[:channels], again)
