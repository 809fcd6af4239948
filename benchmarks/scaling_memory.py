"""Memory of a training process by rows a table, each size in processes of its own.

    python -m benchmarks.scaling_memory '{"rows": 10000}'

prints the peak of one such process as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.measured import Aim, Figure, Sides, Spread, interleave, ratios
from benchmarks.scaling_workload import DIM, Workload, train_on
from torchrec_mtl.training.distributed import process_group

_AIM = Aim("at most", 1.15)
_STEPS = 5


def table_mebibytes(workload: Workload) -> float:
    """Return the size of tables and state: float32 rows, and one float32 of row-wise Adagrad a row."""
    return workload.tables * workload.rows * 4 * (DIM + 1) / 2**20


def grow_memory(workload: Workload, sizes: Sequence[int], repeats: int) -> list[Figure]:
    """Return the peak memory by rows a table, as a ratio to tables, state, and the base of the smallest size."""
    cases = {f"{rows:,} rows a table": replace(workload, rows=rows) for rows in sizes}
    sides: Sides = {case: lambda w=w: peak_of_process(w) for case, w in cases.items()}  # type: ignore[misc]
    peaks = interleave(sides, repeats, warm_up=False)
    first = next(iter(cases))
    base = [peak - table_mebibytes(cases[first]) for peak in peaks[first]]
    figures = []
    for case, w in cases.items():
        expected = [table_mebibytes(w) + b for b in base]
        note = f"tables and state {table_mebibytes(w):,.0f} MiB"
        ratio = ratios(peaks[case], expected) if case != first else None
        against = "tables + state + base" if ratio else ""
        figures.append(Figure(case, Spread.of(peaks[case]), "MiB", ratio, against, _AIM if ratio else None, note))
    return figures


def peak_of_process(workload: Workload) -> float:
    """Return the peak memory of a process that trains a few steps, MiB."""
    words = [sys.executable, "-m", "benchmarks.scaling_memory", json.dumps(asdict(workload))]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout)["peak_mib"])


def _peak_mebibytes() -> float:
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    torch.set_num_threads(1)
    workload = Workload(**json.loads(sys.argv[1]))
    with process_group("cpu") as device:
        session = workload.open(device)
        train_on(session, workload.batches(session, _STEPS))
    print(json.dumps({"peak_mib": _peak_mebibytes()}))


if __name__ == "__main__":
    main()
