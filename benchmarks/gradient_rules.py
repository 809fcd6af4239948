"""Samples/s of every gradient rule as a ratio to the plain sum, for 2, 3, and 5 tasks, at both cut points.

    python benchmarks/gradient_rules.py [--tasks 2 3 5] [--repeats 7] [--steps 20] [--rules htlnet pcgrad]

One model per rule on the same tables, data in memory, through TorchRec's pipeline with fused optimizers: 20 features of
one id each and a list of up to 20, table width 16, batch 1024, ids drawn from a Zipf law so that they repeat. Head
`htlnet` (its towers are disjoint, so that gradients are told apart in the one backward), or another with `--head`. One
thread; each rule runs right after the sum, all in turn; medians of ratios. `--profile RULE` prints where the time goes.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.statistics import DenseStatistics, LabelStatistics, Statistics
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.session import Session, open_session

FEATURES, ROWS, DIM, DENSE, LIST = 20, 20_000, 16, 8, 20
OPTIONS: dict[str, dict[str, Any]] = {"htlnet": {"core": "core"}, "metabalance": {"core": "core"}}


@dataclass(frozen=True)
class Variant:
    """A rule and where it acts."""

    rule: str
    at: str = "embeddings"
    exact: str = "boundary"

    @property
    def section(self) -> dict[str, Any]:
        """The config's ``gradient``."""
        if resolve("rule", self.rule).needs != "gramian":
            return {"type": self.rule}
        return {"type": self.rule, "at": self.at, "exact": self.exact, **OPTIONS.get(self.rule, {})}

    @property
    def label(self) -> str:
        """For the table."""
        needs = resolve("rule", self.rule).needs
        return f"{self.rule:<12} {'-' if needs != 'gramian' else f'{self.at}, {self.exact}'}"


def variants(rules: Sequence[str]) -> list[Variant]:
    """Return the plain sum, then each rule at both cut points, and with exact row gradients."""
    found = [Variant("sum")]
    for rule in rules:
        if rule == "sum":
            continue
        found.append(Variant(rule))
        if resolve("rule", rule).needs == "gramian":
            found.append(Variant(rule, exact="rows"))
            if resolve("rule", rule).groups == "all":
                found.append(Variant(rule, at="representation"))
    return found


def config(num_tasks: int, variant: Variant, head: dict[str, Any], batch_size: int) -> RunConfig:
    """Return a run on data that do not exist; only its batches are needed."""
    names = [f"f{i}" for i in range(FEATURES)]
    tasks: list[dict[str, Any]] = [{"name": f"t{k}", "kind": "binary", "label": f"t{k}"} for k in range(num_tasks - 1)]
    tasks.append({"name": "core", "kind": "regression", "label": "core"})
    return parse(
        {
            "data": {"train": "none.parquet", "batch_size": batch_size},
            "features": {
                "tables": [{"name": n, "rows": ROWS, "dim": DIM} for n in names],
                "sparse": [{"name": n, "table": n} for n in names] + [{"name": "list", "table": "f0"}],
                "dense": [f"d{i}" for i in range(DENSE)],
            },
            "tasks": tasks,
            "head": head,
            "gradient": variant.section,
            "run_dir": "none",
        }
    )


def make_batches(run: RunConfig, count: int) -> list[Batch]:
    """Draw batches."""
    draw, size, num_tasks = np.random.default_rng(0), run.data.batch_size, len(run.tasks)
    lengths = np.concatenate([np.ones((FEATURES, size), np.int32), draw.integers(0, LIST + 1, (1, size))]).astype("i4")
    batches = []
    for step in range(count):
        ids = torch.from_numpy(draw.zipf(1.2, int(lengths.sum())) % ROWS)
        labels = torch.from_numpy(draw.integers(0, 2, (size, num_tasks))).float()
        batches.append(
            Batch(
                dense=torch.randn(size, DENSE),
                sparse=KeyedJaggedTensor(
                    [f.name for f in run.features.sparse], ids, lengths=torch.from_numpy(lengths.reshape(-1))
                ),
                sequences=KeyedJaggedTensor.empty(),
                labels=labels,
                weights=torch.ones(size, num_tasks),
                valid=torch.ones(size),
                rows=torch.arange(size),
                ids={},
                step=step,
                global_size=size,
            )
        )
    return batches


def open_variant(run: RunConfig, device: torch.device) -> Session:
    """Build, shard, and fuse."""
    dense = {f"d{i}": DenseStatistics(mean=0.0, std=1.0, nulls=0) for i in range(DENSE)}
    labels = {t.name: LabelStatistics(rows=1, weight=1.0, mean=0.5, std=0.5, positive_rate=0.5) for t in run.tasks}
    return open_session(run, Statistics(rows=1, dense=dense, labels=labels, features={}), device)


def seconds(session: Session, batches: Sequence[Batch]) -> float:
    """Train on the batches."""
    start = time.perf_counter()
    for _ in session.run(iter(batches)):
        pass
    return time.perf_counter() - start


def measure(num_tasks: int, options: argparse.Namespace, device: torch.device) -> None:
    """Print one table."""
    chosen = variants(options.rules)
    head = {"type": options.head}
    runs = [config(num_tasks, v, head, options.batch_size) for v in chosen]
    batches = make_batches(runs[0], options.steps)
    sessions = [open_variant(run, device) for run in runs]
    times: list[list[tuple[float, float]]] = [[] for _ in chosen]
    for repeat in range(options.repeats + 1):
        for i, session in enumerate(sessions):
            # The sum right before each rule: on a shared machine seconds apart are already another machine.
            pair = seconds(sessions[0], batches), seconds(session, batches)
            if repeat:  # the first warms up
                times[i].append(pair)
    print(f"\n{num_tasks} tasks, head {options.head}\n")
    print("| rule | cut, exact | samples/s | ratio to sum |\n| --- | --- | --- | --- |")
    for variant, pairs in zip(chosen, times, strict=True):
        ratios = [base / took for base, took in pairs]
        speed = options.batch_size * options.steps / statistics.median(took for _, took in pairs)
        rule, _, cut = variant.label.partition(" ")
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {rule} | {cut.strip()} | {speed:.0f} | {spread} |", flush=True)


def profiled(options: argparse.Namespace, device: torch.device) -> None:
    """Print where the time of a rule's step goes."""
    for variant in variants([options.profile]):
        run = config(options.tasks[0], variant, {"type": options.head}, options.batch_size)
        session, batches = open_variant(run, device), make_batches(run, options.steps)
        seconds(session, batches)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            seconds(session, batches)
        print(variant.label)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--rules", nargs="+", default=list(BUILT_IN["rule"]), choices=list(BUILT_IN["rule"]))
    parser.add_argument("--head", default="htlnet", choices=[h for h in BUILT_IN["head"] if h != "single_task"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--profile", choices=list(BUILT_IN["rule"]))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec", "torchjd"))
    print(f"Python {platform.python_version()}, {versions}; {platform.platform()}, {os.cpu_count()} cores, one thread")
    with process_group("cpu") as device:
        if options.profile:
            profiled(options, device)
            return
        for num_tasks in options.tasks:
            measure(num_tasks, options, device)


if __name__ == "__main__":
    main()
