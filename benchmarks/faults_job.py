"""A training of two ranks under torchrun whose ranks can be found, and killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from torchrec_mtl.training.distributed import NEW_STORE

RANKS = 2
_TIMEOUT_S = 900.0


class Job:
    """Two ranks under torchrun.

    Args:
        raw: config of the run.
        folder: of its config, traces, and output.
        restarts: how many torchrun may make.
    """

    def __init__(self, raw: dict[str, Any], folder: Path, restarts: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.traces = folder / "traces"
        self.traces.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(raw))
        self._output = (folder / "output.txt").open("w")
        options = ["--standalone", f"--nproc-per-node={RANKS}", f"--max-restarts={restarts}"]
        worker = str(Path(__file__).with_name("faults_worker.py"))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *options,
            worker,
            "train",
            str(folder / "config.yaml"),
        ]
        root = str(Path(__file__).parents[1])
        more = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", NEW_STORE: "1", "FAULTS_TRACE": str(self.traces)}
        self._start = time.monotonic()
        self.process = subprocess.Popen(
            command, env={**os.environ, **more}, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def ranks(self) -> list[int]:
        """Return the processes of the ranks that live."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return []
        return [int(pid) for pid in children if list(self.traces.glob(f"*-{pid}"))]

    def attempts(self) -> int:
        """Return how often rank 0 was started."""
        return len(list(self.traces.glob("*-0-*")))

    def events(self) -> int:
        """Return how many lines rank 0 has traced since it was last started."""
        traces = sorted(self.traces.glob("*-0-*"))
        return traces[-1].read_bytes().count(b"\n") if traces else 0

    def doing(self, pid: int) -> str:
        """Return what a rank was last at."""
        (trace,) = self.traces.glob(f"*-{pid}")
        lines = [line.split(" ", 2) for line in trace.read_text().splitlines()]
        return next((words[2] for words in reversed(lines) if words[1] == "doing"), "importing")

    def end(self) -> tuple[bool, float]:
        """Wait for the end; return whether it was a success, and the seconds from the start."""
        try:
            code = self.process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            self.stop()
        return code == 0, time.monotonic() - self._start

    def stop(self) -> None:
        """End all processes of the job."""
        for pid in (*self.ranks(), self.process.pid):  # torchrun gives ranks sessions of their own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._output.close()
