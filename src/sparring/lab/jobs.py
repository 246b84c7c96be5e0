"""Jobs: attacks that run on worker threads, bounded in number and in time; who looks at one gets all of its events."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.lab import wire
from sparring.lab.networks import Network
from sparring.lab.pictures import Refused
from sparring.lab.requests import SIZES, Order, attack_of
from sparring.lab.watching import Answer, Watched

LOG = logging.getLogger("sparring.lab")


@dataclass(frozen=True)
class Limits:
    """workers: jobs that run at once; one page has at most all but one of them. waiting: jobs in the queue. of_one: jobs
    that one page may have running or waiting. seconds: how long one may run. alone: seconds after which a job that nobody
    looks at ends. kept: finished jobs that can still be looked at. kept_bytes: what their events may take.
    """

    workers: int = 3
    waiting: int = 64
    of_one: int = 8
    seconds: float = 180.0
    alone: float = 6.0
    kept: int = 64
    kept_bytes: int = 256 << 20


class Ended(Exception):
    """Raised inside a job to end it; the message is for who looks."""


class Job:
    """One attack: its order, the events so far, and how it ended."""

    def __init__(self, order: Order, network: Network, x: Tensor, limits: Limits) -> None:
        self.id = secrets.token_urlsafe(16)
        self.order, self.network, self.x, self.limits = order, network, x, limits
        self.attack = attack_of(order)
        if order.target is not None and order.target >= len(network.classes):
            raise Refused(f"target {order.target}: {network.name} has classes 0 to {len(network.classes) - 1}")
        self.events: list[bytes] = []
        self.size = 0
        self.state = "waiting"
        self.answers: dict[float, Answer] = {}
        self._lock = threading.Lock()
        self.viewers: dict[object, Callable[[], object]] = {}
        self._left = time.monotonic()
        self._stop = ""
        self._deadline = float("inf")

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")

    @property
    def abandoned(self) -> bool:
        return not self.viewers and time.monotonic() - self._left > self.limits.alone

    def cancel(self, reason: str = "stopped") -> None:
        self._stop = self._stop or reason

    def check(self) -> None:
        """Ended where the job should go no further."""
        if self._stop:
            raise Ended(self._stop)
        if self.abandoned:
            raise Ended("nobody looks at it any more")
        if time.monotonic() > self._deadline:
            raise Ended(f"it took more than {self.limits.seconds:g} s: fewer steps, or a smaller network")

    def end(self, reason: str) -> None:
        """Tell whoever looks that it is over; a step that is being taken is the last."""
        self.cancel(reason)
        self.publish("ended", {"reason": reason}, "ended")

    def leave(self, viewer: object) -> None:
        self._left = time.monotonic()
        del self.viewers[viewer]

    def publish(self, kind: str, document: dict[str, Any], state: str | None = None) -> None:
        """An event for everybody who looks, now and later."""
        with self._lock:
            if self.over:
                return  # it was ended from outside, in the middle of a step
            event = wire.event(kind, {"job": self.id, **document})
            self.events.append(event)
            self.size += len(event)
            self.state = state or self.state  # after the event: who sees that it is over sees its end too
            wakers = list(self.viewers.values())
        for wake in wakers:
            wake()

    def run(self) -> None:
        """The whole attack, on the calling thread."""
        self._deadline = time.monotonic() + self.limits.seconds
        self.state = "running"
        try:
            self.check()
            self._attack()
        except Ended as end:
            self.end(str(end))
        except Exception as error:  # settings, or somebody's network: whoever looks is told, and the server goes on
            LOG.warning("an attack on %s failed", self.network.name, exc_info=error)
            line = " ".join(str(error).split())[:300] or type(error).__name__
            self.publish("failed", {"reason": line}, "failed")

    def _attack(self) -> None:
        order, network = self.order, self.network
        watched = Watched(network, self.x, self.attack, target=order.target, seed=order.seed, check=self.check)
        also = (watched.label, order.target)
        began = {
            "label": watched.label,
            "target": order.target,
            "picture": wire.picture(self.x),
            "before": wire.top(network, watched.before, also),
            "bounds": self.attack.threat.bounds,
        }
        if order.sweep:
            eps = float(self.attack.threat.eps)
            sizes = [eps * size for size in SIZES]
            self.publish("begin", {**began, "axis": "eps", "end": sizes[-1]})
            for frame, answer in watched.sweep(sizes):
                self.answers[frame.at] = answer
                seen = wire.frame(network, self.x, frame, also)
                self.publish("frame", {**seen, "answer": wire.answer(network, answer, also)})
            flips = min((at for at, answer in self.answers.items() if answer.success), default=None)
            document: dict[str, Any] = {"flips": flips}
        else:
            gradients = self.attack.access == "gradients"
            axis, end = ("step", self.attack.steps) if gradients else ("query", order.queries)
            self.publish("begin", {**began, "axis": axis, "end": end})
            for frame in watched.steps():
                self.publish("frame", wire.frame(network, self.x, frame, also))
            self.answers[0.0] = watched.answer
            document = {
                "answer": wire.answer(network, watched.answer, also),
                "change": wire.change(self.x, watched.answer.x),
            }
        passes = {"forwards": watched.forwards, "backwards": watched.backwards}
        self.publish("done", {**document, **passes}, "done")


async def follow(jobs: Sequence[Job], seen: Sequence[int]) -> AsyncIterator[bytes]:
    """The events of these jobs as one stream: all from the numbers `seen` on, and those to come, until all jobs are over.

    One stream a page, because a browser opens six connections to a server and no more. Leaving may end a job: see `Limits`.
    An event's id says how many of each job were seen, so that a browser that lost its connection goes on where it was.
    """
    loop, awake, key, at = asyncio.get_running_loop(), asyncio.Event(), object(), list(seen)
    for job in jobs:
        job.viewers[key] = lambda: loop.call_soon_threadsafe(awake.set)
    try:
        while True:
            awake.clear()
            over = all(job.over for job in jobs)  # asked first: what comes before the end is in the events by then
            for i, job in enumerate(jobs):
                for event in job.events[at[i] :]:
                    at[i] += 1
                    yield f"id: {'-'.join(map(str, at))}\n".encode() + event
            if over:
                return
            try:
                await asyncio.wait_for(awake.wait(), 10)
            except asyncio.TimeoutError:
                yield b": still here\n\n"
    finally:
        for job in jobs:
            job.leave(key)


class Jobs:
    """The queue, and the threads that work it off."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._jobs: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"lab-{i}", daemon=True) for i in range(limits.workers)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job) -> Job:
        """Queue it. Refused where there are too many."""
        with self._changed:
            self._drop_abandoned()
            client = job.order.client
            mine = [one for one in (*self._queue, *self._running) if one.order.client == client and not one._stop]
            if client and len(mine) >= self.limits.of_one:
                raise Refused(f"{len(mine)} attacks of this page are not done yet: stop one, or wait", 429)
            if len(self._queue) >= self.limits.waiting:
                raise Refused(f"{len(self._queue)} attacks are waiting already: try again in a minute", 429)
            self._forget()
            self._jobs[job.id] = job
            self._queue.append(job)
            self._changed.notify()
        return job

    def get(self, name: str) -> Job:
        with self._changed:
            if name not in self._jobs:
                raise Refused("that attack is no longer here: start it again", 404)
            return self._jobs[name]

    def ahead(self, job: Job) -> int:
        """How many wait in front of it."""
        with self._changed:
            return self._queue.index(job) if job in self._queue else 0

    def counts(self) -> dict[str, int]:
        with self._changed:
            return {"running": len(self._running), "waiting": len(self._queue)}

    def cancel(self, job: Job) -> None:
        job.cancel()
        with self._changed:
            self._drop_abandoned()

    def stop(self) -> None:
        """End all jobs, so that nobody's stream keeps the server from closing."""
        with self._changed:
            self._closed = True
            for job in (*self._queue, *self._running):
                job.end("the server stops")
            self._queue.clear()
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(2)

    def _drop_abandoned(self) -> None:
        """Jobs that would end at once need not wait for a worker."""
        for job in list(self._queue):
            try:
                job.check()
            except Ended as end:
                self._queue.remove(job)
                job.end(str(end))

    def _forget(self) -> None:
        """The oldest of the finished, where there are too many or they are too large."""
        over = [job for job in self._jobs.values() if job.over]
        size = sum(job.size for job in over)
        for job in list(over):
            if len(over) < self.limits.kept and size <= self.limits.kept_bytes:
                return
            over.remove(job)
            size -= job.size
            del self._jobs[job.id]

    def _next(self) -> Job | None:
        """The first in the queue of whoever has least running, and never the last worker for the same page: nobody's row
        of jobs keeps others waiting."""
        self._drop_abandoned()
        busy = [job.order.client for job in self._running]
        most = max(1, self.limits.workers - 1)
        free = [job for job in self._queue if busy.count(job.order.client) < most]
        return min(free, key=lambda job: busy.count(job.order.client), default=None)

    def _work(self) -> None:
        torch.set_num_threads(1)
        while True:
            with self._changed:
                while (job := self._next()) is None and not self._closed:
                    self._changed.wait(1)
                if job is None:
                    return
                self._queue.remove(job)
                self._running.append(job)
            try:
                job.run()
            finally:
                with self._changed:
                    self._running.remove(job)
                    self._changed.notify_all()
