"""Rows of train in what judges the model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.checking.planted import EVAL, TRAIN, changed, kinds, report
from torchrec_mtl.checking.hashes import hash_rows, hash_values
from torchrec_mtl.checking.overlap import Overlap
from torchrec_mtl.data.synthetic import make_table

NUMBERED = changed(TRAIN, row=np.arange(len(TRAIN)))
LATER = changed(EVAL, row=np.arange(10_000, 10_000 + len(EVAL)))
KEYS = {"keys": ["row"]}


def test_keys_that_name_rows(tmp_path: Path) -> None:
    assert kinds(report(tmp_path, NUMBERED, LATER, data=KEYS)) == []
    some = changed(EVAL, row=np.r_[np.arange(2), np.arange(10_000, 10_000 + len(EVAL) - 2)])
    found = report(tmp_path, NUMBERED, some, data=KEYS)
    assert kinds(found) == [("overlap", "eval")]
    (finding,) = [f for f in found.findings if f.kind == "overlap"]
    assert (finding.level, finding.count, finding.column) == ("warning", 2, "row")
    many = changed(EVAL, row=np.arange(len(EVAL)))
    assert kinds(report(tmp_path, NUMBERED, many, data=KEYS), "error") == [("overlap", "eval")]


def test_keys_that_name_users_do_not_cry_wolf(tmp_path: Path) -> None:
    found = report(tmp_path, data={"keys": ["user_id"]})
    assert kinds(found) == []
    assert ("keys_not_unique", "train") in kinds(found, "note")
    copied = report(tmp_path, judged=pa.concat_tables([EVAL, TRAIN.slice(0, 60)]), data={"keys": ["user_id"]})
    assert kinds(copied) == [("overlap", "eval")]


def test_rows_are_told_by_all_columns_without_keys(tmp_path: Path) -> None:
    found = report(tmp_path, judged=TRAIN.slice(0, 600))
    assert kinds(found, "error") == [("overlap", "eval")]
    (one,) = [f for f in found.overlap if f.split == "eval"]
    assert (one.by, one.rows, one.found, one.sampled) == ("columns", 600, 600, False)


def test_coarse_rows_that_are_equal_by_chance_are_no_overlap(tmp_path: Path) -> None:
    features = {
        "tables": [{"name": "hour", "rows": 24, "dim": 8}],
        "sparse": [{"name": "hour", "table": "hour"}],
        "sequences": [],
        "dense": [],
    }
    tasks = [{"name": "click", "kind": "binary", "label": "click"}]
    found = report(tmp_path, features=features, tasks=tasks)
    assert next(f.share for f in found.overlap if f.split == "eval") == 1
    assert kinds(found) == []


def test_rows_written_twice(tmp_path: Path) -> None:
    twice = pa.concat_tables([NUMBERED, NUMBERED.slice(0, 150)])
    found = report(tmp_path, twice, LATER, data=KEYS)
    assert ("rows_repeat", "train") in kinds(found, "warning")
    assert ("keys_repeat", "train") in kinds(found, "note")
    assert next(f.found for f in found.overlap if f.split == "train") == 150


def test_a_sample_by_hash_estimates_the_share() -> None:
    train = pa.table({"row": np.arange(40_000)})
    judged = pa.table({"row": np.arange(30_000, 50_000)})
    overlap = Overlap("keys", ["row"], len(train), most_rows=4000)
    overlap.add(train, "train")
    overlap.add(judged, "eval")
    kept, found = overlap.figures()
    assert found.sampled
    assert kept.rows == pytest.approx(4000, rel=0.1)
    assert found.share == pytest.approx(0.5, abs=0.05)


def test_equal_rows_have_equal_hashes_whatever_holds_them() -> None:
    table = make_table(300, seed=3, nulls=True)
    names = table.column_names
    whole = hash_rows(table, names)
    assert len(set(whole.tolist())) == 300
    parts = [hash_rows(table.slice(start, 100), names) for start in (0, 100, 200)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(
        hash_values(pa.array(["a", "b", None])), hash_values(pa.array(["a", "b", None]).dictionary_encode())
    )
    np.testing.assert_array_equal(hash_values(pa.array([1, 2], pa.int8())), hash_values(pa.array([1, 2], pa.int64())))


@pytest.mark.parametrize(
    ("one", "other"),
    [([[1], [2]], [[2], [1]]), ([[1, 2], [3]], [[1], [2, 3]]), ([[1], []], [[], [1]]), ([None, [1]], [[], [1]])],
)
def test_lists_that_differ_have_different_hashes(one: list[object], other: list[object]) -> None:
    kind = pa.list_(pa.int64())
    assert hash_values(pa.array(one, kind)).tolist() != hash_values(pa.array(other, kind)).tolist()
