"""What the planner may choose from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import raw_config
from torchrec_mtl.config.load import parse
from torchrec_mtl.training.sharding import table_constraints


def types(run_dir: Path, sparse: str, device: str = "cpu", **table: Any) -> list[str]:
    raw = raw_config("train.parquet", run_dir, optim={"sparse": {"type": sparse}})
    raw["features"]["tables"][0] |= table
    constraints = table_constraints(parse(raw), torch.device(device))
    assert set(constraints) == {"user", "item", "tag"}
    found = constraints["user"].sharding_types
    assert found is not None
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_state_a_row_is_never_cut_into_columns_unasked(tmp_path: Path, device: str) -> None:
    assert not [name for name in types(tmp_path, "rowwise_adagrad", device) if "column" in name]
    assert "column_wise" in types(tmp_path, "adagrad", device)


def test_row_wise_sharding_is_for_cuda(tmp_path: Path) -> None:
    assert "row_wise" not in types(tmp_path, "sgd", "cpu")
    assert "row_wise" in types(tmp_path, "sgd", "cuda")


def test_no_table_is_data_parallel_which_has_no_fused_optimizer(tmp_path: Path) -> None:
    assert "data_parallel" not in types(tmp_path, "sgd", "cpu") + types(tmp_path, "sgd", "cuda")


def test_a_table_can_name_its_types(tmp_path: Path) -> None:
    assert types(tmp_path, "rowwise_adagrad", sharding=["column_wise"]) == ["column_wise"]
