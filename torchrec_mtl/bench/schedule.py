"""Runs what is missing: pairs side by side, the trials of one pair one after the other, every row logged at once."""

from __future__ import annotations

import heapq
import itertools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from textwrap import shorten
from types import FrameType
from typing import Any

from torchrec_mtl.bench.machine import machine, versions
from torchrec_mtl.bench.pairs import Pair
from torchrec_mtl.bench.rows import Key, Log, Row
from torchrec_mtl.bench.scores import score
from torchrec_mtl.bench.suite import Suite
from torchrec_mtl.bench.tuning import Job, Outcome, Plan, num_runs, plan
from torchrec_mtl.bench.workers import Workers


def run_missing(suite: Suite, pairs: Sequence[Pair], log: Log, workers: Workers, say: Callable[[str], None]) -> None:
    """Train what is not in the log yet.

    Args:
        suite: the suite.
        pairs: those to run.
        log: of finished runs; grows.
        workers: processes.
        say: takes a line a finished run.

    Raises:
        KeyboardInterrupt: the user, or SIGTERM, asked to stop; workers are killed, finished runs are in the log.
    """
    with _stop_on_sigterm(), closing(workers):
        _Schedule(suite, pairs, log, workers, say).run()


class _Schedule:
    def __init__(
        self, suite: Suite, pairs: Sequence[Pair], log: Log, workers: Workers, say: Callable[[str], None]
    ) -> None:
        self._log, self._workers, self._say = log, workers, say
        self._plans: list[Plan] = [plan(suite, Outcome(pair)) for pair in pairs]
        self._wanted: dict[int, list[Job]] = {}  # what each plan that is not over waits for
        self._left = [num_runs(suite, pair) for pair in pairs]
        self._queue: list[tuple[int, int, Job]] = []  # earlier pairs first, so that results come pair by pair
        self._number = itertools.count()
        self._asked: set[Key] = set()
        self._total, self._seconds, self._made = sum(self._left), 0.0, 0

    def run(self) -> None:
        for i, course in enumerate(self._plans):
            self._want(i, next(course))
        while self._queue or not self._workers.is_idle:
            while self._queue and self._workers.num_free:
                self._workers.start(heapq.heappop(self._queue)[2])
            for job, found in self._workers.wait():
                row = as_row(job, found)
                self._log.append(row)
                self._made, self._seconds = self._made + 1, self._seconds + (row.seconds or 0.0)
                for i in list(self._wanted):
                    self._advance(i)
                self._say(self._progress(job, row))

    def _want(self, i: int, jobs: list[Job]) -> None:
        self._wanted[i] = jobs
        for job in jobs:
            if self._log.find(job.key) is None and job.key not in self._asked:
                self._asked.add(job.key)  # two models may be one config: it is trained once
                heapq.heappush(self._queue, (i, next(self._number), job))
        self._advance(i)

    def _advance(self, i: int) -> None:
        """Send a plan its rows once all are there."""
        rows = [self._log.find(job.key) for job in self._wanted[i]]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            return
        self._left[i] -= len(found)
        try:
            jobs = self._plans[i].send(found)
        except StopIteration:
            del self._wanted[i]
            self._left[i] = 0  # also where tuning found nothing to go on with
            return
        self._want(i, jobs)

    def _progress(self, job: Job, row: Row) -> str:
        waiting = sum(self._log.find(j.key) is not None for jobs in self._wanted.values() for j in jobs)
        left = sum(self._left) - waiting
        eta = int(self._seconds / self._made * left / min(self._workers.count, max(left, 1)))
        clock = f"{eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
        return f"[{self._total - left}/{self._total}] {job.label}: {_result(row)}; ETA {clock}"


def as_row(job: Job, found: Mapping[str, Any]) -> Row:
    """Return the row of a job from what its worker left."""
    pair = job.pair
    metrics = found.get("metrics", {})
    return Row(
        data=pair.data.name,
        model=pair.model.name,
        role=pair.model.role,
        phase=job.phase,
        seed=job.key[1],
        overrides=pair.words(job.words),
        config=job.key[0],
        split=job.key[2],
        status="failed" if "error" in found else "ok",
        score=score(pair.score, job.run.tasks, metrics),
        machine=machine(),
        versions=versions(),
        **found,
    )


def _result(row: Row) -> str:
    if row.status == "failed":
        return f"FAILED: {shorten(str(row.error), 200)}"
    score = "undefined" if row.score is None else f"{row.score:.4f}"
    return f"score {score}, {row.seconds:.1f} s"


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the bench as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
