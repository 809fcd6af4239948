r"""Does every head come near the oracle on independent tasks? Does gating help where tasks conflict?

    python benchmarks/oracle.py [--models ple mmoe] [--seeds 0 1 2 3 4] [--processes 2] [--runs runs/oracle.jsonl]

Generated rows (`torchrec_mtl.data.oracle`), every head with as many parameters above the tables as the others (within
5 %), the same learning rates, batches, and epochs, the checkpoint that is best on the validation rows. Printed:

1. Independent tasks: AUC below that of the true probabilities, by task; mean and 95 % interval (Student's t over
   seeds). Heads that take a buy to imply a click learn the funnel instead, whose oracle is known.
2. Conflicting tasks: AUC, and whether shared bottom < mmoe <= ple holds, as paired differences by seed.

Results are appended to --runs as they come and not repeated: interrupt at will.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from scipy.stats import t as student

from torchrec_mtl.config.load import dump, parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.oracle import TASKS, Relation, make_oracle_config, make_oracle_table, oracle_auc
from torchrec_mtl.model import build_model
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train

FIELDS, BATCH_SIZE, EPOCHS = 8, 512, 2
SPARSE_RATE, DENSE_RATE = 0.05, 0.02
TRAIN: dict[Relation, int] = {"independent": 300_000, "funnel": 300_000, "conflicting": 200_000}
SCORED = {"validation": 50_000, "test": 100_000}
NEAR = 0.01
# Widths that make about 5,700 parameters each, on 8 fields of width 8 and 5 dense columns.
MODELS: dict[str, dict[str, Any]] = {
    "single_task": {"tower": [32, 16]},
    "shared_bottom": {"shared": [55], "tower": [16]},
    "mmoe": {"experts": 4, "expert": [16], "tower": [16]},
    "ple": {"shared_experts": 3, "task_experts": 1, "levels": [[13]], "tower": [16]},
    "stem": {"shared_experts": 2, "task_experts": 1, "expert": [16], "tower": [16]},
    "pepnet": {"prior": ["f0"], "tower": [15, 16], "gate": 8},
    "home": {"meta": [13], "expert": [16], "tower": [16], "rank": 4},
    "adatt": {"levels": [[16]], "task_experts": 1, "shared_experts": 2, "tower": [16]},
    "dbmtl": {"shared": [47], "task": [16], "relation": [16]},
    "htlnet": {"tower": [18, 16]},
    "ncs4cvr": {"shared": [55, 32]},
    # What of it is due to the masks.
    "ncs4cvr full": {"type": "ncs4cvr", "masks": "dense", "shared": [55, 32]},
    "ncs4cvr one": {"type": "ncs4cvr", "masks": "one", "shared": [55, 32]},
    "ncs4cvr random": {"type": "ncs4cvr", "masks": "random", "shared": [55, 32]},
    "esmm": {"tower": [32, 16]},
    "escm2": {"tower": [32, 16]},
    "aitm": {"tower": [26, 16]},
}
# With connections to spare, as lottery tickets are drawn from, at a rate they can take; run only where named.
WIDE_RATE = 0.002
WIDE: dict[str, dict[str, Any]] = {
    "ncs4cvr wide": {"type": "ncs4cvr", "shared": [256, 128, 64]},
    "ncs4cvr wide full": {"type": "ncs4cvr", "masks": "dense", "shared": [256, 128, 64]},
    "ncs4cvr wide random": {"type": "ncs4cvr", "masks": "random", "shared": [256, 128, 64]},
}
FUNNEL_ONLY = ("esmm", "escm2", "aitm")  # the product of probabilities and the calibrator take a buy to imply a click
ORDER = (("mmoe", "shared_bottom"), ("ple", "mmoe"))
Result = dict[str, Any]
Tasks = Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        relation: of the tasks, which names the data.
        model: name of the head.
        seed: of initial values and order.
    """

    relation: Relation
    model: str
    seed: int


def make_config(job: Job, folder: str, run_dir: str) -> RunConfig:
    """Return the config of a job on the data in a folder."""
    files = {split: f"{folder}/{job.relation}-{split}.parquet" for split in ("train", *SCORED)}
    raw = make_oracle_config(files["train"], run_dir=run_dir, num_fields=FIELDS, batch_size=BATCH_SIZE)
    raw["data"] |= {"eval": files["validation"], "test": files["test"]}
    raw["head"] = {"type": job.model, **(MODELS | WIDE)[job.model]}
    raw["train"] = {"epochs": EPOCHS, "seed": job.seed, "device": "cpu"}
    dense = {"lr": WIDE_RATE if job.model in WIDE else DENSE_RATE}
    raw["optim"] = {"sparse": {"lr": SPARSE_RATE}, "dense": dense, "schedule": {"type": "cosine"}}
    return parse(raw)


def num_parameters(model: str) -> tuple[int, int]:
    """Return a model's parameters above the tables, and in them."""
    built = build_model(make_config(Job("independent", model, 0), "data", "run"), {})
    return sum(p.numel() for p in built.objective.parameters()), sum(p.numel() for p in built.embeddings.parameters())


def relations(model: str) -> tuple[Relation, ...]:
    """Return the data that a model learns."""
    return ("funnel",) if model in FUNNEL_ONLY else ("independent", "conflicting")


def run_job(job: Job, folder: str) -> Result:
    """Train and score, in a process of its own."""
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as run_dir, process_group("cpu") as device:
        result = train(make_config(job, folder, f"{run_dir}/run"), device, console=Console(file=io.StringIO()))
    assert result.evaluation is not None, "the config has data.test"
    auc = {task: metrics["auc"] for task, metrics in result.evaluation.tasks.items()}
    return {"auc": auc, "seconds": round(time.monotonic() - start, 1)}


class Oracle:
    """The data in a folder, and the AUC of their true probabilities."""

    def __init__(self, folder: str, needed: Sequence[Relation]) -> None:
        self.folder = folder
        self.auc: dict[str, dict[str, Tasks]] = {}
        for relation in needed:
            self.auc[relation] = {}
            for seed, (split, num_rows) in enumerate({"train": TRAIN[relation], **SCORED}.items()):
                table = make_oracle_table(num_rows, seed=seed, num_fields=FIELDS, relation=relation)
                pq.write_table(table, f"{folder}/{relation}-{split}.parquet")
                self.auc[relation][split] = {task: oracle_auc(table, task) for task in TASKS}


class Log:
    """Results by job, appended to a file; a result counts only under the same config and the same data."""

    def __init__(self, path: Path, oracle: Oracle) -> None:
        self.path, self.oracle = path, oracle
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def key(self, job: Job) -> Result:
        """Return what a result is found by."""
        # The probabilities' AUC tells the data apart, its number of rows included.
        whole = f"{dump(make_config(job, 'data', 'run'))}{self.oracle.auc[job.relation]}"
        return {**asdict(job), "whole": hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()}

    def find(self, job: Job) -> Result | None:
        """Return a job's result, if it is there."""
        key = self.key(job)
        return next((r for r in self.results if {k: r.get(k) for k in key} == key), None)

    def complete(self, jobs: Sequence[Job], processes: int) -> dict[Job, Result]:
        """Return all results; run those that are missing."""
        missing = [job for job in jobs if self.find(job) is None]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(run_job, job, self.oracle.folder): job for job in missing}
            for future in as_completed(futures):
                job = futures[future]
                result = {**self.key(job), **future.result()}
                self.results.append(result)
                with self.path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(f"{job}: {result['auc']}, {result['seconds']} s", file=sys.stderr, flush=True)
        return {job: found for job in jobs if (found := self.find(job)) is not None}


def below(oracle: Tasks, results: Sequence[Result]) -> dict[str, list[float]]:
    """Return by task how far each seed's AUC is below the oracle's."""
    return {task: [oracle[task] - result["auc"][task] for result in results] for task in TASKS}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval, Student's t; nan for one value."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def verdict(differences: Sequence[float]) -> str:
    """Return what paired differences say: "higher", "lower", or "no difference" where the interval holds 0."""
    mean, half = interval(differences)
    if not abs(mean) > half:
        return "no difference"
    return "higher" if mean > 0 else "lower"


def lines(oracle: Oracle, scored: Mapping[tuple[Relation, str], Sequence[Result]]) -> Iterator[str]:
    """Yield the report; ``scored`` has the test results of each data set and model, in order of seeds."""
    for relation in ("independent", "funnel", "conflicting"):
        models = [model for known, model in scored if known == relation]
        if models:
            yield from _table(relation, oracle.auc[relation]["test"], {m: scored[relation, m] for m in models})
    found = {model: results for (relation, model), results in scored.items() if relation == "conflicting"}
    for one, other in ORDER:
        if one in found and other in found:
            yield from _comparison(one, other, found[one], found[other])
    if {model for pair in ORDER for model in pair} <= set(found):
        yield f"shared bottom < mmoe <= ple: {order(*(_mean_differences(found[a], found[b]) for a, b in ORDER))}"


def order(mmoe: Sequence[float], ple: Sequence[float]) -> str:
    """Return whether the order holds, from the differences mmoe - shared bottom and ple - mmoe by seed."""
    gating, splitting = verdict(mmoe), verdict(ple)
    if gating == "higher" and splitting != "lower":
        return "holds" if splitting == "higher" else "holds; ple and mmoe differ by less than their interval"
    return f"does NOT hold: mmoe against shared bottom: {gating}; ple against mmoe: {splitting}"


def _table(relation: str, oracle: Tasks, results: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Yield one data set's table: each model's AUC and how far it is below the oracle's."""
    truth = ", ".join(f"{task} {oracle[task]:.4f}" for task in TASKS)
    yield f"\n### {relation} tasks\n\nAUC of the oracle: {truth}\n"
    columns = [column for task in TASKS for column in (f"{task} auc", "below the oracle", f"within {NEAR}")]
    yield "| model | parameters | in tables | " + " | ".join(columns) + " | seconds |"
    yield "| --- " * (len(columns) + 4) + "|"
    for model, runs in results.items():
        gaps, cells = below(oracle, runs), []
        for task in TASKS:
            near = "yes" if np.mean(gaps[task]) <= NEAR else "NO"
            cells += [_cell([run["auc"][task] for run in runs]), _cell(gaps[task]), near]
        above, tables = num_parameters(model)
        seconds = f"{np.median([run['seconds'] for run in runs]):.0f}"
        cells = [model, f"{above}", f"{tables}", *cells, seconds]
        yield "| " + " | ".join(cells) + " |"


def _comparison(one: str, other: str, first: Sequence[Result], second: Sequence[Result]) -> Iterator[str]:
    """Yield the paired differences of two models on the conflicting tasks."""
    by_task = {task: [a["auc"][task] - b["auc"][task] for a, b in zip(first, second, strict=True)] for task in TASKS}
    by_task["mean of both"] = _mean_differences(first, second)
    cells = [f"{name} {_cell(values, sign='+')} ({verdict(values)})" for name, values in by_task.items()]
    yield f"\n{one} minus {other}: " + ", ".join(cells)


def _mean_differences(first: Sequence[Result], second: Sequence[Result]) -> list[float]:
    """Return by seed the first model's mean AUC over the tasks minus the second's."""
    means = [[float(np.mean(list(result["auc"].values()))) for result in results] for results in (first, second)]
    return [a - b for a, b in zip(*means, strict=True)]


def _cell(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.4f}" if np.isnan(half) else f"{mean:{sign}.4f} ± {half:.4f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *WIDE], default=list(MODELS))
    parser.add_argument("--relations", nargs="+", choices=["independent", "funnel", "conflicting"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/oracle.jsonl"))
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec"))
    print(f"seeds {options.seeds}; Python {platform.python_version()}, {versions}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, {options.processes} processes of one thread")
    pairs = [(r, m) for m in options.models for r in relations(m) if not options.relations or r in options.relations]
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(folder, list(dict.fromkeys(relation for relation, _ in pairs)))
        log = Log(options.runs, oracle)
        jobs = [Job(*pair, seed) for seed in options.seeds for pair in pairs]
        found = log.complete(jobs, options.processes)
    for line in lines(oracle, {pair: [found[Job(*pair, seed)] for seed in options.seeds] for pair in pairs}):
        print(line)


if __name__ == "__main__":
    main()
