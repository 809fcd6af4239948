"""The Parquet reader alone against a plain scan of the same columns, and against what models consume."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.measured import Aim, Figure, Sides, Spread, interleave, ratios
from benchmarks.scaling_growth import Length
from benchmarks.scaling_workload import Workload, train_on
from torchrec_mtl.data.files import open_files
from torchrec_mtl.training.distributed import process_group

_AIM = Aim("at least", 4.0)
_GROUP_ROWS = 65_536
_READER, _SCAN = "reader: shuffled, encoded batches", "pyarrow scan of its columns"


def read_alone(workload: Workload, heads: Sequence[str], num_rows: int, folder: Path, length: Length) -> list[Figure]:
    """Return rows/s of the reader, of a scan, and of models on batches in memory.

    The scan reads row group by row group, as the reader does, and stops at Arrow's columns.

    Args:
        workload: what is read.
        heads: of the models; the aim is for each.
        num_rows: of the file.
        folder: where it is written.
        length: of the models' training.
    """
    path = folder / "reader.parquet"
    pq.write_table(workload.table(num_rows), path, row_group_size=_GROUP_ROWS)
    files = open_files([str(path)])
    with process_group("cpu") as device:
        sessions = {head: replace(workload, head=head).open(device) for head in heads}
        encoder = next(iter(sessions.values())).encoder
        reader = next(iter(sessions.values())).reader(files, train=True)
        epochs = iter(range(length.repeats + 1))

        def read() -> float:
            start = time.perf_counter()
            for _ in reader.epoch(next(epochs)):
                pass
            return num_rows / (time.perf_counter() - start)

        def scan() -> float:
            start = time.perf_counter()
            for group in range(files[0].metadata.num_row_groups):
                with pq.ParquetFile(path, pre_buffer=True) as file:
                    file.read_row_group(group, columns=list(encoder.columns), use_threads=False)
            return num_rows / (time.perf_counter() - start)

        sides: Sides = {_READER: read, _SCAN: scan}
        for head, session in sessions.items():
            batches = workload.batches(session, length.steps(workload.batch))
            samples = len(batches) * workload.batch
            sides = {**sides, head: lambda s=session, b=batches, n=samples: n / train_on(s, b)}  # type: ignore[misc]
        found = interleave(sides, length.repeats)
    speed = {side: Spread.of(values) for side, values in found.items()}
    figures = [
        Figure(_READER, speed[_READER], "rows/s", ratios(found[_READER], found[head]), f"{head} in memory", _AIM)
        for head in heads
    ]
    cost = ratios(found[_SCAN], found[_READER])
    figures.append(
        Figure(_SCAN, speed[_SCAN], "rows/s", cost, "reader", note="what the reader's batches cost, in scans")
    )
    return [*figures, *(Figure(f"{head} in memory", speed[head], "samples/s") for head in heads)]
