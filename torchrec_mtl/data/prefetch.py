"""Reads ahead in a background thread that ends with its consumer."""

from __future__ import annotations

import collections
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

from torchrec_mtl.whereabouts import whereabouts

T = TypeVar("T")

_JOIN_SECONDS = 30.0


class DataTimeoutError(Exception):
    """Reading took longer than it may."""


def prefetch(iterator: Iterator[T], depth: int, timeout_s: float | None = None) -> Generator[T, None, None]:
    """Yield the items of ``iterator``, up to ``depth`` of them computed ahead in a thread.

    Args:
        iterator: consumed in the thread only; closed there when the consumer stops early.
        depth: items waiting at most.
        timeout_s: longest wait for an item, seconds; None: no limit.

    Yields:
        The items, in order. An exception of ``iterator`` is raised after the items before it.

    Raises:
        DataTimeoutError: no item came in time; the message names the file.

    Example:
        >>> list(prefetch(iter(range(3)), depth=2))
        [0, 1, 2]
    """
    buffer = _Buffer(iterator, depth)
    thread = threading.Thread(target=buffer.fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while buffer.wait(timeout_s):
            yield buffer.pop()
    finally:
        buffer.stop()
        if thread is not threading.current_thread():  # the garbage collector may close us from any thread
            thread.join(_JOIN_SECONDS if timeout_s is None else min(timeout_s, _JOIN_SECONDS))


class _Buffer(Generic[T]):
    """Items handed from one thread to another; one lock, no polling."""

    def __init__(self, iterator: Iterator[T], depth: int) -> None:
        self._iterator = iterator
        self._depth = depth
        self._items: collections.deque[T] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def fill(self) -> None:
        """Run in the thread: append items until the iterator or the consumer ends."""
        try:
            for item in self._iterator:
                if not self._append(item):
                    break
        except BaseException as error:  # handed over to the consumer
            self._error = error
        finally:
            close = getattr(self._iterator, "close", None)
            if close is not None:
                close()
            self.stop()

    def _append(self, item: T) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) < self._depth)
            if not self._ended:
                self._items.append(item)
                self._changed.notify_all()
            return not self._ended

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for an item; False at the end. Raises the iterator's exception, or that nothing came in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._ended, timeout_s):
                raise DataTimeoutError(
                    f"no batch came within {timeout_s:g} s. Here: {whereabouts}. The storage does not answer, or is "
                    "slow: raise train.timeout_s"
                )
            if not self._items and self._error is not None:
                raise self._error
            return bool(self._items)

    def pop(self) -> T:
        """Take the oldest item."""
        with self._changed:
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def stop(self) -> None:
        """Tell both sides that it is over."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
