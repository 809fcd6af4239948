"""Samples/s of two ranks on two cores against one, with the same global batch and with twice as much.

Every measurement starts its ranks anew, joins them in a gloo group, and trains on batches held in memory; tables are
sharded as the planner says (whole tables, on the CPU), and several ranks use ``TrainPipelineSparseDist``. What the
cores themselves give is measured in the same runs: matrix products in both ranks at once against those in one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from benchmarks.measured import Aim, Figure, Spread, ratios
from benchmarks.peaks import matrix_products
from benchmarks.scaling_growth import Length
from benchmarks.scaling_workload import Workload, train_on
from torchrec_mtl.testing.ranks import run_ranks

_AIM = Aim("at least", 1.5)
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class RankResult:
    """What one rank measured."""

    seconds: float
    samples: int
    gflops: float


def train_rank(workload: Workload, steps: int) -> RankResult:
    """Train this rank's share of the steps, after as many to warm up, and multiply matrices; runs in every rank."""
    # Nothing to inherit: the process is forked from a server that has run none of this.
    session = workload.open(torch.device("cpu"))
    batches = workload.batches(session, steps)
    train_on(session, batches)
    dist.barrier()
    seconds = train_on(session, batches)
    gemm = matrix_products()
    gemm()
    dist.barrier()
    return RankResult(seconds, steps * workload.batch, gemm())


def scale_ranks(workload: Workload, length: Length) -> list[Figure]:
    """Return samples/s by ranks and global batch, each against one rank with the batch of ``workload``."""
    cases = {
        f"{ranks} rank{'s' * (ranks > 1)}, global batch {batch}": (ranks, replace(workload, batch=batch))
        for batch, ranks in itertools.product((workload.batch, 2 * workload.batch), (1, 2))
    }
    speed: dict[str, list[float]] = {case: [] for case in cases}
    gflops: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(length.repeats):  # each run warms up by itself
        for case, (ranks, w) in cases.items():
            found = run_ranks(train_rank, ranks, w, length.steps(w.batch), timeout_s=_TIMEOUT_S)
            # The slowest rank is when the work is done.
            speed[case].append(found[0].samples / max(r.seconds for r in found))
            gflops[ranks].append(sum(r.gflops for r in found))
    first = next(iter(cases))
    figures = [Figure(first, Spread.of(speed[first]), "samples/s")]
    for case, (ranks, _) in list(cases.items())[1:]:
        ratio = ratios(speed[case], speed[first])
        figures.append(Figure(case, Spread.of(speed[case]), "samples/s", ratio, first, _AIM if ranks > 1 else None))
    cores = ratios(gflops[2], gflops[1])
    figures.append(Figure("matrix products in 2 ranks at once", Spread.of(gflops[2]), "GFLOP/s", cores, "in 1 rank"))
    return figures
