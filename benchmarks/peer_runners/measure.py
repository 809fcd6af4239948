"""What every runner measures, in the same way; it runs in the peers' environments and imports nothing of ours.

A runner is a script that imports its library first and then calls `main` with its `Contender`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.peaks import matrix_products, triad
from benchmarks.peer_runners.spec import MARK, STARTED, Spec

Array = npt.NDArray[Any]

PHASES = ("read", "build", "train", "evaluate")


class Clock:
    """Time since the process was started, split into phases that exclude each other.

    Attributes:
        seconds: phase -> seconds.
        cpu_seconds: phase -> processor seconds of all threads; on a busy machine these still compare.
        first_step: seconds from the start of the process to the end of the first optimizer step.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.import_seconds = time.monotonic() - started
        self.first_step: float | None = None
        self.seconds, self.cpu_seconds = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time of the block; an inner phase stops the outer one."""
        if name == "train" and self.first_step is None:
            self._watch_first_step()
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its calls booked under a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            with self.phase(phase):
                return function(*args, **kwargs)

        return call

    def total(self) -> float:
        """Return the seconds since the process was started."""
        return time.monotonic() - self.started

    def _book(self) -> None:
        """Add what passed since the last time to the innermost phase, if one is open."""
        before, self._since = self._since, self._now()
        if self._open:
            self.seconds[self._open[-1]] += self._since[0] - before[0]
            self.cpu_seconds[self._open[-1]] += self._since[1] - before[1]

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def _watch_first_step(self) -> None:
        """Have torch say when the first optimizer step is over; no library needs to be changed for that."""

        def stepped(*_: Any) -> None:  # noqa: ANN401
            self.first_step = self.total()
            handle.remove()

        handle = register_optimizer_step_post_hook(stepped)


class Contender(Protocol):
    """One library doing the job. Its notes say what is not alike."""

    notes: list[str]

    def run(self, clock: Clock) -> Mapping[str, float]:
        """Read, train, evaluate on the test file; book the phases; return the library's own AUCs."""
        ...

    def predict(self) -> Array:
        """Return probabilities of the test file, [N, K]; not timed."""
        ...

    def num_parameters(self) -> int:
        """Return the number of weights, tables included."""
        ...


def main(contender: Callable[[Spec], Contender]) -> None:
    """Run the job that the file of the first argument describes and print what was measured.

    Args:
        contender: makes the contender; what it does there is not timed apart from the whole job.
    """
    clock = Clock(float(os.environ[STARTED]))
    spec = Spec.from_json(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    torch.manual_seed(spec.seed)
    np.random.seed(spec.seed)  # the peers' own shuffles may use it
    job = contender(spec)
    own_auc = dict(job.run(clock))
    result = {
        "import_seconds": clock.import_seconds,
        "first_step_seconds": clock.first_step,
        **{f"{name}_seconds": seconds for name, seconds in clock.seconds.items()},
        **{f"{name}_cpu_seconds": seconds for name, seconds in clock.cpu_seconds.items()},
        "process_seconds": clock.total(),
        "cpu_seconds": sum(os.times()[:4]),
        "peak_mib": peak_mib(),
        "own_auc": own_auc,
        "parameters": job.num_parameters(),
        "notes": list(job.notes),
        # Only ours counts: the models are the same.
        "flops_per_row": job.flops_per_row() if hasattr(job, "flops_per_row") else None,
    }
    labels, predictions = read_columns(spec.test, spec.tasks), job.predict()
    result["auc"] = {task: auc(labels[task], predictions[:, k]) for k, task in enumerate(spec.tasks)}
    result["train_rows"] = spec.epochs * num_rows(spec.train)
    result |= machine_limits()  # last: its arrays are large
    print(MARK + json.dumps(result), flush=True)


def read_columns(path: str, columns: Sequence[str]) -> dict[str, Array]:
    """Read columns of a Parquet file: ids as int64, numbers as float32, labels as they are."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(columns), use_threads=False)
    return {name: table.column(name).to_numpy() for name in columns}


def num_rows(path: str) -> int:
    """Return the rows of a Parquet file."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def auc(labels: Array, scores: Array) -> float:
    """Return the area under the ROC curve; ties count half. One function judges all contenders."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positive = labels > 0
    num_positive = int(positive.sum())
    num_negative = len(labels) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    below = middle[ranks[positive]].sum() - num_positive * (num_positive + 1) / 2
    return float(below / (num_positive * num_negative))


def machine_limits() -> dict[str, float]:
    """Return what this thread reaches now, the best of 3."""
    sides = {"gemm_gflops": matrix_products(), "bandwidth_gbs": triad()}
    return {name: max(side() for _ in range(3)) for name, side in sides.items()}


def peak_mib() -> float:
    """Return this program's peak resident memory.

    ``getrusage`` would also count what the parent held at the moment it started this process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("/proc/self/status has no VmHWM; this benchmark needs Linux")
