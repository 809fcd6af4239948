"""Files of a split that disagree, cannot be read, or are written in an unhappy way."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.checking.planted import EVAL, TRAIN, changed, config, kinds, report, write
from torchrec_mtl.checking.command import check


def folder(tmp_path: Path, *tables: pa.Table) -> Path:
    for i, table in enumerate(tables):
        write(tmp_path / "train" / f"{i}.parquet", table)
    write(tmp_path / "eval.parquet", EVAL)
    return config(tmp_path, data={"train": str(tmp_path / "train"), "eval": str(tmp_path / "eval.parquet")})


def test_types_that_are_read_alike_are_a_note(tmp_path: Path) -> None:
    narrow = changed(TRAIN, item_id=TRAIN["item_id"].combine_chunks().cast(pa.int32()))
    found = check(folder(tmp_path, TRAIN, narrow))
    (finding,) = [f for f in found.findings if f.kind == "types"]
    assert (finding.level, finding.column) == ("note", "item_id")
    assert "column 'item_id' is int64 and int32" in finding.what


def test_types_that_are_read_in_two_ways_are_an_error(tmp_path: Path) -> None:
    named = changed(TRAIN, item_id=[str(i) for i in TRAIN["item_id"].to_pylist()])
    found = check(folder(tmp_path, TRAIN, named))
    assert ("schema", "train") in kinds(found, "error")
    assert found.splits[0].rows_read == 2 * len(TRAIN)


def test_splits_that_are_read_in_two_ways_are_an_error(tmp_path: Path) -> None:
    named = changed(EVAL, item_id=[str(i) for i in EVAL["item_id"].to_pylist()])
    (finding,) = [f for f in report(tmp_path, judged=named).findings if f.level == "error"]
    assert (finding.kind, finding.split) == ("schema", "")
    assert "feature 'item_id', column 'item_id': integers in" in finding.what


def test_a_missing_column_takes_its_feature_along_and_nothing_else(tmp_path: Path) -> None:
    found = check(folder(tmp_path, TRAIN, changed(TRAIN, item_id=None)))
    assert ("schema", "train") in kinds(found, "error")
    rows = {f.feature: f.rows for f in found.features if f.split == "train"}
    assert (rows["item_id"], rows["user_id"]) == (2000, 4000)
    assert next(f.rows for f in found.labels if f.split == "train") == 4000


def test_a_key_that_is_mistyped_as_a_feature_is_still_a_key(tmp_path: Path) -> None:
    train = changed(TRAIN, item_id=[float(i) for i in range(len(TRAIN))])
    judged = changed(EVAL, item_id=[float(i) for i in range(100)] + [float(i) for i in range(9000, 9500)])
    found = report(tmp_path, train, judged, data={"keys": ["item_id"]})
    assert ("schema", "train") in kinds(found, "error")
    assert [(f.by, f.found) for f in found.overlap if f.split == "eval"] == [("keys", 100)]


def test_a_column_twice_in_a_file(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([*TRAIN.columns, TRAIN["item_id"]], names=[*TRAIN.column_names, "item_id"])
    found = report(tmp_path, twice, data={"keys": ["item_id"]})
    assert ("schema", "train") in kinds(found, "error")
    assert next(f.rows for f in found.features if f.feature == "user_id" and f.split == "train") == len(TRAIN)


def test_columns_that_some_files_have(tmp_path: Path) -> None:
    found = check(folder(tmp_path, TRAIN, changed(TRAIN, extra=[0] * len(TRAIN))))
    (finding,) = [f for f in found.findings if f.kind == "columns"]
    assert finding.what.endswith("in some of the 2 files only: extra")


def test_codecs(tmp_path: Path) -> None:
    made = folder(tmp_path, TRAIN)
    pq.write_table(TRAIN, tmp_path / "train" / "gzip.parquet", compression="gzip")
    assert ("codecs", "train") in kinds(check(made), "note")


def test_tiny_row_groups(tmp_path: Path) -> None:
    made = folder(tmp_path, TRAIN)
    write(tmp_path / "train" / "0.parquet", TRAIN, [100] * 20)
    (finding,) = [f for f in check(made).findings if f.kind == "row_groups_tiny"]
    assert "20 row groups of 100 rows" in finding.what


def test_damaged_files_do_not_hide_the_others(tmp_path: Path) -> None:
    made = folder(tmp_path, TRAIN, TRAIN, TRAIN)
    cut = tmp_path / "train" / "1.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    torn = tmp_path / "train" / "2.parquet"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    found = check(made)
    damaged = [f for f in found.findings if f.kind == "damaged"]
    assert [f.split for f in damaged] == ["train", "train"]
    assert {str(cut) in damaged[0].what, str(torn) in damaged[1].what} == {True}
    assert (found.splits[0].rows, found.splits[0].rows_read) == (4000, 2000)
