"""Planted faults are found, each as what it is; clean data give none."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.checking.planted import EVAL, TRAIN, changed, kinds, numbers, report
from torchrec_mtl.checking.report import Report


def only(found: Report, kind: str) -> Any:
    (finding,) = [f for f in found.findings if f.kind == kind]
    return finding


def test_clean_data_give_neither_errors_nor_warnings(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert kinds(found) == []
    assert not found.failed(strict=True)


def spoiled(column: str, value: object, rows: int = 5) -> list[Any]:
    values = TRAIN[column].to_pylist()
    values[:rows] = [value] * rows
    return values


def test_ids_outside_their_table(tmp_path: Path) -> None:
    item = numbers(TRAIN, "item_id")
    item[:50], item[50:53] = 75, -1
    found = report(tmp_path, changed(TRAIN, item_id=item))
    large, negative = only(found, "ids_too_large"), only(found, "ids_negative")
    assert (large.level, large.split, large.column, large.count) == ("error", "train", "item_id", 50)
    assert large.files == (str(tmp_path / "train.parquet"),)
    assert "50 ids (2.5 % of the lookups) outside table 'item' of 60 rows, the largest 75" in large.what
    assert "Give table 'item' 84 rows (all ids and a tenth more)" in large.advice
    assert (negative.count, "the smallest -1" in negative.what) == (3, True)
    assert found.failed()


@pytest.mark.parametrize("policy", ["drop", "clamp"])
def test_bad_ids_that_the_config_lets_pass_are_a_note(tmp_path: Path, policy: str) -> None:
    found = report(tmp_path, changed(TRAIN, item_id=spoiled("item_id", 75)), data={"bad_ids": policy})
    assert only(found, "ids_too_large").level == "note"


def test_one_absurd_id_is_no_reason_for_a_huge_table(tmp_path: Path) -> None:
    found = report(tmp_path, changed(TRAIN, item_id=spoiled("item_id", 10**12, rows=1)))
    assert "see whether these values are ids" in only(found, "ids_too_large").advice


def test_null_labels(tmp_path: Path) -> None:
    train = changed(TRAIN, click=pa.array(spoiled("click", None), pa.int8()))
    found = report(tmp_path, train)
    assert (only(found, "null_labels").level, only(found, "null_labels").count) == ("error", 5)
    assert next(f for f in found.labels if f.task == "click").nulls == 5
    masked = report(tmp_path, train, data={"null_labels": "mask"})
    assert only(masked, "null_labels").level == "note"
    assert not masked.failed()


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    train = changed(
        TRAIN,
        click=spoiled("click", 2),
        item_id=spoiled("item_id", 99),
        age=spoiled("age", float("inf")),
        hour=[3] * len(TRAIN),
        watch_time=spoiled("watch_time", float("nan")),
    )
    assert set(kinds(report(tmp_path, train))) >= {
        ("labels", "train"),
        ("ids_too_large", "train"),
        ("infinite", "train"),
        ("constant", "train"),
        ("null_labels", "train"),
    }


def test_what_a_loss_cannot_take(tmp_path: Path) -> None:
    tasks = [{"name": "seconds", "kind": "regression", "label": "watch_time", "loss": {"type": "gamma"}}]
    found = report(tmp_path, tasks=tasks)
    assert "which loss 'gamma' cannot take" in next(f for f in found.findings if f.kind == "labels").what


def test_labels_against_their_space(tmp_path: Path) -> None:
    tasks = [
        {"name": "click", "kind": "binary", "label": "click"},
        {"name": "long_view", "kind": "binary", "label": "long_view", "space": "click"},
    ]
    contrary = np.where(numbers(TRAIN, "click") == 0, 1, numbers(TRAIN, "long_view"))
    finding = only(report(tmp_path, changed(TRAIN, long_view=contrary), tasks=tasks), "outside_space")
    assert (finding.level, finding.count) == ("warning", int((numbers(TRAIN, "click") == 0).sum()))


def test_labels_of_one_class_or_none(tmp_path: Path) -> None:
    tasks = [
        {"name": "click", "kind": "binary", "label": "click"},
        {"name": "long_view", "kind": "binary", "label": "long_view", "space": "in_sample"},
    ]
    train = changed(TRAIN, click=np.zeros(len(TRAIN), np.int8), in_sample=np.zeros(len(TRAIN), np.int8))
    found = report(tmp_path, train, tasks=tasks)
    assert (only(found, "one_class").level, only(found, "no_labels").level) == ("error", "error")


def test_a_rate_that_moved(tmp_path: Path) -> None:
    judged = changed(EVAL, click=np.where(np.arange(len(EVAL)) % 8 == 0, 1, 0).astype(np.int8))
    assert ("label_shift", "eval") in kinds(report(tmp_path, judged=judged), "warning")


def test_a_mean_that_moved(tmp_path: Path) -> None:
    finding = only(report(tmp_path, judged=changed(EVAL, age=numbers(EVAL, "age") * 1000)), "drift")
    assert (finding.split, finding.column) == ("eval", "age")


def test_columns_without_values(tmp_path: Path) -> None:
    train = changed(TRAIN, age=pa.nulls(len(TRAIN), pa.float64()), item_id=pa.nulls(len(TRAIN), pa.int64()))
    found = report(tmp_path, train)
    assert kinds(found).count(("no_values", "train")) == 2


def test_a_join_that_failed_in_one_split(tmp_path: Path) -> None:
    gone = [None if i % 4 == 0 else age for i, age in enumerate(EVAL["age"].to_pylist())]
    finding = only(report(tmp_path, judged=changed(EVAL, age=gone)), "nulls_shift")
    assert (finding.level, finding.split, finding.column) == ("warning", "eval", "age")
    assert "'age' in 25 % of the rows, in train 0 %" in finding.what


def test_a_table_too_small_to_hash_into(tmp_path: Path) -> None:
    names = [f"user {i}" for i in range(len(TRAIN))]
    finding = only(
        report(tmp_path, changed(TRAIN, user_id=names), changed(EVAL, user_id=names[:600])), "hash_collisions"
    )
    assert "table 'user' of 100 rows" in finding.what


def test_a_table_far_too_large_is_a_note(tmp_path: Path) -> None:
    features = {
        "tables": [
            {"name": "user", "rows": 5_000_000, "dim": 8},
            {"name": "item", "rows": 60, "dim": 8},
            {"name": "tag", "rows": 64, "dim": 8},
        ]
    }
    found = report(tmp_path, features=features)
    assert only(found, "table_too_large").level == "note"
    user = next(f for f in found.features if f.feature == "user_id")
    assert (user.distinct, user.exact) == (len(set(TRAIN["user_id"].to_pylist())), True)
