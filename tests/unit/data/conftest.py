"""Configs and files small enough to reason about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from tests.parquet import write_groups
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.synthetic import make_config, make_table

settings.register_profile("data", deadline=None, derandomize=True)
settings.load_profile("data")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table or a mapping of columns as Parquet, in row groups of the given sizes."""

    def write_file(name: str, columns: Any, groups: Sequence[int] | None = None) -> Path:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        return write_groups(tmp_path / name, table, groups or ())

    return write_file


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """Build the synthetic run config with sections changed: data={...}, features={...}, tasks=[...]."""

    def build(**sections: Any) -> RunConfig:
        base = make_config("train.parquet", run_dir="runs/test")
        base["data"] |= sections.pop("data", {})
        return RunConfig.model_validate(base | sections)

    return build


@pytest.fixture(scope="session")
def planted() -> pa.Table:
    """3,000 rows with nulls."""
    return make_table(3000, seed=1, nulls=True)


@pytest.fixture
def numbered(config: Callable[..., RunConfig]) -> Callable[..., Any]:
    """Build (config, table) of rows that carry their own number: as an id, a list, a dense value, a label, a group."""

    def build(num_rows: int) -> tuple[RunConfig, pa.Table]:
        run = config(
            data={"group": "number"},
            features={
                "tables": [{"name": "t", "rows": 100_000, "dim": 4}, {"name": "s", "rows": 100_000, "dim": 4}],
                "sparse": [{"name": "number", "table": "t"}],
                "sequences": [{"name": "list", "table": "s", "max_length": 3}],
                "dense": [{"name": "value", "normalize": False}],
            },
            tasks=[{"name": "task", "kind": "regression", "label": "value", "loss": {"type": "mse"}}],
        )
        number = np.arange(num_rows)
        lists = [[n] * (n % 4) for n in number.tolist()]
        table = pa.table(
            {"number": number, "list": pa.array(lists, pa.list_(pa.int64())), "value": number.astype(np.float64)}
        )
        return run, table

    return build
