"""Threads that answer requests beside the event loop, and how many requests may be inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.problems import RequestError

T = TypeVar("T")

_RETRY_S = 1


class Slot:
    """The place of one request, until its work has ended: a thread cannot be stopped when its time is up."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.work: Future[object] | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in a thread; where the caller is cancelled, it does not start, or its result is lost."""
        work = self._executor.submit(function)
        self.work = work  # type: ignore[assignment]
        return await asyncio.wrap_future(work)


class Pool:
    """Takes in as many requests as the limits say, and works on them; used from one event loop.

    Args:
        limits: workers, threads of torch for each, and how many may wait.
    """

    def __init__(self, limits: Limits) -> None:
        self.inside = 0
        self._capacity = limits.capacity
        self._executor = ThreadPoolExecutor(
            limits.workers, "score", initializer=torch.set_num_threads, initargs=(limits.torch_threads,)
        )

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Take a request in.

        Raises:
            RequestError: 503: there are too many.
        """
        if self.inside >= self._capacity:
            message = f"{self.inside} requests are inside already; try again later"
            raise RequestError(503, message, headers={"Retry-After": str(_RETRY_S)})
        self.inside += 1
        slot = Slot(self._executor)
        try:
            yield slot
        finally:
            if slot.work is None or slot.work.done():
                self._leave()
            else:
                loop = asyncio.get_running_loop()
                slot.work.add_done_callback(lambda _: _call_soon(loop, self._leave))

    def close(self) -> bool:
        """Take no more work; return whether all has ended."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        return self.inside == 0

    def _leave(self) -> None:
        self.inside -= 1


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # the server has stopped, and its loop is closed
        return
