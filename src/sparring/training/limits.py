"""When a training stops, and when it is saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SPARE = 50  # saving takes up at most one part in so many of the time


@dataclass
class Limits:
    """time_limit, save_every: seconds (None: never). signal: what asked to stop."""

    time_limit: float | None = None
    save_every: float | None = None
    began: float = field(default_factory=time.monotonic)
    signal: int | None = None

    def __post_init__(self) -> None:
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit={self.time_limit}: expected seconds, above 0")
        if self.save_every is not None and not self.save_every >= 0:
            raise ValueError(f"save_every={self.save_every}: expected seconds, 0 or more")
        self._next = time.monotonic() + (self.save_every or 0)

    @property
    def stop(self) -> bool:
        late = self.time_limit is not None and time.monotonic() - self.began > self.time_limit
        return late or self.signal is not None

    @property
    def save(self) -> bool:
        return self.save_every is not None and time.monotonic() >= self._next

    def saved(self, took: float) -> None:
        """A save took so many seconds: how late the next one comes."""
        self._next = time.monotonic() + max(self.save_every or 0.0, SPARE * took)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to stop behind the next step, where all can be saved; asked twice, Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number

        before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask_on(self, said: str) -> None:
        """Pass on what asked to stop, once everything is saved, with what was saved where."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.signal is not None:
            raise KeyboardInterrupt(said)
