"""What a server takes on: sizes of requests, time, and how much may wait."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use, also by the quota of its container.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield how many cores' time the groups of this process have, of Linux's cgroup v2 or v1."""
    groups = root / "sys" / "fs" / "cgroup"
    lines = _text(root / "proc" / "self" / "cgroup").splitlines()
    folder = groups / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for group in (folder, *folder.parents):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.strip().isdecimal():
            yield int(quota) / int(period)
        if group == groups:
            break
    quota, period = (_text(groups / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota.isdecimal() and period.isdecimal():  # -1: none
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return ""


class Limits(BaseModel):
    """All of them; /schema shows them.

    Example:
        >>> Limits(workers=2, waiting=3).capacity
        5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    """Of a request's body; 413 beyond."""
    max_candidates: PositiveInt = 10_000
    """Of a request; 422 beyond."""
    max_k: PositiveInt = 1000
    """Items that a search returns; 422 beyond."""
    max_seen: NonNegativeInt = 10_000
    """Items that a search leaves out; 422 beyond."""
    timeout_s: PositiveFloat = 10.0
    """From a request's first byte to its answer: 408 where its body takes longer, 504 where scoring does."""
    workers: PositiveInt = Field(default_factory=usable_cores)
    """Requests that are worked on at once, each in a thread."""
    torch_threads: PositiveInt = 1
    """Threads of torch for each of them."""
    waiting: NonNegativeInt = 64
    """Further requests that may wait; 503 with Retry-After beyond."""
    connections: PositiveInt = 512
    """Open ones, idle ones and those whose body is on its way among them; a bare 503 beyond."""

    @property
    def capacity(self) -> int:
        """Requests that are inside at once, worked on or waiting."""
        return self.workers + self.waiting
