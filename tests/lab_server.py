"""A lab that listens on a free port of the loopback, with networks that answer at once."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

LONG = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch, a village whose name no column is wide enough for"
NAMES = ("red", "green", "blue", LONG)


class Colours(nn.Module):
    """The mean of each channel, centred; a fourth class that grey pictures are nearest to. Its attack has an easy optimum."""

    def __init__(self, delay: float = 0.0, scale: float = 40.0) -> None:
        super().__init__()
        self.delay, self.scale = delay, nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        mean = x.mean((2, 3))
        centred = mean - mean.mean(1, keepdim=True)
        return self.scale * torch.cat([centred, 0.02 + 0 * mean[:, :1]], 1)


class Broken(nn.Module):
    """Raises once it is asked for gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            raise RuntimeError("the network's own mistake")
        return torch.zeros(len(x), 4)


def networks(delay: float = 0.0) -> list[Any]:
    from sparring.lab import Network

    shapes = [(3, 32, 32)]
    return [
        Network.of("colours", Colours(), shapes=shapes, classes=NAMES),
        Network.of("other colours", Colours(scale=20.0), shapes=shapes, classes=NAMES),
        Network.of("slow colours", Colours(0.05), shapes=shapes, classes=NAMES),
        Network.of("broken", Broken(), shapes=shapes, classes=NAMES),
    ]


def red_picture(size: tuple[int, int] = (40, 36), kind: str = "PNG", **options: Any) -> bytes:
    """Rather red, with some texture, so that rounding to 8 bits is no accident."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(100, 130, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0] += 12
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@contextmanager
def running(lab: Any, **options: Any) -> Iterator[str]:
    """The address of a server for this lab, until the block ends."""
    import uvicorn

    from sparring.lab import create_app

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(lab, **options), log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
