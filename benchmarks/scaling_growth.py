"""Step time as tables, tasks, and batches grow; each size against the smallest, or the one before, of the same run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.machine_limits import BANDWIDTH, GEMM, count_flops, count_table_bytes, limits
from benchmarks.measured import Aim, Figure, Sides, Spread, Times, interleave, ratios
from benchmarks.scaling_workload import Workload, stepper
from torchrec_mtl.training.distributed import process_group

_FEWEST_STEPS = 3
_ROWS_AIM, _TASKS_AIM, _BATCH_AIM = Aim("at most", 1.3), Aim("at most", 4.0), Aim("at least", 1.0)


@dataclass(frozen=True)
class Length:
    """How long to measure: repeats, and rows trained on in each (``_FEWEST_STEPS`` steps at least)."""

    repeats: int
    samples: int

    def steps(self, batch: int) -> int:
        """Return the steps of one repeat."""
        return max(_FEWEST_STEPS, self.samples // batch)


@dataclass(frozen=True)
class Steps:
    """What was measured: milliseconds a step by case, the machine's limits, and what a step asks of them."""

    cases: Mapping[str, Workload]
    times: Times
    flops: Mapping[str, float]
    table_bytes: Mapping[str, int]

    def share(self, case: str) -> str:
        """Say which share of the machine's limits the steps of a case reach."""
        seconds = [ms / 1000 for ms in self.times[case]]
        gflops = [self.flops[case] / s / 1e9 for s in seconds]
        gbytes = [self.table_bytes[case] / s / 1e9 for s in seconds]
        return (
            f"{self.flops[case] / 1e9:.2f} GFLOP: {ratios(gflops, self.times[GEMM]).median:.0%} of the GEMM peak; "
            f"{self.table_bytes[case] / 1e6:.1f} MB of rows: {ratios(gbytes, self.times[BANDWIDTH]).median:.1%} of the "
            "bandwidth"
        )

    def limits(self) -> list[Figure]:
        """Return the machine's limits."""
        return [
            Figure("GEMM peak", Spread.of(self.times[GEMM]), "GFLOP/s"),
            Figure("bandwidth", Spread.of(self.times[BANDWIDTH]), "GB/s"),
        ]

    def milliseconds(self, case: str, base: str, aim: Aim | None) -> Figure:
        """Return a case's step time as a ratio to that of ``base``."""
        against = ratios(self.times[case], self.times[base]) if case != base else None
        return Figure(
            case,
            Spread.of(self.times[case]),
            "ms a step",
            against,
            base if against else "",
            aim if against else None,
            self.share(case),
        )


def measure(cases: Mapping[str, Workload], length: Length) -> Steps:
    """Train all cases in turn in this process, and measure the machine's limits between them."""
    sides: Sides = limits()
    flops, table_bytes = dict[str, float](), dict[str, int]()
    with process_group("cpu") as device:
        for case, workload in cases.items():
            session = workload.open(device)
            batches = workload.batches(session, length.steps(workload.batch))
            flops[case] = count_flops(session, batches[0])
            table_bytes[case] = count_table_bytes(session.config, batches[0])
            sides = {**sides, case: stepper(session, batches)}
        return Steps(cases, interleave(sides, length.repeats), flops, table_bytes)


def grow_rows(workload: Workload, sizes: Sequence[int], length: Length) -> list[Figure]:
    """Return step times by rows a table."""
    cases = {f"{rows:,} rows a table": replace(workload, rows=rows) for rows in sizes}
    found = measure(cases, length)
    first = next(iter(cases))
    return [*(found.milliseconds(case, first, _ROWS_AIM) for case in cases), *found.limits()]


def grow_tasks(workload: Workload, counts: Sequence[int], length: Length) -> list[Figure]:
    """Return step times by tasks of one head; the aim is for the largest number."""
    cases = {f"{workload.head}, {tasks} tasks": replace(workload, tasks=tasks) for tasks in counts}
    found = measure(cases, length)
    first, last = next(iter(cases)), next(reversed(cases))
    figures = []
    for case in cases:
        figure = found.milliseconds(case, first, _TASKS_AIM if case == last else None)
        work = f"{found.flops[case] / found.flops[first]:.1f} times the FLOPs; " if case != first else ""
        figures.append(replace(figure, note=work + figure.note))
    return [*figures, *found.limits()]


def grow_batch(workload: Workload, sizes: Sequence[int], length: Length) -> list[Figure]:
    """Return samples/s by batch, each as a ratio to the batch before."""
    cases = {f"batch {size}": replace(workload, batch=size) for size in sizes}
    found = measure(cases, length)
    speed = {case: [w.batch / ms * 1000 for ms in found.times[case]] for case, w in cases.items()}
    first = next(iter(cases))
    figures = [Figure(first, Spread.of(speed[first]), "samples/s", note=found.share(first))]
    for before, case in itertools.pairwise(cases):
        rise = ratios(speed[case], speed[before])
        figures.append(
            Figure(case, Spread.of(speed[case]), "samples/s", rise, before, _BATCH_AIM, note=found.share(case))
        )
    return [*figures, *found.limits()]
