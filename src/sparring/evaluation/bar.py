"""A bar in the terminal, or lines now and then where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

Told = TypeVar("Told")
EVERY = 10.0  # seconds between two lines where there is no terminal


class TerminalBar(Generic[Told]):
    """Base of rich progress bars on standard error: a subclass says what a `Told` looks like, in `show`.

    bar is None where there is no terminal: then `show` prints lines, one every ten seconds.
    """

    def __init__(self, description: str, columns: tuple[Any, ...], total: float | None, transient: bool, **fields: Any):
        from rich.console import Console
        from rich.progress import Progress, TaskID

        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if self.console.is_terminal:
            self.bar = Progress(*columns, console=self.console, transient=transient)
            self.task = self.bar.add_task(description, total=total, **fields)

    def __enter__(self) -> Callable[[Told], None]:
        if self.bar is not None:
            self.bar.start()
        return self.show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, now: Told) -> None:
        raise NotImplementedError

    def line(self, text: str, seconds_left: float | None, soft_wrap: bool = False) -> None:
        left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
        self.console.print(text + left, highlight=False, soft_wrap=soft_wrap)
