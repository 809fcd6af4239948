"""One feature that tells a label: planted ones are flagged, ids that are met once are not."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.checking.planted import TRAIN, changed, kinds, numbers, report
from torchrec_mtl.checking.command import Options
from torchrec_mtl.checking.report import Report

CLICK = numbers(TRAIN, "click")
ROWS = len(TRAIN)


def leaks(found: Report) -> set[tuple[str, str, str]]:
    flagged = {f.column for f in found.findings if f.kind == "leak"}
    return {(k.feature, k.task, k.by) for k in found.leaks if k.feature in flagged and k.value > 0.98}


def test_clean_features_are_far_from_a_leak(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert leaks(found) == set()
    assert len(found.leaks) == 3 * 7  # each feature for each task
    assert max(k.value for k in found.leaks) < 0.85


def test_dense_columns_are_judged_both_ways(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = changed(TRAIN, age=-CLICK + rng.normal(0, 0.1, ROWS))
    assert ("age", "click", "values") in leaks(report(tmp_path, train))


def test_values_on_both_sides_are_found_by_bins(tmp_path: Path) -> None:
    side = np.random.default_rng(0).choice([-1.0, 1.0], ROWS)
    train = changed(TRAIN, age=side * (1 + CLICK))
    assert ("age", "click", "bins") in leaks(report(tmp_path, train))


def test_nulls_that_tell_are_found(tmp_path: Path) -> None:
    age = [None if click else value for click, value in zip(CLICK, TRAIN["age"].to_pylist())]
    assert ("age", "click", "bins") in leaks(report(tmp_path, changed(TRAIN, age=age)))


def test_ids_made_of_the_label(tmp_path: Path) -> None:
    item = numbers(TRAIN, "item_id") // 2 * 2 + CLICK
    assert ("item_id", "click", "ids") in leaks(report(tmp_path, changed(TRAIN, item_id=item)))


def test_an_id_for_each_row_is_not_flagged(tmp_path: Path) -> None:
    features = {
        "tables": [
            {"name": "user", "rows": ROWS, "dim": 8},
            {"name": "item", "rows": 60, "dim": 8},
            {"name": "tag", "rows": 64, "dim": 8},
        ]
    }
    found = report(tmp_path, changed(TRAIN, user_id=np.arange(ROWS)), features=features)
    assert leaks(found) == set()
    assert all(abs(k.value - 0.5) < 0.05 for k in found.leaks if k.feature == "user_id" and k.target != "label > 0")


def test_lists_by_their_ids_their_length_and_their_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    by_ids = [[int(40 + click), *rng.integers(0, 3, 2).tolist()] for click in CLICK]
    assert ("watched", "click") in {(f, t) for f, t, _ in leaks(report(tmp_path, changed(TRAIN, watched=by_ids)))}
    by_length = [rng.integers(0, 60, 2 + click).tolist() for click in CLICK]
    assert ("watched", "click", "length") in leaks(report(tmp_path, changed(TRAIN, watched=by_length)))
    item = numbers(TRAIN, "item_id")
    own = [[int(i) if click else int(i + 1) % 60, int(i + 2) % 60] for i, click in zip(item, CLICK)]
    assert ("watched", "click", "target") in leaks(report(tmp_path, changed(TRAIN, watched=own)))


def test_an_amount_told_by_its_rank_or_by_being_above_0(tmp_path: Path) -> None:
    seconds = numbers(TRAIN, "watch_time")
    tasks = [{"name": "seconds", "kind": "regression", "label": "watch_time"}]
    found = report(tmp_path, changed(TRAIN, age=np.sqrt(seconds)), tasks=tasks)
    assert leaks(found) == {("age", "seconds", "values")}
    found = report(tmp_path, changed(TRAIN, hour=(seconds > 0).astype(np.int64)), tasks=tasks)
    (leak,) = [k for k in found.leaks if k.feature == "hour"]
    assert (leak.measure, leak.target, leak.value) == ("auc", "label > 0", 1.0)


def test_the_limit_and_the_rows_are_options(tmp_path: Path) -> None:
    found = report(tmp_path, options=Options(leak_auc=0.55, leak_rows=1000))
    assert ("leak", "train") in kinds(found, "error")
    # All rows of the task, where nothing is fitted; half of them, where there is.
    sizes = {k.by: k.rows for k in found.leaks if k.task == "click"}
    assert sizes["values"] == pytest.approx(1000, abs=120)
    assert sizes["ids"] == pytest.approx(500, abs=90)


def test_what_comes_near_is_a_note(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = changed(TRAIN, age=CLICK + rng.normal(0, 0.41, ROWS))
    found = report(tmp_path, train)
    assert kinds(found, "error") == []
    assert "feature 'age' alone tells the label of task 'click'" in next(
        f.what for f in found.findings if f.kind == "strong"
    )


def test_few_rows_of_a_class_are_not_judged(tmp_path: Path) -> None:
    click = np.zeros(ROWS, np.int8)
    click[:10] = 1
    found = report(tmp_path, changed(TRAIN, click=click, age=click.astype(float)))
    assert "click" not in {k.task for k in found.leaks}
