import dataclasses

import pyarrow.parquet as pq

from torchrec_mtl.bench.rows import Log, Row, write_parquet

ROW = Row(
    "d",
    "m",
    "system",
    "trial",
    7,
    ("a=1", "b=[1, 2]"),
    "hash",
    "validation",
    "ok",
    metrics={"click": {"auc": 0.75}},
    score=0.75,
)
FAILED = dataclasses.replace(ROW, seed=8, status="failed", error="RuntimeError: no", metrics={}, score=None)


def test_rows_come_back_as_they_were(tmp_path):
    log = Log(tmp_path / "deep" / "runs.jsonl")
    log.append(ROW)
    log.append(FAILED)
    assert Log(log.path).rows == [ROW, FAILED]
    assert Log(log.path).find(ROW.key) == ROW
    assert Log(log.path).find(("other", 7, "validation")) is None


def test_a_line_cut_short_by_a_kill_is_left_out_and_does_not_spoil_the_next(tmp_path):
    log = Log(tmp_path / "runs.jsonl")
    log.append(ROW)
    text = log.path.read_text()
    log.path.write_text(text + text[:40])
    again = Log(log.path)
    assert again.rows == [ROW]
    again.append(FAILED)
    assert Log(log.path).rows == [ROW, FAILED]


def test_failed_runs_are_done_unless_they_are_to_be_retried(tmp_path):
    log = Log(tmp_path / "runs.jsonl")
    log.append(FAILED)
    assert Log(log.path).find(FAILED.key) == FAILED
    retrying = Log(log.path, forget_failed=True)
    assert retrying.find(FAILED.key) is None
    mended = dataclasses.replace(FAILED, status="ok", error=None)
    retrying.append(mended)
    assert retrying.find(FAILED.key) == mended
    assert Log(log.path).rows == [mended]


def test_a_run_that_fails_again_is_not_tried_for_ever(tmp_path):
    log = Log(tmp_path / "runs.jsonl")
    log.append(FAILED)
    retrying = Log(log.path, forget_failed=True)
    retrying.append(FAILED)
    assert retrying.find(FAILED.key) == FAILED


def test_parquet_has_flat_columns_and_all_rows(tmp_path):
    write_parquet([ROW, FAILED], tmp_path / "runs.parquet")
    table = pq.read_table(tmp_path / "runs.parquet").to_pydict()
    assert table["click/auc"] == [0.75, None]
    assert table["status"] == ["ok", "failed"]
    assert table["overrides"] == ["a=1 b=[1, 2]"] * 2
    assert "metrics" not in table
