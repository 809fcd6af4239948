"""One piece of work at a time in a thread, whose failure is raised where the next one is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs work beside its caller.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work``; the work before must have been waited for."""
        assert self._thread is None, "wait() comes before the next start()"
        # A daemon, so that a process whose other ranks are gone can end.
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the work begun last, if any, and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if (error := self._error) is not None:
            self._error = None
            raise error

    def leave(self, seconds: float) -> None:
        """Wait no longer than this, and forget the work and its failure."""
        if self._thread is not None:
            self._thread.join(seconds)
        self._thread = self._error = None

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # handed over to whoever waits
            self._error = error
