"""Single images: decoding files safely, and writing 8-bit PNGs."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sparring.data.dataset import Pixels, to_float

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm"})
MAX_PIXELS = 100_000_000  # a photograph has fewer; a file that claims more would only fill the memory
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})
ORIENTATION = 0x0112
# What Pillow's decoders raise on broken files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(ValueError):
    """A file that is no readable image; the message is one line that names it."""


def read_image(
    path: str | os.PathLike[str], size: int | None = 224, *, resize: int | None = None, channels: int = 3
) -> Tensor:
    """One photograph as float32 (channels, size, size) in [0, 1]; channels: 3 (RGB) or 1 (grey).

    The short side is scaled to `resize` (default `size`), then the centre is cut out.
    `size=None` keeps the picture as it is, (channels, H, W). EXIF orientation is applied, transparency is laid on white.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image, cut short, or more than 100 million pixels.

    >>> from sparring.data import photograph
    >>> read_image(photograph(), size=64).shape
    torch.Size([3, 64, 64])
    """
    return to_float(decode(path, channels=channels, size=size, resize=resize))


def decode(
    path: str | os.PathLike[str], channels: int, size: int | None = None, resize: int | None = None
) -> NDArray[np.uint8]:
    """An image file as uint8 (channels, H, W); see `read_image`. channels: 1 (grey) or 3 (RGB)."""
    image = upright(path)
    try:
        image = _flat(image, channels)
    except BROKEN as error:
        raise BadImage(f"{path}: cannot be decoded ({_first_line(error)})") from error
    if size is not None:
        image = _fit(image, size, size if resize is None else resize)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def probe(path: str | os.PathLike[str]) -> tuple[int, int, bool]:
    """(width, height, is grey) of an image file as it will be decoded, from its header alone."""
    image = _open(path)
    with image:
        width, height = image.size
        try:
            orientation = image.getexif().get(ORIENTATION, 1)  # a PNG's may come last: that reads the file
        except BROKEN as error:
            raise BadImage(f"{path}: cut short or damaged ({_first_line(error)})") from error
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return width, height, image.mode in GREY_MODES


def save_png(x: Tensor, path: str | os.PathLike[str]) -> None:
    """Write x, float (C, H, W) in [0, 1] with C = 1 or 3, as an 8-bit PNG (rounded), through a temporary file."""
    if x.ndim != 3 or x.shape[0] not in (1, 3) or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)}: expected one float image (1 or 3, H, W) in [0, 1]")
    x = x.detach().cpu().float()
    if not bool(((x >= 0) & (x <= 1)).all()):  # also false for NaN
        raise ValueError(
            f"x lies in [{x.min():.4g}, {x.max():.4g}]: expected values in [0, 1]; clamp or rescale it first"
        )
    pixels = (x * 255).round().byte().permute(1, 2, 0).numpy()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def upright(path: str | os.PathLike[str]) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says."""
    image = _open(path)
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except BROKEN as error:
        raise BadImage(f"{path}: cut short or damaged ({_first_line(error)})") from error


def _open(path: str | os.PathLike[str]) -> Image.Image:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    try:
        with warnings.catch_warnings():  # Pillow's own warning comes before the size is known here
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except UnidentifiedImageError as error:
        raise BadImage(f"{path}: not an image that Pillow can read") from error
    except BROKEN as error:
        raise BadImage(f"{path}: not a readable image ({_first_line(error)})") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise BadImage(f"{path}: {image.width}×{image.height} pixels: at most {MAX_PIXELS:,} are read")
    return image


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """Without transparency (laid on white), 8 bits, grey or RGB."""
    if image.mode.startswith("I") and image.mode != "I":  # 16 bits: Pillow's convert would clip, not scale
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535 or image.mode == "F":
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _fit(image: Image.Image, size: int, resize: int) -> Image.Image:
    if size < 1 or resize < size:
        raise ValueError(f"size={size}, resize={resize}: expected 1 <= size <= resize pixels")
    scale = resize / min(image.size)
    width, height = (max(resize, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def fit_array(pixels: Pixels, size: int) -> Pixels:
    """One image (C, H, W) of an array, scaled and cropped like a file."""
    planes = np.stack([np.asarray(_fit(Image.fromarray(plane), size, size)) for plane in pixels])
    return planes if planes.dtype == np.uint8 else planes.clip(0, 1)  # bicubic interpolation overshoots


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
