"""How long it takes to plan a model of 2 TB, and what the plan says: `torchrec-mtl plan` on 16 x 8 and 32 x 8 GPUs.

    python -m benchmarks.plan [--nodes 16 32] [--gpus 8] [--hbm-gib 80] [--config plan.yaml] [--json FOLDER]

The model: 100 tables of 1 thousand to 2 billion rows, width 128, 2 TB of float32 in all, one feature a table, row-wise
Adagrad, two binary tasks, global batch 65,536; the number of rows is drawn with a fixed seed. Nothing of it is
allocated. Seconds are those of the whole command, the model on ``meta`` included, by the clock and of the processor;
milliseconds of a step are TorchRec's estimates, not measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

from torchrec_mtl import __version__
from torchrec_mtl.bench.machine import machine
from torchrec_mtl.planning.command import make_report, read_cluster
from torchrec_mtl.planning.report import Report, to_json
from torchrec_mtl.planning.result import GIB

TABLES, DIM, BYTES = 100, 128, 2 * 10**12
FEWEST, MOST = 1_000, 2_000_000_000
BATCH, STREAMS = 65_536, 256


def rows_of_tables(seed: int) -> list[int]:
    """Return the rows of all tables, largest first: from 1 thousand to 2 billion, `BYTES` of float32 in all."""
    where = np.sort(np.random.default_rng(seed).uniform(size=TABLES))
    where = (where - where[0]) / (where[-1] - where[0])  # both ends are there
    low, high = 0.01, 100.0
    for _ in range(100):  # the bend of the curve decides the sum, which falls as it grows
        bend = (low * high) ** 0.5
        rows = FEWEST * (MOST / FEWEST) ** (where**bend)
        low, high = (bend, high) if rows.sum() * DIM * 4 > BYTES else (low, bend)
    return [int(n) for n in rows[::-1].round()]


def make_config(seed: int = 0) -> dict[str, object]:
    """Return the run, as YAML would give it."""
    rows = rows_of_tables(seed)
    return {
        "data": {"train": "train.parquet", "batch_size": BATCH, "streams": STREAMS},
        "features": {
            "tables": [{"name": f"table_{i}", "rows": n, "dim": DIM} for i, n in enumerate(rows)],
            "sparse": [{"name": f"feature_{i}", "table": f"table_{i}"} for i in range(len(rows))],
        },
        "tasks": [{"name": name, "kind": "binary", "label": name} for name in ("click", "like")],
        "head": {"type": "shared_bottom"},
        "optim": {"sparse": {"type": "rowwise_adagrad"}},
        "run_dir": "runs/plan",
    }


def main() -> None:
    options = _options()
    config = make_config()
    with tempfile.TemporaryDirectory() as folder:
        file = options.config or Path(folder) / "plan.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        lines = []
        for nodes in options.nodes:
            report, wall, processor = _plan(file, nodes, options.gpus, options.hbm_gib)
            lines.append(_line(report, wall, processor))
            if options.json is not None:
                target = options.json / f"plan-{nodes}x{options.gpus}.json"
                target.write_text(to_json(report), encoding="utf-8")
    rows = rows_of_tables(0)
    print(f"\n### {len(rows)} tables, {min(rows):,} to {max(rows):,} rows, {sum(rows) * DIM * 4 / 1e12:.2f} TB\n")
    head = ("nodes x GPUs", "wall s", "CPU s", "step ms (estimate)", "of it comms", "HBM GiB, fullest (mean)")
    table = [(*head, "of", "host GiB", "cut by rows, of a node, whole"), ("---",) * 9, *lines]
    print("\n".join("| " + " | ".join(line) + " |" for line in table))
    print(f"\n{_setting()}")


def _setting() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec"))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # Linux counts KiB
    return (
        f"{machine().removesuffix(', one thread a run')}, OMP_NUM_THREADS={threads}, load {os.getloadavg()[0]:.1f}; "
        f"torchrec_mtl {__version__}, Python {platform.python_version()}, {packages}; "
        f"largest memory of the process {memory:.2f} GiB"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--hbm-gib", type=float, default=80.0)
    parser.add_argument("--config", type=Path, help="keep the config here")
    parser.add_argument("--json", type=Path, help="folder for the whole plans")
    return parser.parse_args()


def _plan(config: Path, nodes: int, gpus: int, hbm_gib: float) -> tuple[Report, float, float]:
    start, processor = time.perf_counter(), time.process_time()
    cluster = read_cluster(nodes=nodes, gpus=gpus, device="cuda", hbm_gib=hbm_gib)
    report = make_report(config, (), cluster, changes=False)
    return report, time.perf_counter() - start, time.process_time() - processor


def _line(report: Report, wall: float, processor: float) -> tuple[str, ...]:
    where = f"{report.cluster.nodes} x {report.cluster.gpus}"
    plan = report.plan
    if plan is None:
        return (where, f"{wall:.0f}", f"{processor:.0f}", "does not fit", *[""] * 5)
    hbm = [rank.hbm_bytes / GIB for rank in plan.ranks]
    slowest = max(plan.ranks, key=lambda rank: rank.cost.total).cost
    kinds = [table.sharding for table in plan.tables]
    counts = ", ".join(str(kinds.count(kind)) for kind in ("row_wise", "table_row_wise", "table_wise"))
    return (
        where,
        f"{wall:.0f}",
        f"{processor:.0f}",
        f"{slowest.total:.2f}",
        f"{slowest.comms:.2f}",
        f"{max(hbm):.1f} ({sum(hbm) / len(hbm):.1f})",
        f"{plan.hbm_available / GIB:.0f}",
        f"{sum(rank.ddr_bytes for rank in plan.ranks) / GIB:.0f}",
        counts,
    )


if __name__ == "__main__":
    main()
