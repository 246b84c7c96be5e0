"""What a run counts on its way, told now and then to whoever watches, and written to the disk."""

from __future__ import annotations

import time
from collections.abc import Callable

from sparring.borrow import Borrowed
from sparring.evaluation.progress import Progress
from sparring.evaluation.source import Source
from sparring.evaluation.store import Store

FLUSH_SECONDS, TELL_SECONDS = 10.0, 0.1


class Tally:
    """done, correct, fooled: so many samples, also those that an earlier start has finished, the `resumed`.

    finished: whether all are done. time_limit: seconds. report: is told at most ten times a second.
    """

    def __init__(
        self,
        model: Borrowed,
        source: Source,
        store: Store,
        time_limit: float | None,
        report: Callable[[Progress], None],
    ) -> None:
        self.model, self.source, self.store, self.time_limit, self.report = model, source, store, time_limit, report
        table = store.records.table
        self.resumed = self.done = len(table)
        self.correct, self.fooled = int(table["correct"].sum()), int((table["attack"] >= 0).sum())
        self.finished = False
        self._start = self._flushed = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def late(self) -> bool:
        return self.time_limit is not None and self.seconds >= self.time_limit

    def tell(self, last: bool = False) -> None:
        """How far it is, if it was not told just now; and to the disk, if that is long ago."""
        now = time.monotonic()
        if last or now - self._told > TELL_SECONDS:
            self._told = now
            passes = (self.model.forwards, self.model.backwards)
            met = (len(self.store.records), self.correct, self.fooled)
            self.report(Progress(self.done, self.source.total, *met, *passes, self.seconds, self.resumed))
        if now - self._flushed > FLUSH_SECONDS:
            self.store.flush()
            self._flushed = now
