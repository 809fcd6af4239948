"""Several gloo ranks on this machine, for tests: started cheaply from a server that has imported the stack once."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from torchrec_mtl.device import FORKABLE

T = TypeVar("T")

# All that is slow to import and is needed by most runs (pyarrow imports pandas at its first conversion).
_PRELOADED = ["torchrec_mtl.training.run", "torchrec_mtl.heads.htlnet", "torch.utils.tensorboard", "pandas"]


class RankError(RuntimeError):
    """A rank failed or died; the message ends with its traceback."""


def run_ranks(function: Callable[..., T], world_size: int, *args: object, timeout_s: float = 120.0) -> list[T]:
    """Call ``function(*args)`` in every process of a gloo group of its own.

    The processes are forked from a server without threads that has imported torch and TorchRec once: the first call of
    a session costs seconds, every other a fraction of one. Each rank has one OpenMP thread, the environment of torchrun
    (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``), and the caller's warning filters.

    Args:
        function: of the top level of its module, which need not be importable by name.
        world_size: number of ranks.
        *args: pickled.
        timeout_s: for everything together, seconds.

    Returns:
        What the function returned, by rank; pickled.

    Raises:
        RankError: a rank raised or died, with the traceback of the first; the others are killed.
        TimeoutError: some ranks did not end in time; all are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            _Task.of(function, args, Place(r, world_size, str(Path(folder) / "store"), timeout_s))
            for r in range(world_size)
        ]
        return _collect(tasks, timeout_s)


@dataclass(frozen=True)
class Place:
    """Where a process stands among the ranks."""

    rank: int
    world_size: int
    store: str
    timeout_s: float


@dataclass(frozen=True)
class _Task:
    """A call as text and bytes, so that nothing is unpickled before its module is there."""

    module: str
    file: str
    name: str
    args: bytes
    filters: bytes
    place: Place

    @classmethod
    def of(cls, function: Callable[..., object], args: tuple[object, ...], place: Place) -> _Task:
        if "." in function.__qualname__:
            raise ValueError(f"run_ranks wants a function of the top level of a module, found {function.__qualname__}")
        file = inspect.getfile(function)
        return cls(
            function.__module__,
            file,
            function.__name__,
            pickle.dumps(args),
            pickle.dumps(list(warnings.filters)),
            place,
        )


def _collect(tasks: list[_Task], timeout_s: float) -> list[Any]:
    os.environ.update(FORKABLE)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    deadline = time.monotonic() + timeout_s
    processes: list[BaseProcess] = []
    waiting: dict[Connection, int] = {}
    results: list[Any] = [None] * len(tasks)
    grace_s = 0.0
    try:
        for task in tasks:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            waiting[mine] = task.place.rank
        while waiting:
            ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError(f"ranks {sorted(waiting.values())} did not end within {timeout_s:g} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                results[rank] = _receive(connection, rank, processes)
        grace_s = 5.0
        return results
    finally:
        _end(processes, grace_s)


def _receive(connection: Connection, rank: int, processes: Sequence[BaseProcess]) -> object:
    try:
        failed, value = pickle.loads(connection.recv_bytes())
    except EOFError:
        processes[rank].join(5.0)
        raise RankError(f"rank {rank} died with exit code {processes[rank].exitcode}") from None
    finally:
        connection.close()
    if failed:
        # One that died is why others fail, and may be noticed after them.
        for other, process in enumerate(processes):
            process.join(0.0 if other == rank else 0.5)
            if other != rank and process.exitcode not in {None, 0}:
                raise RankError(f"rank {other} died with exit code {process.exitcode}")
        raise RankError(f"rank {rank} failed:\n{value}")
    return value


def _end(processes: list[BaseProcess], grace_s: float) -> None:
    for process in processes:
        process.join(grace_s)
        if process.is_alive():
            process.kill()
            process.join()


def _run(task: _Task, connection: Connection) -> None:
    """Run in the child."""
    try:
        outcome = (False, _call(task))
    except BaseException:  # whatever it is, the parent reports it
        outcome = (True, traceback.format_exc())
    connection.send_bytes(pickle.dumps(outcome))
    if outcome[0]:
        # Until the parent kills it: an exit would fail the others, in a race to be the first reported.
        time.sleep(task.place.timeout_s)
    connection.close()


def _call(task: _Task) -> object:
    """Join the group and call the function; the group is left only after a success, for the same reason."""
    import torch
    import torch.distributed as dist

    place = task.place
    size = place.world_size
    ranks = {"RANK": place.rank, "WORLD_SIZE": size, "LOCAL_RANK": place.rank, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    torch.set_num_threads(1)
    warnings.resetwarnings()
    cast("list[object]", warnings.filters).extend(pickle.loads(task.filters))
    function = getattr(_load(task), task.name)
    timeout = timedelta(seconds=place.timeout_s)
    dist.init_process_group(
        "gloo", store=dist.FileStore(place.store, size), rank=place.rank, world_size=size, timeout=timeout
    )
    result = function(*pickle.loads(task.args))
    dist.destroy_process_group()
    return result


def _load(task: _Task) -> ModuleType:
    """Import the function's module by name, or from its file under that name (pytest's importlib mode)."""
    try:
        return importlib.import_module(task.module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(task.module, task.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[task.module] = module
        spec.loader.exec_module(module)
        return module
