"""What is measured: a model on generated rows, in a session as users run it, fed with batches held in memory.

20 fields of one id, 5 dense columns, and labels of ``data.oracle``; ids are drawn anew, uniformly over the rows of
their table, so that none is looked up again soon: the worst case for the caches. Tasks beyond two repeat the labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.oracle import TASKS, make_oracle_config, make_oracle_table
from torchrec_mtl.data.statistics import DenseStatistics, LabelStatistics, Statistics
from torchrec_mtl.training.session import Session, open_session

FIELDS, DENSE, DIM = 20, 5, 16
HEADS: dict[str, dict[str, Any]] = {
    "mmoe": {"type": "mmoe", "experts": 4, "expert": [128, 64], "tower": [64], "norm": "batch"},
    "shared_bottom": {"type": "shared_bottom", "norm": "batch"},
    "pepnet": {"type": "pepnet", "prior": ["f0", "f1"]},
}
"""Options of the heads that are measured with others than their defaults."""


@dataclass(frozen=True)
class Workload:
    """A model and its batches.

    Attributes:
        head: its type.
        rows: of each table.
        tables: number of tables; the fields take turns.
        tasks: number of tasks.
        batch: rows of a global batch.
        seed: of data and weights.
        train: Parquet file, where one is read.
        run_dir: where a run writes.
        norm: of the head; None: as in `HEADS`.
    """

    head: str = "mmoe"
    rows: int = 10_000
    tables: int = FIELDS
    tasks: int = 2
    batch: int = 2048
    seed: int = 0
    train: str = "none.parquet"
    run_dir: str = "none"
    norm: str | None = None

    def config(self, **train: object) -> RunConfig:
        """Return the run; ``train`` is the config's section."""
        raw = make_oracle_config(
            self.train, run_dir=self.run_dir, rows_per_field=self.rows, num_fields=FIELDS, num_dense=DENSE, dim=DIM
        )
        raw["data"]["batch_size"] = self.batch
        features = raw["features"]
        features["tables"] = features["tables"][: self.tables]
        features["sparse"] = [{"name": f"f{i}", "table": f"f{i % self.tables}"} for i in range(FIELDS)]
        raw["tasks"] = [{"name": name, "kind": "binary", "label": name} for name in self.task_names]
        raw["head"] = HEADS.get(self.head, {"type": self.head}) | ({} if self.norm is None else {"norm": self.norm})
        return parse({**raw, "train": {"seed": self.seed, **train}})

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, and of the columns of their labels."""
        return (*TASKS, *(f"{TASKS[k % len(TASKS)]}{k}" for k in range(len(TASKS), self.tasks)))[: self.tasks]

    def table(self, num_rows: int) -> pa.Table:
        """Draw rows."""
        table = make_oracle_table(num_rows, seed=self.seed, num_fields=FIELDS, num_dense=DENSE)
        draw = np.random.default_rng([self.seed, num_rows, self.rows])
        for field in range(FIELDS):
            ids = pa.array(draw.integers(0, self.rows, num_rows))
            table = table.set_column(field, f"f{field}", ids)
        for k, name in enumerate(self.task_names[len(TASKS) :]):
            table = table.append_column(name, table.column(TASKS[k % len(TASKS)]))
        return table

    def open(self, device: torch.device) -> Session:
        """Build, shard, and fuse."""
        dense = {f"d{i}": DenseStatistics(mean=0.0, std=1.0, nulls=0) for i in range(DENSE)}
        labels = {
            name: LabelStatistics(rows=1, weight=1.0, mean=0.5, std=0.5, positive_rate=0.5) for name in self.task_names
        }
        return open_session(self.config(), Statistics(rows=1, dense=dense, labels=labels, features={}), device)

    def batches(self, session: Session, count: int) -> list[Batch]:
        """Encode this rank's share of batches, as the reader would."""
        rows = session.encoder.encode(self.table(count * self.batch), "generated")
        share = self.batch // world_size()
        slots = np.arange(rank() * share, (rank() + 1) * share)
        starts = [step * self.batch + int(slots[0]) for step in range(count)]
        return [
            session.encoder.batch(rows.slice(start, start + share), slots=slots, step=step, global_size=self.batch)
            for step, start in enumerate(starts)
        ]


def train_on(session: Session, batches: Sequence[Batch]) -> float:
    """Train on the batches; return the seconds."""
    start = time.perf_counter()
    for _ in session.run(iter(batches)):
        pass
    return time.perf_counter() - start


def stepper(session: Session, batches: Sequence[Batch]) -> Callable[[], float]:
    """Return a function that trains on the batches and returns the milliseconds of a step."""
    return lambda: train_on(session, batches) / len(batches) * 1000
