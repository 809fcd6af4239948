"""Sinks that may fail without taking training along: those that a config names run in a thread of their own."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from torchrec_mtl.training.sinks import MetricSink

Say = Callable[[str], None]

_MOST_WAITING: Final = 10_000
_CLOSE_S: Final = 60.0
_ALL_THERE: Final = "metrics.jsonl has all numbers"


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
            self._say(_failed(self._name, f"at step {step}", error))

    def close(self) -> None:
        """Close it."""
        try:
            self._sink.close()
        except Exception as error:  # training has ended well
            self._say(_failed(self._name, "when it was closed", error))


class PluggedSink:
    """A sink of somebody else's: it is made, written to, and closed in one thread, and training waits for nothing.

    Made: the constructor waits for that, so that a sink that cannot work stops a run before its first step.

    Args:
        name: ``package.module:Class``.
        make: returns the sink; called in the thread.
        say: shows a line; called in the thread of training.
        close_s: seconds that `close` waits for what is not written yet.

    Raises:
        ValueError: ``make`` failed.
    """

    def __init__(self, name: str, make: Callable[[], MetricSink], say: Say, *, close_s: float = _CLOSE_S) -> None:
        self._name, self._make, self._say, self._close_s = name, make, say, close_s
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_MOST_WAITING)
        self._made = threading.Event()
        self._failure: tuple[str, BaseException] | None = None
        self._on = True
        # A daemon: a tracker that hangs must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)
        self._thread.start()
        self._made.wait()
        if failure := self._failed_at():
            raise ValueError(
                f"train.sinks: {name} cannot be opened: {_words(failure[1])}. Mend it, or take it out of train.sinks; "
                "nothing was trained"
            ) from failure[1]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Lay the numbers ready for the thread."""
        if not self._is_on():
            return
        try:
            self._waiting.put_nowait((step, dict(values)))
        except queue.Full:
            self._on = False
            self._say(
                f"sink {self._name} did not take its numbers ({_MOST_WAITING:,} lines wait) and gets no more; training "
                f"goes on, {_ALL_THERE}"
            )

    def close(self) -> None:
        """Wait for what is not written yet, though not for ever."""
        if self._is_on():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=self._close_s)
            self._thread.join(self._close_s)
            if self._thread.is_alive():
                self._say(
                    f"sink {self._name} is not done {self._close_s:g} s after the end, and is left: its last numbers "
                    f"may be missing; {_ALL_THERE}"
                )
        self._is_on()

    def _is_on(self) -> bool:
        """Return whether it still takes numbers; tell of a failure once."""
        if self._on and (failure := self._failed_at()):
            self._on = False
            self._say(_failed(self._name, *failure))
        return self._on

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
                when = "when it was closed"
            finally:
                sink.close()
        except BaseException as error:  # told where training looks next
            self._failure = (when, error)
        finally:
            self._made.set()


def _failed(name: str, when: str, error: BaseException) -> str:
    return f"sink {name} failed {when}: {_words(error)}; it gets no more numbers, training goes on, {_ALL_THERE}"


def _words(error: BaseException) -> str:
    """Return what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
