"""Training goes on over other sharding plans and numbers of ranks: the same losses, every row once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tests.runs import BATCH, differences, raw_config, saved, train_one, train_ranks, train_until, with_plan, write
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.testing.ranks import RankError, run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints, TensorReader
from torchrec_mtl.training.trainer import Trainer

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
Raw = dict[str, Any]

STEPS = 9


def losses_by_step(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k == "step" or k.startswith("train/loss/")} for line in lines]


def parts_of_a_table(run_dir: Path) -> int:
    """Into how many parts the plan of the latest checkpoint cut a table."""
    checkpoints = Checkpoints(run_dir)
    stored = TensorReader(str(checkpoints.folder / checkpoints.index()["latest"])).read_metadata().state_dict_metadata
    table = stored["model.embeddings.ebc.embedding_bags.user.weight"]
    assert isinstance(table, TensorStorageMetadata)
    return len(table.chunks)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_training_goes_on_over_plans_in_mid_epoch(tmp_path: Path, optimizer: str) -> None:
    file = write(tmp_path / "train.parquet", make_table(STEPS * BATCH - 20, seed=1, nulls=True))
    optim = {"sparse": {"type": optimizer, "lr": 0.05}, "dense": {"type": "sgd", "lr": 0.05}}
    whole, parts = (
        raw_config(file, tmp_path / name, optim=optim, train={"log_every": 1}) for name in ("whole", "parts")
    )
    train_ranks(with_plan(whole, "table_wise"), 2)
    run_ranks(train_until, 2, with_plan(parts, "table_wise"), 3, 0)
    assert parts_of_a_table(tmp_path / "parts") == 1
    run_ranks(train_until, 2, with_plan(parts, "column_wise"), 6, 1)
    assert parts_of_a_table(tmp_path / "parts") == 2
    train_ranks(with_plan(parts, "table_wise"), 2)

    undisturbed, resharded = losses_by_step(tmp_path / "whole"), losses_by_step(tmp_path / "parts")
    assert [line["step"] for line in undisturbed] == [line["step"] for line in resharded] == [*range(1, STEPS + 1)]
    off = max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-12) for a, b in zip(undisturbed, resharded) for k in a)
    found = differences(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    print(f"{optimizer}, table-wise -> column-wise -> table-wise: losses of {STEPS} steps off by {off:.1e}; {found}")
    assert off < 1e-5
    assert max(found.values()) < 1e-5


EPOCH = 10
PARTS = ((4, 2), (2, 4), (1, 6), (8, None))
"""Ranks, and the step they are stopped at."""


def test_every_row_is_trained_on_once_over_other_numbers_of_ranks(tmp_path: Path) -> None:
    rows = EPOCH * 16 - 5
    table = make_table(rows, seed=1).append_column("row", pa.array(np.arange(rows)))
    raw = raw_config(
        write(tmp_path / "train.parquet", table, row_group=50),
        tmp_path / "run",
        data={"batch_size": 16, "group": "row"},
        head={"type": "shared_bottom", "shared": [4], "tower": [4]},
        gradient={"type": "sum"},
    )
    seen, done = list[int](), 0
    for ranks, stop in PARTS:
        of_ranks = run_ranks(train_and_note, ranks, raw, stop)
        steps = (stop or EPOCH) - done
        assert [len(batches) for batches in of_ranks] == [steps] * ranks
        seen += [row for batches in of_ranks for batch in batches for row in batch]
        done += steps
    assert len(seen) == rows
    assert sorted(seen) == [*range(rows)]
    print(f"{' -> '.join(str(ranks) for ranks, _ in PARTS)} ranks in one epoch: each of {rows} rows trained on once")
    with pytest.raises(RankError, match=r"3 ranks do not divide data\.streams = 8; use 1, 2, 4, 8 ranks"):
        run_ranks(train_and_note, 3, {**raw, "run_dir": str(tmp_path / "three")}, None)


def train_and_note(raw: Raw, stop: int | None) -> list[list[int]]:
    """Runs in a rank: the rows of each batch that it trained on."""
    batches: list[list[int]] = []
    observe = Trainer._observe

    def note(trainer: Trainer, output: StepOutput) -> None:
        batches.append(output.ids["group"][output.weights[:, 0] > 0].tolist())
        observe(trainer, output)

    with patch.object(Trainer, "_observe", note):
        if stop is None:
            train_one(raw)
        else:
            train_until(raw, stop, 0, SharedBottom)
    return batches
