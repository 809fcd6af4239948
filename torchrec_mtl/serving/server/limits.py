"""What a server takes on: sizes of requests, time, and how much may wait."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    @property
    def capacity(self) -> int:
        """Requests that are inside at once, worked on or waiting."""
        return self.workers + self.waiting
