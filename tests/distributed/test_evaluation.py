"""Metrics of 2 ranks are those of one process: predictions are gathered, not averaged rank by rank."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import raw_config, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.evaluation import Evaluation
from torchrec_mtl.training.session import open_session

pytestmark = pytest.mark.distributed


def test_evaluation_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    # Few users, so that groups reach over both ranks; 1,001 rows, so that the last batch is padded.
    file = write(tmp_path / "data.parquet", make_table(1_001, seed=5, num_users=20, nulls=True))
    raw = raw_config(file, tmp_path / "run", data={"eval": file, "group": "item_id"})
    (one,), two = run_ranks(evaluate, 1, raw), run_ranks(evaluate, 2, raw)
    assert two[0] == two[1]
    found = {
        f"{task}/{name}": abs(value - two[0].tasks[task][name])
        for task, metrics in one.tasks.items()
        for name, value in metrics.items()
    }
    assert not any(math.isnan(value) for value in found.values())
    assert "click/gauc" in found
    print(
        f"largest difference of {len(found)} metrics: {max(found.values()):.1e} ({max(found, key=found.__getitem__)})"
    )
    assert max(found.values()) < 1e-12
    assert one.loss == pytest.approx(two[0].loss, abs=1e-12)


def evaluate(raw: dict[str, Any]) -> Evaluation:
    """Runs in a rank."""
    config = parse(raw)
    files = open_data(config)
    statistics = collect(files.train, config.data, config.features, config.tasks)
    session = open_session(config, statistics, torch.device("cpu"))
    assert files.eval is not None
    return session.evaluate(files.eval)
