"""Runs what is missing: courses side by side, each waiting for what it asked for last, every row logged at once."""

from __future__ import annotations

import heapq
import itertools
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from torchrec_mtl.bench.pairs import Pair
from torchrec_mtl.bench.rows import Key, Log, LogOf, Row
from torchrec_mtl.bench.suite import Suite
from torchrec_mtl.bench.tuning import Outcome, num_runs, plan
from torchrec_mtl.bench.workers import Job, Workers

R = TypeVar("R", bound=Row)
R_co = TypeVar("R_co", bound=Row, covariant=True)


class Logged(Job, Protocol[R_co]):
    """A training whose result becomes a row."""

    @property
    def label(self) -> str:
        """What progress calls it."""

    def row(self, found: Mapping[str, Any]) -> R_co:
        """Return the row of what the worker left."""


@dataclass(frozen=True)
class Course(Generic[R]):
    """Asks for runs and is sent their rows, again and again.

    Attributes:
        plan: yields the jobs needed next.
        runs: at most that many in all.
    """

    plan: Generator[Sequence[Logged[R]], list[R], None]
    runs: int


def run_missing(
    suite: Suite, pairs: Sequence[Pair], log: Log, workers: Workers[Logged[Row]], say: Callable[[str], None]
) -> None:
    """Train what of a suite is not in the log yet; see ``run_courses``."""
    run_courses([Course(plan(suite, Outcome(pair)), num_runs(suite, pair)) for pair in pairs], log, workers, say)


def run_courses(
    courses: Sequence[Course[R]], log: LogOf[R], workers: Workers[Logged[R]], say: Callable[[str], None]
) -> None:
    """Train what is not in the log yet.

    Args:
        courses: trained side by side.
        log: of finished runs; grows.
        workers: processes; closed at the end.
        say: takes a line a finished run.

    Raises:
        KeyboardInterrupt: the user, or SIGTERM, asked to stop; workers are killed, finished runs are in the log.
    """
    with _stop_on_sigterm(), closing(workers):
        _Schedule(courses, log, workers, say).run()


class _Schedule(Generic[R]):
    def __init__(
        self, courses: Sequence[Course[R]], log: LogOf[R], workers: Workers[Logged[R]], say: Callable[[str], None]
    ) -> None:
        self._log, self._workers, self._say = log, workers, say
        self._plans = [course.plan for course in courses]
        self._wanted: dict[int, Sequence[Logged[R]]] = {}  # what each plan that is not over waits for
        self._left = [course.runs for course in courses]
        # Earlier courses first, so that results come one course after the other.
        self._queue: list[tuple[int, int, Logged[R]]] = []
        self._number = itertools.count()
        self._asked: set[Key] = set()
        self._total, self._seconds, self._made = sum(self._left), 0.0, 0

    def run(self) -> None:
        for i, course in enumerate(self._plans):
            if (jobs := next(course, None)) is not None:
                self._want(i, jobs)
        while self._queue or not self._workers.is_idle:
            while self._queue and self._workers.num_free:
                self._workers.start(heapq.heappop(self._queue)[2])
            for job, found in self._workers.wait():
                row = job.row(found)
                self._log.append(row)
                self._made, self._seconds = self._made + 1, self._seconds + (row.seconds or 0.0)
                for i in list(self._wanted):
                    self._advance(i)
                self._say(self._progress(job, row))

    def _want(self, i: int, jobs: Sequence[Logged[R]]) -> None:
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

    def _progress(self, job: Logged[R], row: R) -> str:
        waiting = sum(self._log.find(j.key) is not None for jobs in self._wanted.values() for j in jobs)
        left = sum(self._left) - waiting
        eta = int(self._seconds / self._made * left / min(self._workers.count, max(left, 1)))
        clock = f"{eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
        return f"[{self._total - left}/{self._total}] {job.label}: {row.summary}; ETA {clock}"


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
