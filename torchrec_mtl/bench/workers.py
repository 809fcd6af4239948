"""Processes for the runs: forked from a server that has imported the stack once, so that each is fresh and cheap."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torchrec_mtl.bench.job import CONFIG, LOG, OUTCOME, work
from torchrec_mtl.bench.rows import Key, Phase
from torchrec_mtl.config.load import dump
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.device import FORKABLE

# All that is slow to import and is needed by most runs.
_PRELOADED = ["torchrec_mtl.bench.job", "torchrec_mtl.heads.htlnet", "torch.utils.tensorboard", "pandas"]
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TAIL = 2000  # characters of a dead worker's log


class Job(Protocol):
    """A training to be made."""

    @property
    def run(self) -> RunConfig:
        """Merged config, without what ``as_run`` sets."""

    @property
    def phase(self) -> Phase:
        """Whether the rows of ``data.eval`` are scored (trial), or those of ``data.test`` (seed)."""

    @property
    def key(self) -> Key:
        """Names it; its second part is the seed."""


J = TypeVar("J", bound=Job)


@dataclass
class _Worker(Generic[J]):
    job: J
    process: BaseProcess
    folder: Path
    start: float


class Workers(Generic[J]):
    """Runs jobs, some at once, each in a process and a folder of its own.

    Args:
        count: processes at once.
        folder: for their files; emptied now, and after each run.
        failed: folder that keeps the logs of failed runs.
        timeout_s: longest time of a run, seconds; None: no limit.
    """

    def __init__(self, count: int, folder: Path, *, failed: Path, timeout_s: float | None) -> None:
        self.count = count
        self._folder, self._failed, self._timeout_s = folder, failed, timeout_s
        self._running: dict[int, _Worker[J]] = {}
        shutil.rmtree(folder, ignore_errors=True)  # of a bench that was killed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    @property
    def num_free(self) -> int:
        """How many more jobs can be started now."""
        return self.count - len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running

    def start(self, job: J) -> None:
        """Start a job."""
        folder = self._folder / uuid.uuid4().hex[:12]
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(dump(as_run(job, folder)), encoding="utf-8")
        process = self._context.Process(target=work, args=(str(folder),), daemon=True)
        try:
            with _environment():
                process.start()
            self._running[process.sentinel] = _Worker(job, process, folder, time.monotonic())
        except KeyboardInterrupt:  # between the two nobody else knows of it
            if process.pid is not None:
                _end(process)
            raise

    def wait(self) -> list[tuple[J, dict[str, Any]]]:
        """Wait until a job has ended; return those that have, with what they left (``error`` where they failed)."""
        ended: list[tuple[J, dict[str, Any]]] = []
        while not ended:
            ready = {s for s in wait(list(self._running), timeout=self._patience()) if isinstance(s, int)}
            for sentinel, worker in list(self._running.items()):
                late = self._timeout_s is not None and time.monotonic() - worker.start > self._timeout_s
                if sentinel in ready or late:
                    del self._running[sentinel]
                    ended.append((worker.job, self._collect(worker, late=sentinel not in ready)))
        return ended

    def _patience(self) -> float | None:
        if self._timeout_s is None:
            return None
        first = min(worker.start for worker in self._running.values())
        return max(first + self._timeout_s - time.monotonic(), 0) + 0.05

    def _collect(self, worker: _Worker[J], *, late: bool) -> dict[str, Any]:
        _end(worker.process)
        path = worker.folder / OUTCOME
        outcome: dict[str, Any]
        if late:
            outcome = {"error": f"stopped after {self._timeout_s:g} s (timeout_s)"}
        elif path.is_file():
            outcome = json.loads(path.read_text(encoding="utf-8"))
        else:
            outcome = {"error": _death(worker.process.exitcode, worker.folder / LOG)}
        outcome.setdefault("seconds", round(time.monotonic() - worker.start, 3))
        if "error" in outcome and (worker.folder / LOG).is_file():
            self._failed.mkdir(parents=True, exist_ok=True)
            config, seed, split = worker.job.key
            shutil.copy(worker.folder / LOG, self._failed / f"{config}-{split}-{seed}.txt")
        shutil.rmtree(worker.folder, ignore_errors=True)
        return outcome

    def close(self) -> None:
        """Kill what runs and remove the files."""
        for worker in self._running.values():
            _end(worker.process)
        self._running.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def as_run(job: Job, folder: Path) -> RunConfig:
    """Return the config of a job with what the bench sets: seed, folder, the rows to be scored; and no trackers."""
    run = job.run
    scored = run.data.eval if job.phase == "trial" else run.data.test
    return run.model_copy(
        update={
            "data": run.data.model_copy(update={"test": scored}),
            "train": run.train.model_copy(update={"seed": job.key[1], "references": False, "sinks": ()}),
            "run_dir": str(folder / "run"),
        }
    )


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()
    process.join()


def _death(code: int | None, log: Path) -> str:
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
    tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip() if log.is_file() else ""
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"the process died: {name}{hint}" + (f"; its last words: {tail}" if tail else "")


@contextmanager
def _environment() -> Iterator[None]:
    """What the server, and so every worker, is started with: one thread, and no rank of a launcher's."""
    before = {name: os.environ.get(name) for name in (*_ONE_THREAD, *FORKABLE, *_RANK)}
    for name in _RANK:
        os.environ.pop(name, None)
    os.environ.update(_ONE_THREAD | FORKABLE)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
