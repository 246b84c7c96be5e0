"""Pictures that people drop on the page: bounded, decoded defensively, kept as files under names of the server's own."""

from __future__ import annotations

import io
import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sparring.data.dataset import to_float
from sparring.data.images import BROKEN, BadImage, decode

MAX_BYTES = 16 << 20
MAX_PIXELS = 40_000_000
MIN_SIDE = 2
KEPT = 200  # pictures; the one that was not used for longest goes first
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
"""Read by decoders that only decode: no fonts, no scripts, no other programs."""


class Refused(ValueError):
    """What a person gave cannot be used; the message is for that person."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Picture:
    """name: what it is called in a command line. side: the shorter one, in pixels. sample: it came with the server, and
    everybody sees it."""

    name: str
    path: Path
    kind: str
    side: int
    sample: bool = False
    label: str = ""


class Pictures:
    """Pictures by the tokens that the server gave them."""

    def __init__(self, kept: int = KEPT) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sparring-lab-")
        self._known: OrderedDict[str, Picture] = OrderedDict()
        self._kept, self._lock = kept, threading.Lock()
        self._decoding = threading.Semaphore(2)  # of so many at once the memory is bounded
        self._ready: OrderedDict[tuple[str, tuple[int, int, int]], Tensor] = OrderedDict()

    def close(self) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """Where files of this server's life lie."""
        return Path(self._folder.name)

    def add_sample(self, path: Path, label: str = "") -> str:
        """A picture that everybody sees; its token."""
        return self._keep(Picture(path.name, path, *_header(path.read_bytes()), True, label))

    def add(self, content: bytes, name: str = "") -> str:
        """An upload; its token. Refused where it is no picture that a network could be shown."""
        if len(content) > MAX_BYTES:
            raise Refused(f"the file has more than {MAX_BYTES >> 20} MB: save it smaller and try again", 413)
        kind, side = _header(content)
        path = self.folder / secrets.token_hex(16)
        path.write_bytes(content)
        try:
            with self._decoding:
                decode(path, channels=3, size=32)  # cut short or damaged shows here, not in the middle of an attack
        except ValueError as error:
            path.unlink()
            raise Refused(f"the picture cannot be decoded: {_told(error, path)}") from None
        return self._keep(Picture(_plain_name(name, kind), path, kind, side))

    def get(self, token: str) -> Picture:
        with self._lock:
            if token not in self._known:
                raise Refused("that picture is no longer here: drop it again", 404)
            self._known.move_to_end(token)
            return self._known[token]

    def samples(self) -> list[tuple[str, Picture]]:
        return [(token, picture) for token, picture in list(self._known.items()) if picture.sample]

    def tensor(self, token: str, shape: tuple[int, int, int]) -> Tensor:
        """The picture as a network takes it, float32 (C, H, W) in [0, 1], as ``sparring attack --size`` reads it."""
        picture, key = self.get(token), (token, shape)
        with self._lock:
            if key in self._ready:
                return self._ready[key]
        try:
            with self._decoding:
                x = to_float(decode(picture.path, channels=shape[0], size=shape[1]))
        except (ValueError, FileNotFoundError) as error:
            raise Refused(f"the picture cannot be decoded: {_told(error, picture.path)}") from None
        with self._lock:
            self._ready[key] = x
            while len(self._ready) > 32:
                self._ready.popitem(last=False)
        return x

    def thumbnail(self, token: str, side: int = 128) -> bytes:
        """A small PNG of it."""
        picture = self.get(token)
        with self._decoding:
            pixels = decode(picture.path, channels=3, size=side)
        return png(Image.fromarray(pixels.transpose(1, 2, 0)))

    def _keep(self, picture: Picture) -> str:
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._known[token] = picture
            dropped = [t for t, p in self._known.items() if not p.sample][: max(0, len(self._known) - self._kept)]
            for old in dropped:
                self._known.pop(old).path.unlink(missing_ok=True)
                for key in [key for key in self._ready if key[0] == old]:
                    del self._ready[key]
        return token


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _header(content: bytes) -> tuple[str, int]:
    """The format and the shorter side, from the header alone: the size in pixels must be bearable before any is decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height, kind = image.width, image.height, str(image.format)
    except UnidentifiedImageError:
        raise Refused("that is no picture this page can read: drop a PNG, JPEG, WebP or BMP", 415) from None
    except BROKEN:
        raise Refused("the picture is damaged, or far too large") from None
    if width * height > MAX_PIXELS:
        raise Refused(f"the picture has {width}×{height} pixels, more than {MAX_PIXELS // 1_000_000} million", 413)
    if min(width, height) < MIN_SIDE or max(width, height) > 100 * min(width, height):
        raise Refused(f"the picture has {width}×{height} pixels: a network looks at squares")
    return kind, min(width, height)


def _plain_name(name: str, kind: str) -> str:
    """The last part of a file's name, in printable characters; it is only ever shown, never opened."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if c.isprintable())[:80].strip()
    return kept if kept.strip(".") else f"picture.{kind.lower()}"


def _told(error: Exception, path: Path) -> str:
    """The reason without the server's path."""
    return str(error).removeprefix(f"{path}: ") if isinstance(error, BadImage) else "it is damaged"
