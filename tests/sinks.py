"""Sinks that tests name in ``train.sinks``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar


class Keeping:
    """Keeps everything, and in which thread it was."""

    made: ClassVar[list[Keeping]] = []

    def __init__(self, run: Any, first_step: int) -> None:
        self.run, self.first_step = run, first_step
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.threads = {threading.current_thread().name}
        self.closed = 0
        Keeping.made.append(self)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.threads.add(threading.current_thread().name)
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


class Failing(Keeping):
    """Fails at its second line."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        super().write(step, values)
        if len(self.lines) == 2:
            raise ConnectionError("the server has gone [away]")


class Impossible:
    """Cannot be made."""

    def __init__(self, run: Any, first_step: int) -> None:
        raise PermissionError("wrong password")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError
