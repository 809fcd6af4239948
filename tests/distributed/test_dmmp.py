"""DMMP on two ranks equals one process: towers, teacher, in-batch negatives of all ranks, items drawn, a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.retrieval_runs import HEAD, impressions, make_files, retrieval_config
from tests.runs import BATCH, differences, saved, train_ranks, write

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CASES: dict[str, dict[str, Any]] = {
    "in-batch negatives, gradnorm": {"head": {**HEAD, "in_batch_weight": 0.5}, "gradient": {"type": "gradnorm"}},
    "one rank's last batch is full": {"head": {**HEAD, "in_batch_weight": 0.5}, "rows": 3 * BATCH - 1},
    "items drawn": {
        "head": {**HEAD, "in_batch_weight": 0.5, "norm": "batch"},
        "negatives": {"uniform": 16, "popular": 8, "hard": 8},
    },
    "user towers, two stages": {"head": {**HEAD, "layout": "user_per_task", "training": "two_stage", "norm": "batch"}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_files(tmp_path_factory.mktemp("data"))


def config(files: dict[str, str], run_dir: Path, **sections: Any) -> dict[str, Any]:
    """A run, with items drawn where the case says how many."""
    negatives, rows = sections.pop("negatives", None), sections.pop("rows", None)
    if rows is not None:
        files = files | {"train": write(run_dir.parent / "train.parquet", impressions(rows, 3), row_group=50)}
    found = retrieval_config(files, run_dir, **sections)
    if negatives is not None:
        found["retrieval"]["negatives"] = {**negatives, "found": files["found"]}
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(files: dict[str, str], tmp_path: Path, case: str) -> None:
    results = [train_ranks(config(files, tmp_path / str(n), **dict(CASES[case])), n) for n in (1, 2)]
    one, two = (saved(tmp_path / str(n)) for n in (1, 2))
    found = differences(one, two)
    print(f"{case}: {found}")
    assert all(torch.isfinite(value).all() for value in one.values())
    assert max(found.values()) < 1e-5  # batch norm adds its rounding
    metrics = [result.evaluation.tasks for result in results if result.evaluation is not None]
    for task in ("click", "long_view"):
        assert metrics[0][task]["recall@3"] > 0
        assert metrics[1][task] == pytest.approx(metrics[0][task], abs=1e-5)
