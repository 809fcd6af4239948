"""The ladder: unsharded, sharded by either plan, and 2 ranks give the same weights after 20 steps of SGD."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from tests.runs import (
    ADAPTIVE,
    BATCH,
    HTLNET,
    RULE,
    SGD,
    differences,
    raw_config,
    rows_of,
    saved,
    train_ranks,
    with_plan,
    with_values,
    write,
)
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.training.checkpoint import Checkpoints, TensorReader

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 20
ROWS = STEPS * BATCH - 30  # the last batch is padded
BOUND = 1e-6
IDS = ("user_id", "item_id", "watched", "tags")


def hard_table() -> pa.Table:
    """Nulls everywhere; batches in which rank 1, or everyone, has no row of two tasks, or not a single id."""
    table = make_table(ROWS, seed=1, nulls=True)
    for step, rank in ((3, 1), (5, None)):
        for column in ("click", "long_view", "watch_time"):
            table = with_values(table, column, rows_of(ROWS, step, rank=rank), 0)
    for step, rank in ((7, 1), (9, None)):
        for column in IDS:
            table = with_values(table, column, rows_of(ROWS, step, rank=rank), None)
    return table


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "train.parquet", hard_table())


def hard_config(train_file: str, run_dir: Path, **sections: Any) -> dict[str, Any]:
    return raw_config(train_file, run_dir, data={"shuffle": False}, train={"log_every": 1}, **sections)


def tasks(*, long_view: dict[str, Any] | None = None, watch_time: dict[str, Any] | None = None) -> dict[str, Any]:
    """The planted tasks over all rows, with further keys."""
    found = [
        {"name": "click", "kind": "binary", "label": "click"},
        {"name": "long_view", "kind": "binary", "label": "long_view", **(long_view or {})},
        {"name": "watch_time", "kind": "regression", "label": "watch_time", **(watch_time or {})},
    ]
    return {"tasks": found}


def train_unsharded(raw: dict[str, Any], steps: int = STEPS) -> dict[str, Tensor]:
    """Steps without TorchRec's sharding, pipeline, fused optimizer, or our trainer."""
    config = parse(raw)
    data, files = config.data, open_data(config).train
    statistics = collect(files, data, config.features, config.tasks)
    encoder = Encoder(data, config.features, config.tasks, statistics)
    reader = ParquetReader(
        files, encoder, batch_size=data.batch_size, streams=data.streams, window=data.window, shuffle=data.shuffle
    )
    scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
    model = build_model(config, scales, tables="cpu")
    initialise_tables(model.state_dict(), config.features, config.train.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.dense.lr)
    for batch in islice(reader.epoch(0), steps):
        model.objective.head.set_progress(batch.step / STEPS, batch.step)
        losses, _ = model(batch)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return {f"model.{key}": value for key, value in model.state_dict().items()}


def num_chunks(run_dir: Path, table: str) -> int:
    stored = TensorReader(str(Checkpoints(run_dir).folder / Checkpoints(run_dir).index()["latest"])).read_metadata()
    (chunks,) = (m.chunks for key, m in stored.state_dict_metadata.items() if key.endswith(f".{table}.weight"))
    return len(chunks)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sharding", ["table_wise", "column_wise"])
def test_sharded_equals_unsharded(train_file: str, tmp_path: Path, sharding: str, world_size: int) -> None:
    raw = with_plan(hard_config(train_file, tmp_path), sharding)
    train_ranks(raw, world_size)
    found = differences(train_unsharded(raw), saved(tmp_path))
    moved = differences(train_unsharded(raw, steps=0), saved(tmp_path))
    assert min(moved["tables"], moved["dense"]) > 1e3 * BOUND
    print(f"{sharding} on {world_size}: {found}")
    assert num_chunks(tmp_path, "item") == (2 if sharding == "column_wise" else 1)
    assert max(found.values()) < BOUND


CASES: dict[str, dict[str, Any]] = {
    "htlnet": {},
    "htlnet_at_representation": {"gradient": {**RULE, "at": "representation"}},
    "shared_bottom_per_task_passes": {"head": {"type": "shared_bottom", "shared": [16], "tower": [8], "norm": "batch"}},
    "mmoe": {"head": {"type": "mmoe", "experts": 3, "expert": [16, 8], "tower": [8], "norm": "batch"}},
    "ple": {"head": {"type": "ple", "levels": [[16], [8]], "tower": [8], "norm": "batch"}},
    "ple_one_shared": {"head": {"type": "ple", "shared_experts": 1, "levels": [[16]], "tower": [8]}},
    "esmm": {**tasks(), "head": {"type": "esmm", "tower": [16, 8], "norm": "batch"}},
    "escm2": {**tasks(), "head": {"type": "escm2", "tower": [16, 8], "norm": "batch", "estimator": "dr"}},
    "aitm": {**tasks(), "head": {"type": "aitm", "tower": [16, 8], "norm": "batch"}},
    "dbmtl": {"head": {"type": "dbmtl", "shared": [16], "task": [8], "relation": [8], "norm": "batch"}},
    "stem": {"head": {"type": "stem", "expert": [16, 8], "tower": [8], "norm": "batch"}},
    "pepnet_on_epnet": {
        "bottom": {"type": "epnet", "domain": ["tags"]},
        "head": {"type": "pepnet", "tower": [16, 8], "norm": "batch"},
    },
    "shared_bottom_on_inner_product": {
        "bottom": {"type": "inner_product"},
        "head": {"type": "shared_bottom", "shared": [16], "tower": [8]},
    },
    "mmoe_on_dcn": {
        "bottom": {"type": "dcn", "form": "vector"},
        "head": {"type": "mmoe", "experts": 3, "expert": [16, 8], "tower": [8]},
    },
    "home": {"head": {"type": "home", "meta": [16], "expert": [8], "tower": [8], "rank": 4}},
    "adatt": {"head": {"type": "adatt", "levels": [[16], [8]], "shared_experts": 1, "tower": [8], "norm": "batch"}},
    "single_task": {"head": {"type": "single_task", "tower": [16, 8], "norm": "batch"}, "gradient": {"type": "sum"}},
    "htlnet_with_gradients_up_the_funnel": {"head": {**HTLNET, "stop_gradient_at": "none"}},
    "two_phases": {"head": {"type": "tests.runs:TwoPhases", "shared": [16], "tower": [8]}},
    "adagrad_tables": {"optim": {"sparse": ADAPTIVE["sparse"], "dense": SGD["dense"]}},
    "rows": {"gradient": {**RULE, "exact": "rows"}},
    "gate_and_order": tasks(
        long_view={"order": {"below": "click"}}, watch_time={"gate": "click", "loss": {"type": "gamma"}}
    ),
    "zero_inflated": tasks(watch_time={"loss": {"type": "zero_inflated_lognormal"}}),
    "pcgrad": {"gradient": {"type": "pcgrad"}},
    "gradnorm": {"gradient": {"type": "gradnorm"}},
    "metabalance_rows": {"gradient": {"type": "metabalance", "core": "watch_time", "exact": "rows"}},
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(train_file: str, tmp_path: Path, case: str) -> None:
    for world_size in (1, 2):
        train_ranks(hard_config(train_file, tmp_path / str(world_size), **CASES[case]), world_size)
    one = saved(tmp_path / "1")
    found = differences(one, saved(tmp_path / "2"))
    print(f"{case}: {found}")
    assert all(torch.isfinite(value).all() for value in one.values())
    # Row-wise Adagrad divides by the root of its state, which is small where gradients are.
    assert max(found.values()) < (1e-5 if case == "adagrad_tables" else BOUND)
    assert_same_decisions(tmp_path / "1", tmp_path / "2")


def assert_same_decisions(one: Path, other: Path) -> None:
    """The rule took the same branches, and came to the same weights, at every step."""
    steps = [
        [{k: v for k, v in json.loads(line).items() if k.startswith("train/gradient/")} for line in file]
        for file in ((run_dir / "metrics.jsonl").read_text().splitlines() for run_dir in (one, other))
    ]
    assert len(steps[0]) >= STEPS
    for a, b in zip(*steps, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
        assert {k: v for k, v in a.items() if "conflict/" in k} == {k: v for k, v in b.items() if "conflict/" in k}
