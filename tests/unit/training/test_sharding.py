"""What the planner may choose from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import DataType

from tests.runs import raw_config
from torchrec_mtl.config.load import parse
from torchrec_mtl.training.constraints import table_constraints


def constraints_of(run_dir: Path, *, pipeline: str = "auto", **table: Any) -> ParameterConstraints:
    raw = raw_config("train.parquet", run_dir, train={"device": "cuda", "pipeline": pipeline})
    raw["features"]["tables"][0] |= table
    return table_constraints(parse(raw), torch.device("cuda"))["user"]


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


def test_a_table_can_name_its_kernel_and_its_cache(tmp_path: Path) -> None:
    found = constraints_of(tmp_path, kernel="fused_uvm_caching", cache_load_factor=0.1)
    assert (found.compute_kernels, found.cache_params) == (["fused_uvm_caching"], CacheParams(load_factor=0.1))
    found = constraints_of(tmp_path)
    assert (found.compute_kernels, found.cache_params, found.output_dtype) == (None, None, None)


def test_a_cache_is_told_that_it_is_filled_ahead(tmp_path: Path) -> None:
    found = constraints_of(tmp_path, pipeline="prefetch_sparse_dist", cache_load_factor=0.1)
    assert found.cache_params == CacheParams(load_factor=0.1, prefetch_pipeline=True)


def test_what_is_looked_up_in_fp16_is_fp32(tmp_path: Path) -> None:
    assert constraints_of(tmp_path, dtype="fp16").output_dtype == DataType.FP32
