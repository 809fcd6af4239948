"""Predictions of a trained run."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.runs import raw_config, train_ranks, write
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.inference import predict_run


@pytest.mark.distributed
def test_further_predictions_of_a_head_are_columns_too(tmp_path):
    rows = write(tmp_path / "rows.parquet", make_table(300, seed=0))
    raw = raw_config(
        rows,
        tmp_path / "run",
        space=False,
        head={"type": "esmm", "tower": [8]},
        gradient={"type": "sum"},
        data={"keys": ["hour"]},
    )
    train_ranks(raw, 1)
    assert predict_run(tmp_path / "run", [rows], tmp_path / "scores.parquet") == 300
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.column_names == ["hour", "click", "long_view", "watch_time", "long_view_given_click"]
    assert scores["hour"].to_pylist() == pq.read_table(rows)["hour"].to_pylist()
    click, view, given = (scores[name].to_numpy() for name in ("click", "long_view", "long_view_given_click"))
    np.testing.assert_allclose(click * given, view, rtol=1e-5)
