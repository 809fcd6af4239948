"""Bundles of runs that several ranks trained, and of the heads that are exported in another form than they train in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.retrieval_runs import make_files, retrieval_config, vectors
from tests.runs import raw_config, train_ranks, with_plan
from tests.serving_runs import train_small
from torchrec_mtl.serving.bundle import read_about
from torchrec_mtl.serving.export import export_run
from torchrec_mtl.serving.files import predict_files
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.training.inference import predict_run

pytestmark = pytest.mark.distributed

DENSE: dict[str, Any] = {"type": "ncs4cvr", "shared": [16], "masks": "dense"}
NCS4CVR: dict[str, Any] = {"type": "ncs4cvr", "shared": [16], "rounds": 1, "density": 0.3}


def assert_same_scores(run: Path, folder: Path, data: str) -> Predictor:
    """The bundle's predictions are those of ``predict``."""
    export_run(run, folder / "bundle")
    predictor = Predictor.load(folder / "bundle")
    predict_run(run, [data], folder / "trainer.parquet")
    predict_files(predictor, [data], folder / "bundle.parquet")
    wanted, found = (pd.read_parquet(folder / f"{name}.parquet") for name in ("trainer", "bundle"))
    pd.testing.assert_frame_equal(wanted[found.columns], found, rtol=1e-5, atol=1e-5)
    return predictor


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise"])
def test_tables_of_two_ranks_are_put_together(tmp_path: Path, sharding: str) -> None:
    plan = with_plan(raw_config("unused", tmp_path), sharding)
    run = train_small(tmp_path, ranks=2, features=plan["features"])
    assert_same_scores(run, tmp_path, str(tmp_path / "rows.parquet"))


def test_sub_networks_are_compacted(tmp_path: Path) -> None:
    eval_file = {"eval": str(tmp_path / "train.parquet")}
    run = train_small(tmp_path, head=NCS4CVR, gradient={"type": "sum"}, data=eval_file)
    dense = train_small(tmp_path / "dense", head=DENSE, gradient={"type": "sum"})
    assert_same_scores(run, tmp_path, str(tmp_path / "rows.parquet"))
    assert_same_scores(dense, tmp_path / "dense", str(tmp_path / "dense" / "rows.parquet"))
    names = (tmp_path / "bundle" / "programs" / "rows.pt2").read_bytes()
    assert b"head.networks.0" in names
    assert b"head.rounds" not in names


def test_a_student_is_exported_without_its_teacher(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    raw = retrieval_config(files, tmp_path / "run")
    train_ranks(raw, 1)
    predictor = assert_same_scores(tmp_path / "run", tmp_path, files["eval"])
    assert predictor.outputs == ("click", "long_view", "score")
    about = read_about(tmp_path / "bundle")
    assert about.programs == ("rows", "one_user", "users", "items")
    assert about.retrieval == {"item": "item_id", "query": "user_id", "seen": "seen"}
    assert about.parity is not None
    assert {"query vectors", "item vectors"} <= about.parity.largest.keys()
    for name in about.programs:
        assert b"teacher" not in (tmp_path / "bundle" / "programs" / f"{name}.pt2").read_bytes()
    rows = pq.read_table(files["eval"])
    queries, items = predictor.query_vectors(rows), predictor.item_vectors(pq.read_table(files["items"]))
    np.testing.assert_allclose(queries, vectors(tmp_path / "run", files["eval"], "user"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(items, vectors(tmp_path / "run", files["items"], "item"), rtol=1e-5, atol=1e-6)
    scores = np.einsum("nkd,nd->n", queries, predictor.item_vectors(rows))
    np.testing.assert_allclose(scores, predictor(rows)["score"], rtol=1e-4, atol=1e-5)
