"""Files that are there whole or not at all, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line what could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"can't write {path}: {error.strerror or error}") from None


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes `path`'s place when it has been written whole, and leaves nothing behind otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def locked(path: Path) -> IO[Any] | None:
    """A file that keeps other processes out of its folder while it is open. None where there are no locks.

    ValueError where another process is at work there."""
    if fcntl is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115  # its owner keeps it open
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(
                f"another process is at work in {path.parent}: wait for it to end, or choose another folder"
            ) from None
        return None  # this file system has none


def clear_temporaries(folder: Path) -> None:
    """Remove what a process killed while replacing one of the result's files has left."""
    for name in ("samples.jsonl", "adversarial-*.safetensors", "report.html", "result.json"):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: IO[bytes]) -> str:  # Python 3.10
    hasher = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        hasher.update(block)
    return hasher.hexdigest()
