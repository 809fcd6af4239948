"""What the report reads is the same of 2 ranks and of one process, and says what each rank held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import well_formed
from tests.runs import SGD, raw_config, train_ranks, with_plan, write
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.findings import MatrixFinding
from torchrec_mtl.report_page.run import page_of
from torchrec_mtl.training.calibration import load_calibration
from torchrec_mtl.training.findings import load_findings
from torchrec_mtl.training.ranks_file import load_ranks

pytestmark = pytest.mark.distributed

OPTIM = {"sparse": {"type": "adagrad", "lr": 0.05}, "dense": SGD["dense"]}
MMOE = {"type": "mmoe", "experts": 3, "expert": [8], "tower": [4]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training on one rank and on two; 1,001 rows to evaluate, so that the last batch is padded."""
    folder = tmp_path_factory.mktemp("ranks")
    train = write(folder / "train.parquet", make_table(640, seed=1))
    test = write(folder / "test.parquet", make_table(1_001, seed=5, num_users=20, nulls=True))
    sections: dict[str, Any] = {"head": MMOE, "gradient": {"type": "sum"}, "optim": OPTIM}
    for ranks in (1, 2):
        raw = raw_config(train, folder / str(ranks), data={"test": test, "group": "item_id"}, **sections)
        train_ranks(with_plan(raw, "column_wise"), ranks)
    return folder / "1", folder / "2"


def test_groups_of_rows_do_not_depend_on_the_ranks(runs: tuple[Path, Path]) -> None:
    one, two = (load_calibration(run / "calibration.json") for run in runs)
    assert (one.step, one.split, one.tasks.keys()) == (two.step, two.split, two.tasks.keys())
    for task, groups in one.tasks.items():
        assert len(groups) == 10
        assert [g.rows for g in groups] == [g.rows for g in two.tasks[task]]
        found, other = (np.array([[g.prediction, g.label] for g in gs]) for gs in (groups, two.tasks[task]))
        assert found[:, 0] == pytest.approx(other[:, 0], rel=1e-5)
        # Training rounds differently on 2 ranks, and so two rows may change places.
        assert found[:, 1] == pytest.approx(other[:, 1], abs=0.1 * max(1.0, float(found[:, 1].max())))


def test_gates_do_not_depend_on_the_ranks(runs: tuple[Path, Path]) -> None:
    (one,), (two,) = (load_findings(run / "findings.json") for run in runs)
    assert isinstance(one, MatrixFinding)
    assert isinstance(two, MatrixFinding)
    assert (one.title, one.rows, one.columns) == (two.title, two.rows, two.columns)
    assert np.array(one.values) == pytest.approx(np.array(two.values), abs=1e-5)


def test_parts_of_tables_add_up_to_the_tables(runs: tuple[Path, Path]) -> None:
    one, two = (load_ranks(run / "ranks.json") for run in runs)
    assert [memory.rank for memory in two] == [0, 1]
    assert one[0].tables == sum(memory.tables for memory in two)
    assert one[0].tables == 4 * 256 * sum({part.table: part.rows for part in one[0].parts}.values())
    assert all(part.columns == 128 for memory in two for part in memory.parts)
    assert {part.sharding for memory in two for part in memory.parts} == {"column_wise"}
    assert one[0].dense == two[0].dense == two[1].dense > 0
    assert all(memory.table_state == memory.tables for memory in two)  # Adagrad: a number a weight
    assert all(memory.dense_state == 0 for memory in two)  # SGD: none
    assert all(memory.peak_host > memory.tables and memory.peak_device is None for memory in two)


def test_the_page_shows_both_ranks(runs: tuple[Path, Path]) -> None:
    page = well_formed(page_of(runs[1]))
    assert {"rank 0", "rank 1", "Use of experts", "Calibration and lift"} <= set(page.texts)
