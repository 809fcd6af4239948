"""What tests that train share: small planted data, runs in gloo ranks, and their checkpoints as plain tensors."""

from __future__ import annotations

import io
import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich.console import Console
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.splits import Files, open_data
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.heads.base import Head, Phase
from torchrec_mtl.heads.htlnet import HTLNet
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints, TensorReader
from torchrec_mtl.training.run import RunResult, train
from torchrec_mtl.training.session import Session, open_session
from torchrec_mtl.training.trainer import InterruptedTrainingError

BATCH, STREAMS = 64, 8
SGD = {"sparse": {"type": "sgd", "lr": 0.05}, "dense": {"type": "sgd", "lr": 0.05}}
ADAPTIVE = {"sparse": {"type": "rowwise_adagrad", "lr": 0.02}, "dense": {"type": "adam", "lr": 0.01}}
HTLNET = {"type": "htlnet", "tower": [16, 8], "norm": "batch"}
RULE = {"type": "htlnet", "core": "watch_time", "gamma": 0.3}


def write(path: Path, table: pa.Table, row_group: int = 150) -> str:
    pq.write_table(table, path, row_group_size=row_group)
    return str(path)


def raw_config(train_file: str, run_dir: Path, *, space: bool = True, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The planted config with HTLNet, its rule, and SGD; ``sections`` are merged key by key, plug-ins replaced."""
    raw = make_config(train_file, run_dir=str(run_dir), space=space)
    raw |= {"head": HTLNET, "gradient": RULE, "optim": SGD}
    for name, section in sections.items():
        replaced = name in {"head", "gradient", "bottom", "tasks"}
        raw[name] = section if replaced else {**raw.get(name, {}), **section}
    return raw


def with_plan(raw: dict[str, Any], sharding: str) -> dict[str, Any]:
    """All tables sharded one way, and wide enough for the planner to cut them into two columns."""
    tables = [{**table, "dim": 256, "sharding": [sharding]} for table in raw["features"]["tables"]]
    return {**raw, "features": {**raw["features"], "tables": tables}}


def train_one(raw: Mapping[str, Any]) -> RunResult:
    """Runs in a rank."""
    return train(parse(raw), torch.device("cpu"), console=Console(file=io.StringIO()))


def train_ranks(raw: Mapping[str, Any], world_size: int) -> RunResult:
    """Train in ranks; return what rank 0 found."""
    return run_ranks(train_one, world_size, raw)[0]


def saved(run_dir: str | Path, which: str = "latest") -> dict[str, Tensor]:
    """Whole tensors of the latest, best, or named checkpoint, whatever its ranks and plan; RNG states left out."""
    checkpoints = Checkpoints(run_dir)
    path = str(checkpoints.folder / checkpoints.index().get(which, which))
    stored = TensorReader(path).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(meta.size, dtype=meta.properties.dtype)
        for key, meta in stored.items()
        if isinstance(meta, TensorStorageMetadata) and not key.startswith("rng.")
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.load(tensors, storage_reader=TensorReader(path), no_dist=True)
    return tensors


def differences(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest difference by kind of tensor; the keys must be the same."""
    assert a.keys() == b.keys()
    found: dict[str, float] = {}
    for key, value in a.items():
        assert value.shape == b[key].shape, key
        difference = float((value.double() - b[key].double()).abs().max()) if value.numel() else 0.0
        kind = _kind(key)
        found[kind] = max(found.get(kind, 0.0), difference)
    return found


def _kind(key: str) -> str:
    if key.startswith("optim."):
        return "table state" if ".embeddings.e" in key else "dense state"
    if "running_" in key:
        return "running norms"
    return "tables" if key.startswith("model.embeddings.") else "dense"


def assert_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    unequal = [key for key, value in a.items() if not torch.equal(value, b[key])]
    assert not unequal


def rows_of(num_rows: int, step: int, *, rank: int | None = None) -> np.ndarray[Any, Any]:
    """Rows that 2 ranks read at a step without shuffling (None: both); see ``torchrec_mtl.data.order``."""
    width = BATCH // STREAMS
    streams = [s for s in range(STREAMS) if rank is None or s % 2 == rank]
    return np.concatenate([np.arange(width) + s * num_rows // STREAMS + step * width for s in streams])


def with_values(table: pa.Table, column: str, rows: np.ndarray[Any, Any], value: object) -> pa.Table:
    """Set a column in some rows."""
    mask = np.zeros(table.num_rows, bool)
    mask[rows] = True
    old = table.column(column).combine_chunks()
    new = pa.array([value if m else v for m, v in zip(mask, old.to_pylist())], old.type)
    return table.set_column(table.schema.get_field_index(column), column, new)


class TwoPhases(SharedBottom):
    """A plug-in that trains its first task, then the others."""

    def phases(self, epochs: int) -> Sequence[Phase]:
        first, *others = self.outputs
        return (Phase("first", epochs, (first,)), Phase("second", epochs, tuple(others)))


@contextmanager
def interrupted(step: int, rank: int, head_class: type[Head] = HTLNet) -> Iterator[None]:
    """In a rank: SIGINT reaches one rank while it makes ready for a step (counted from 1)."""
    ready = head_class.set_progress

    def interrupt(head: Head, fraction: float, trained: int) -> None:
        ready(head, fraction, trained)
        if trained == step - 1 and dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGINT)

    with patch.object(head_class, "set_progress", interrupt):
        yield


def train_until(raw: Mapping[str, Any], step: int, rank: int, head_class: type[Head] = HTLNet) -> str:
    """Runs in a rank: one rank is interrupted at a step."""
    with interrupted(step, rank, head_class):
        try:
            train_one(raw)
        except InterruptedTrainingError as error:
            return str(error)
    return "not interrupted"


def open_run(raw: Mapping[str, Any]) -> tuple[Session, Files]:
    """A session in this process, whose group exists, and its data."""
    config = parse(raw)
    files = open_data(config)
    statistics = collect(files.train, config.data, config.features, config.tasks)
    return open_session(config, statistics, torch.device("cpu")), files
