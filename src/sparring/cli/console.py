"""What a person sees: results on stdout, progress on stderr. With ``--json`` stdout belongs to the document."""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from sparring.evaluation import Progress


def speaks() -> bool:
    """Whether results are this process's to tell: of those that torchrun has started, the first one's."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def out() -> Console:
    """Where results go. Rich looks ``sys.stdout`` up at every line, so ``--json`` can point it to stderr."""
    from rich.console import Console

    return Console(highlight=False, quiet=not speaks())


def err() -> Console:
    """Where progress and asides go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not speaks())


def say(message: str, style: str | None = None) -> None:
    """One line of result; never folded, so that paths can be copied."""
    out().print(message, style=style, soft_wrap=True, markup=False)


def note(message: str) -> None:
    """One line about what is going on, beside the result."""
    err().print(message, style="dim", soft_wrap=True, markup=False)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Python's warnings in one line each, without the place in a source file that they come from."""
    with warnings.catch_warnings():  # which puts `showwarning` back
        warnings.showwarning = lambda message, *_, **__: note(" ".join(str(message).split()))
        yield


def table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Rows of one table, the keys of the first as header; numbers to the right. No cell is ever cut: where the terminal is too
    narrow headers are folded, and where that is not enough each row is a list of its own."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = out()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge
    keys = list(rows[0])
    cells = [[_cell(row.get(key)) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    folded = [textwrap.wrap(key, max(width, *map(len, key.split())), break_long_words=False) if key else [""]
              for key, width in zip(keys, widths)]  # fmt: skip

    def across(heads: Sequence[Sequence[str]]) -> int:
        """How wide the table is under these headers, with what stands between columns."""
        return sum(max(width, *map(len, head)) for width, head in zip(widths, heads)) + 3 * (len(keys) - 1) + 2

    heads = [[key] for key in keys]
    if across(heads) > console.width:
        heads = folded
    if across(heads) > console.width:
        _lists(console, keys, cells, title)
        return
    drawn = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for key, head in zip(keys, heads):
        numeric = all(isinstance(row.get(key), (int, float, type(None))) for row in rows)
        drawn.add_column("\n".join(head), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        drawn.add_row(*row)
    console.print(drawn)


def _lists(console: Console, keys: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    """A row under the other: what it is called, and a line for each other cell."""
    from rich.table import Table

    if title is not None:
        console.print(title, style="bold", markup=False)
    for row in rows:
        console.print(f"\n{row[0]}", markup=False)
        lines = Table.grid(padding=(0, 2, 0, 0))
        for key, cell in zip(keys[1:], row[1:]):
            lines.add_row(f"  {key}", cell)
        console.print(lines)
    console.print()


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def stage(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar for a job that calls ``progress(message, fraction)``; a few plain lines where there is no terminal."""
    console = err()
    if not console.is_terminal:
        yield _lines(title)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[message]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=1.0, message="")
        yield lambda message, fraction: bar.update(task, completed=fraction, message=message)


def _lines(title: str) -> Callable[[str, float], None]:
    """Prints at every quarter, so that a log shows that something moves."""
    shown = -1

    def progress(message: str, fraction: float) -> None:
        nonlocal shown
        quarter = int(4 * min(max(fraction, 0.0), 1.0))
        if quarter > shown:
            shown = quarter
            print(f"{title}: {fraction:.0%}  {message}", file=sys.stderr, flush=True)

    return progress


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """A spinner for work of unknown progress; one plain line where there is no terminal."""
    console = err()
    if not console.is_terminal:
        print(f"{message} ...", file=sys.stderr, flush=True)
        yield
        return
    with console.status(message):
        yield


def heading(number: str, title: str) -> None:
    """A numbered heading over what is printed next."""
    console = out()
    console.print()
    console.print(f"[bold cyan]{number}[/]  [bold]{title}[/]", soft_wrap=True)


@contextmanager
def watching(folder: Path) -> Iterator[Callable[[Progress], None]]:
    """A bar for an evaluation into this folder, and a line on what is kept there after Ctrl-C."""
    from sparring.cli.app import Stopped
    from sparring.evaluation.progress import Bar

    last: Progress | None = None

    def watch(now: Progress) -> None:
        nonlocal last
        if last is None and now.resumed:
            note(f"{now.resumed} samples were done by an earlier start: going on from there")
        last = now
        show(now)

    try:
        with Bar() as show:
            yield watch
    except KeyboardInterrupt:
        done = "no sample yet" if last is None else f"{last.done} of {last.total or '?'} samples"
        raise Stopped(f"{done} kept in {folder}; the same command goes on from there") from None
