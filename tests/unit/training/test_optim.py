"""Schedules as functions of the step, and optimizers that take them, against a few explicit lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor

from tests.runs import open_run, raw_config, write
from torchrec_mtl.config.training import ScheduleConfig, SparseOptimConfig
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.optim import fuse_sparse_optimizer, schedule_factor
from torchrec_mtl.training.session import Session, take


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "train.parquet", make_table(64 * 4, seed=1))


def factors(total: int, **schedule: Any) -> list[float]:
    return [schedule_factor(ScheduleConfig(**schedule), step, total) for step in range(total)]


def test_constant_is_one_after_a_linear_warm_up() -> None:
    assert factors(10, warmup=0.4) == [0.25, 0.5, 0.75, 1.0, *[1.0] * 6]
    assert factors(3) == [1.0] * 3


def test_cosine_goes_from_one_to_its_end() -> None:
    found = factors(101, type="cosine", end=0.1)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.55)
    assert found[100] == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)


def test_cosine_starts_where_the_warm_up_ends() -> None:
    found = factors(100, type="cosine", warmup=0.1)
    assert found[9] == found[10] == 1.0
    assert found[99] == pytest.approx(0.0, abs=1e-12)
    assert factors(1, type="cosine", warmup=1.0) == [1.0]


def test_step_multiplies_again_and_again() -> None:
    found = factors(10, type="step", every=0.3, factor=0.5)
    assert found == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125])


def test_every_factor_is_finite_and_not_negative() -> None:
    for kind in ("constant", "cosine", "step"):
        for total in (1, 2, 7):
            for warmup in (0.0, 0.5, 1.0):
                assert all(math.isfinite(f) and f >= 0 for f in factors(total, type=kind, warmup=warmup))


def weights(session: Session) -> dict[str, Tensor]:
    """All weights of a session of one rank."""
    found = {}
    for key, value in session.model.state_dict().items():
        tensor = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
        found[key] = tensor.detach().clone()
    return found


def step_with(raw: dict[str, Any], factor: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after one step at a factor on the learning rates, in a session of its own."""
    session, files = open_run(raw)
    batches = session.reader(files.train, train=True).epoch(0)
    session.optimizers.set_factor(factor)
    before = weights(session)
    assert len(list(session.run(take(batches, 1)))) == 1
    return before, weights(session)


def test_the_factor_scales_the_steps_of_tables_and_dense_part(train_file: str, tmp_path: Path) -> None:
    raw = raw_config(train_file, tmp_path, head={"type": "shared_bottom", "shared": [8], "tower": [4]})
    raw["gradient"] = {"type": "sum"}
    before, whole = step_with(raw, 1.0)
    _, half = step_with(raw, 0.5)
    _, none = step_with(raw, 0.0)
    for kind in ("embeddings.ebc", "embeddings.ec", "objective.head"):
        keys = [key for key in before if key.startswith(kind)]
        assert max(float((whole[key] - before[key]).abs().max()) for key in keys) > 1e-5
        for key in keys:
            torch.testing.assert_close(half[key] - before[key], 0.5 * (whole[key] - before[key]), rtol=0, atol=1e-7)
            assert torch.equal(none[key], before[key])


@pytest.mark.parametrize("dense", ["adam", "adamw", "adagrad", "sgd"])
def test_dense_state_exists_as_zeros_and_nothing_moved(train_file: str, tmp_path: Path, dense: str) -> None:
    optim = {"sparse": {"type": "sgd"}, "dense": {"type": dense, "lr": 0.1, "weight_decay": 0.1}}
    raw = raw_config(train_file, tmp_path, optim=optim)
    session, _ = open_run(raw)
    plain, _ = open_run(raw_config(train_file, tmp_path))
    state = {k: v for k, v in session.optimizers.state_dict()["state"].items() if k.startswith("objective.")}
    assert {name for s in state.values() for name in s} == {
        "adam": {"step", "exp_avg", "exp_avg_sq"},
        "adamw": {"step", "exp_avg", "exp_avg_sq"},
        "adagrad": {"step", "sum"},
        "sgd": set(),
    }[dense]
    assert all(not bool(value.any()) for s in state.values() for value in s.values())
    assert all(torch.equal(value, weights(plain)[key]) for key, value in weights(session).items())
    assert all(p.grad is None for p in session.model.parameters())


def test_the_dense_gradient_norm_is_clipped(train_file: str, tmp_path: Path) -> None:
    lr, largest = 0.5, 0.01
    optim = {"sparse": {"type": "sgd", "lr": lr}, "dense": {"type": "sgd", "lr": lr}}
    free_before, free = step_with(raw_config(train_file, tmp_path, optim=optim), 1.0)
    optim["dense"]["clip_norm"] = largest
    before, clipped = step_with(raw_config(train_file, tmp_path, optim=optim), 1.0)
    trained = [key for key in before if key.startswith("objective.head") and "running_" not in key and key != "tau"]

    def norm(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((a[key] - b[key]).double().square().sum()) for key in trained)) / lr

    assert norm(free, free_before) > 10 * largest
    assert norm(clipped, before) == pytest.approx(largest, rel=1e-3)
    for key in before:  # the tables are not clipped
        if key.startswith("embeddings"):
            assert torch.equal(clipped[key], free[key])


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
def test_a_weight_decay_that_fbgemm_would_ignore_is_refused(kind: Any) -> None:
    table = torch.nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=f"optim.sparse.weight_decay: FBGEMM's {kind} on cpu"):
        fuse_sparse_optimizer([table], SparseOptimConfig(type=kind, weight_decay=0.1), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
def test_the_step_reaches_every_fused_kernel(train_file: str, tmp_path: Path, kind: str) -> None:
    session, _ = open_run(raw_config(train_file, tmp_path, optim={"sparse": {"type": kind}}))
    # TorchRec keeps its lookups in plain lists.
    lookups = [lookup for m in session.model.modules() for lookup in getattr(m, "_lookups", ())]
    parts = [m for lookup in lookups for m in lookup.modules()]
    kernels = [m for m in parts if isinstance(m, SplitTableBatchedEmbeddingBagsCodegen)]
    assert len(kernels) == 2  # of pooled features and of sequences
    session.optimizers.set_step(7)
    assert [int(kernel.iter[0]) for kernel in kernels] == [7, 7]
