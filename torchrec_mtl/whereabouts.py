"""What this process is at, for the messages of whatever waits too long or ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Whereabouts:
    """Where a rank stands; written by the trainer and the reader's thread, read when something goes wrong.

    Attributes:
        doing: in words.
        step: steps trained, None before there are any.
        phase: name of the phase, where there are several.
        file: what the reader read last, and where in it.
        changes: counts what was set, so that a standstill shows.
    """

    def __init__(self) -> None:
        self.doing = "starting"
        self.step: int | None = None
        self.phase: str | None = None
        self.file: str | None = None
        self.changes = 0

    def at(self, doing: str, *, step: int | None = None, phase: str | None = None) -> None:
        """Set what is being done; ``step`` and ``phase`` stay as they are where not given."""
        self.doing = doing
        self.step = self.step if step is None else step
        self.phase = self.phase if phase is None else phase
        self.changes += 1

    def reads(self, file: str) -> None:
        """Set what is being read; from any thread."""
        self.file = file
        self.changes += 1

    def __str__(self) -> str:
        """Return rank, work, step, phase, and file, as far as they are known."""
        parts = [f"rank {os.environ.get('RANK', '0')}", self.doing]
        if self.step is not None:
            parts.append(f"after step {self.step}")
        if self.phase is not None:
            parts.append(f"phase '{self.phase}'")
        if self.file is not None:
            parts.append(f"last read {self.file}")
        return ", ".join(parts)


whereabouts = Whereabouts()
"""Those of this process."""


@contextmanager
def telling_standstills(after_s: float) -> Iterator[None]:
    """Print where this process stands, once a standstill, when it has come no further for ``after_s`` seconds.

    A time-out ends a wait with an error in most places, but not in all: NCCL ends the process itself, and a file
    system may never answer. This line then says what was waited for.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(after_s, ended), name="whereabouts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(after_s: float, ended: threading.Event) -> None:
    seen, since, told = whereabouts.changes, time.monotonic(), False
    while not ended.wait(min(after_s / 4, 5.0)):
        if whereabouts.changes != seen:
            seen, since, told = whereabouts.changes, time.monotonic(), False
        elif not told and time.monotonic() - since >= after_s:
            sys.stderr.write(f"no progress for {time.monotonic() - since:.0f} s: {whereabouts}\n")
            sys.stderr.flush()
            told = True
