r"""How our training step grows, starts, and uses the machine: tables, tasks, batches, ranks, reader, physical limits.

    python -m benchmarks.scaling [--only rows memory ...] [--head mmoe] [--repeats 5] [--out scaling.jsonl]
    python -m benchmarks.scaling --only profile --profile-tasks 16

Parts: rows and memory (10 k, 1 M, 10 M rows in each of 5 tables that 20 fields share: 3.5 GiB where all sizes live in
one process, so that they can be interleaved), tasks (every registered head that takes them), batch, ranks, start,
reader, profile. What is timed is what users run: sessions and their pipelines, on batches held in memory; see
``scaling_workload``. One thread a rank. Every ratio is of two measurements of the same repeat; shown are the median and
the range over the repeats, after a warm-up, and whether the median keeps to the aim. The steps' tables say what share
of the machine's matrix-product peak and bandwidth (measured in the same run) the steps reach.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import Figure, append, as_markdown
from benchmarks.scaling_growth import Length, grow_batch, grow_rows, grow_tasks
from benchmarks.scaling_memory import grow_memory
from benchmarks.scaling_profile import profile_steps
from benchmarks.scaling_ranks import scale_ranks
from benchmarks.scaling_reader import read_alone
from benchmarks.scaling_start import imports_by_package, start_up
from benchmarks.scaling_workload import HEADS, Workload
from torchrec_mtl.registry import BUILT_IN

Tables = Iterator[tuple[str, Sequence[Figure]]]
_TASKS_SHARE = 6
"""The tasks part trains on this fraction of the samples: it has many models, and large ones."""


def _rows(options: argparse.Namespace, _folder: Path) -> Tables:
    workload, tables = _workload(options), options.tables
    figures = grow_rows(replace(workload, tables=tables), options.rows, _length(options))
    yield f"rows: {workload.head}, batch {workload.batch}, {tables} tables", figures


def _memory(options: argparse.Namespace, _folder: Path) -> Tables:
    workload = replace(_workload(options), tables=options.tables)
    figures = grow_memory(workload, options.rows, options.repeats)
    yield f"memory: peak of a process that trains, {options.tables} tables", figures


def _tasks(options: argparse.Namespace, _folder: Path) -> Tables:
    length = replace(_length(options), samples=options.samples // _TASKS_SHARE)
    for head in options.heads:
        workload = replace(_workload(options), head=head)
        try:
            figures = grow_tasks(workload, options.tasks, length)
        except ValueError as error:  # a head may want other tasks or features than these
            print(f"\n### tasks: {head}\n\nnot measured, it refuses such tasks or features: {error}", flush=True)
            continue
        yield f"tasks: {head}, batch {workload.batch}", figures


def _batch(options: argparse.Namespace, _folder: Path) -> Tables:
    yield f"batch: {options.head}, 2 tasks", grow_batch(_workload(options), options.batches, _length(options))


def _ranks(options: argparse.Namespace, _folder: Path) -> Tables:
    for norm in ("batch", "none"):  # batch norm waits for the other rank twice a layer
        workload = replace(_workload(options), norm=norm)
        yield f"ranks: {options.head}, 2 tasks, norm {norm}", scale_ranks(workload, _length(options))


def _start(options: argparse.Namespace, folder: Path) -> Tables:
    yield "start: seconds from the start of a process", start_up(_workload(options), folder, options.repeats)
    yield "start: what is imported before the first step", imports_by_package(_workload(options), folder)


def _reader(options: argparse.Namespace, folder: Path) -> Tables:
    heads = list(dict.fromkeys([options.head, "shared_bottom"]))
    figures = read_alone(_workload(options), heads, options.file_rows, folder, _length(options))
    yield f"reader: {options.file_rows:,} rows, 20 id columns, 5 dense, 2 labels", figures


def _profile(options: argparse.Namespace, _folder: Path) -> Tables:
    for tasks in options.profile_tasks:
        workload = replace(_workload(options), tasks=tasks)
        title = f"profile: {workload.head}, {tasks} tasks, batch {workload.batch}, {workload.rows:,} rows a table"
        kinds, operators = profile_steps(workload, options.profile_steps)
        yield f"{title}: kinds", kinds
        yield f"{title}: largest operators", operators


PARTS: Mapping[str, Callable[[argparse.Namespace, Path], Tables]] = {
    "rows": _rows,
    "memory": _memory,
    "tasks": _tasks,
    "batch": _batch,
    "ranks": _ranks,
    "start": _start,
    "reader": _reader,
    "profile": _profile,
}


def _workload(options: argparse.Namespace) -> Workload:
    return Workload(head=options.head, batch=options.batch_size, seed=options.seed)


def _length(options: argparse.Namespace) -> Length:
    return Length(options.repeats, options.samples)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    heads = list(BUILT_IN["head"])
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=str([*PARTS])
    )
    parser.add_argument("--head", default="mmoe", choices=heads, help="of every part but tasks")
    parser.add_argument("--heads", nargs="+", default=heads, choices=heads, help="of the tasks part")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=40_960, help="rows trained on in each repeat of a case")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--tables", type=int, default=5, help="of rows and memory; the 20 fields take turns")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--file-rows", type=int, default=500_000, help="of the reader's file")
    parser.add_argument("--profile-steps", type=int, default=20)
    parser.add_argument("--profile-tasks", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append every figure as a JSON line")
    return parser.parse_args(words)


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """Return where and how the figures are measured."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchrec", "pyarrow")},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "head": options.head,
        "head_options": HEADS.get(options.head, {}),
        "seed": options.seed,
        "repeats": options.repeats,
        "samples": options.samples,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for."""
    options = parse_options(words)
    torch.set_num_threads(1)
    where = setting(options)
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only:
            for title, figures in PARTS[part](options, Path(folder)):
                print(as_markdown(title, figures), flush=True)
                if options.out:
                    append(options.out, title, figures, where)


if __name__ == "__main__":
    main()
