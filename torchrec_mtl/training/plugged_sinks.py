"""Sinks that may fail without taking training along: those that a config names run in a thread of their own."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from torchrec_mtl.training.sinks import MetricSink

Say = Callable[[str], None]

_MOST_WAITING: Final = 10_000
_ALL_THERE: Final = "metrics.jsonl has all numbers"
_MEND_IT: Final = "Mend it, or take it out of train.sinks; nothing was trained"
OPEN_S: Final = 120.0  # trackers give up by themselves after a minute or two, with a better message
CLOSE_S: Final = 60.0


class GuardedSink:
    """A sink that is switched off, with a word, when it fails.

    Args:
        name: for messages.
        sink: what takes the numbers.
        say: shows a line.
    """

    def __init__(self, name: str, sink: MetricSink, say: Say) -> None:
        self._name, self._sink, self._say = name, sink, say
        self._on = True

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the numbers on, if it did not fail before."""
        if not self._on:
            return
        try:
            self._sink.write(step, values)
        except Exception as error:  # whatever it is, training goes on
            self._on = False
            self._say(_failed(self._name, f"at step {step}", error, "it gets no more numbers, training goes on"))

    def close(self) -> None:
        """Close it."""
        try:
            self._sink.close()
        except Exception as error:  # training has ended well
            self._say(_failed(self._name, "when it was closed", error, "numbers may be missing there"))


class PluggedSink:
    """A sink of somebody else's: it is made, written to, and closed in one thread, and training waits for nothing.

    Made: the constructor waits for that, so that a sink that cannot work stops a run before its first step.

    Args:
        name: ``package.module:Class``.
        make: returns the sink; called in the thread.
        say: shows a line; called in the thread of training.
        open_s: longest time that ``make`` may take, seconds.

    Raises:
        ValueError: ``make`` failed, or took too long.
    """

    def __init__(self, name: str, make: Callable[[], MetricSink], say: Say, *, open_s: float = OPEN_S) -> None:
        self._name, self._make, self._say = name, make, say
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._made = threading.Event()
        self._failure: tuple[str, BaseException] | None = None
        self._on, self._told = True, False
        # A daemon: a tracker that hangs must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)
        self._thread.start()
        if not self._made.wait(open_s):
            self.finish()  # should it still be made, it is closed
            raise ValueError(
                f"train.sinks: {name} cannot be opened: it was not done after {open_s:g} s (does its server answer?). "
                f"{_MEND_IT}"
            )
        if failure := self._failed_at():
            raise ValueError(f"train.sinks: {name} cannot be opened: {_words(failure[1])}. {_MEND_IT}") from failure[1]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Lay the numbers ready for the thread."""
        if not self._on or self._tell_of_failure("it gets no more numbers, training goes on"):
            return
        if self._waiting.qsize() >= _MOST_WAITING:
            self.finish()
            self._say(
                f"sink {self._name} did not take its numbers ({_MOST_WAITING:,} lines wait) and gets no more; training "
                f"goes on, {_ALL_THERE}"
            )
            return
        self._waiting.put((step, dict(values)))

    def finish(self) -> None:
        """Have the thread close the sink after what it still holds; wait for nothing."""
        if self._on:
            self._on = False
            self._waiting.put(None)

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Wait for what is not written yet, and for the sink's own ``close``, though not for ever.

        Args:
            wait_s: longest wait, seconds.
        """
        self.finish()
        self._thread.join(max(wait_s, 0.0))
        if self._thread.is_alive():
            self._say(
                f"sink {self._name} is not done in the time that sinks have at the end, and is left: its last numbers "
                f"may be missing; {_ALL_THERE}"
            )
        self._tell_of_failure("numbers may be missing there")

    def _tell_of_failure(self, what_now: str) -> bool:
        """Return whether the thread has failed; tell of it once."""
        failure = self._failed_at()
        if failure and not self._told:
            self._on, self._told = False, True
            self._say(_failed(self._name, *failure, what_now))
        return failure is not None

    def _failed_at(self) -> tuple[str, BaseException] | None:
        """Return when the thread failed, and how; a call, since it may do so between any two lines."""
        return self._failure

    def _work(self) -> None:
        when = "when it was made"
        try:
            sink = self._make()
            self._made.set()
            try:
                while (item := self._waiting.get()) is not None:
                    when = f"at step {item[0]}"
                    sink.write(*item)
            except BaseException:
                with suppress(Exception):  # the first error is the cause
                    sink.close()
                raise
            when = "when it was closed"
            sink.close()
        except BaseException as error:  # told where training looks next
            self._failure = (when, error)
        finally:
            self._made.set()


def close_together(sinks: Sequence[PluggedSink], wait_s: float = CLOSE_S) -> None:
    """Close sinks side by side, and wait no longer for all of them than for one.

    Args:
        sinks: those that were opened.
        wait_s: longest wait in all, seconds.
    """
    deadline = time.monotonic() + wait_s
    for sink in sinks:
        sink.finish()
    for sink in sinks:
        sink.close(deadline - time.monotonic())


def _failed(name: str, when: str, error: BaseException, what_now: str) -> str:
    return f"sink {name} failed {when}: {_words(error)}; {what_now}, {_ALL_THERE}"


def _words(error: BaseException) -> str:
    """Return what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
