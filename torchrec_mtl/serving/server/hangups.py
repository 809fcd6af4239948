"""SIGHUP before a server listens: it must not end the process, and is not forgotten. Light, to be there early."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Hangups:
    """What was noted.

    Attributes:
        came: there was one.
    """

    came: bool = False

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """Note one."""
        self.came = True


@contextmanager
def noted_hangups() -> Iterator[Hangups]:
    """Note SIGHUP, until something else handles it, or the end."""
    noted = Hangups()
    before = signal.signal(signal.SIGHUP, noted.note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGHUP, before)
