"""Every figure against a few lines of plain Python."""

import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.checking.planted import changed, report
from torchrec_mtl.checking.report import Report
from torchrec_mtl.data.synthetic import make_table

TRAIN, EVAL = make_table(500, seed=1, nulls=True), make_table(300, seed=2, nulls=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(tmp_path_factory.mktemp("figures"), TRAIN, EVAL)


def of(figures: tuple[Any, ...], **wanted: str) -> Any:
    (one,) = [f for f in figures if all(getattr(f, key) == value for key, value in wanted.items())]
    return one


def test_ids(found: Report) -> None:
    values = TRAIN["item_id"].to_pylist()
    known = [v for v in values if v is not None]
    figures = of(found.features, feature="item_id", split="train")
    assert (figures.rows, figures.nulls, figures.empty) == (500, values.count(None), values.count(None))
    assert (figures.lookups, figures.smallest, figures.largest) == (len(known), min(known), max(known))
    assert (figures.distinct, figures.exact, figures.cold, figures.encode) == (len(set(known)), True, None, "id")


def test_cold_ids_are_rows_of_the_table_that_no_feature_of_train_reads(tmp_path: Path) -> None:
    train = changed(TRAIN, item_id=[7] * 500, watched=[[8, 9]] * 500)
    judged = changed(EVAL, item_id=[7, 8, 9] * 100, watched=[[7, 10, 11, 12]] * 300)
    found = report(tmp_path, train, judged)
    assert of(found.features, feature="item_id", split="eval").cold == 0
    assert of(found.features, feature="watched", split="eval").cold == 0.75
    assert of(found.tables, table="item").used == 3
    assert of(found.tables, table="item").needed == 13


def test_lists(found: Report) -> None:
    lists = [row or [] for row in TRAIN["watched"].to_pylist()]
    sizes = sorted(map(len, lists))
    figures = of(found.features, feature="watched", split="train")
    lengths = figures.lengths
    assert lengths.mean == pytest.approx(statistics.fmean(sizes))
    assert (lengths.max, lengths.p50, lengths.p95) == (sizes[-1], sizes[249], sizes[474])
    assert lengths.cut_rows == sum(size > 10 for size in sizes)
    assert lengths.cut_ids == sum(max(size - 10, 0) for size in sizes)
    assert figures.empty == sizes.count(0)
    kept = [i for row in lists for i in row[-10:]]
    assert (figures.lookups, figures.distinct) == (len(kept), len(set(kept)))


def test_nulls_in_lists(tmp_path: Path) -> None:
    lists = [[1, None, 2], None, [], [None], [3]] * 100
    found = report(tmp_path, changed(TRAIN, watched=pa.array(lists, pa.list_(pa.int64()))), EVAL)
    figures = of(found.features, feature="watched", split="train")
    assert (figures.nulls, figures.null_ids, figures.empty, figures.lookups) == (100, 200, 300, 300)


def test_dense(found: Report) -> None:
    values = [v for v in TRAIN["age"].to_pylist() if v is not None]
    figures = of(found.dense, feature="age", split="train")
    assert figures.nulls == 500 - len(values)
    assert (figures.smallest, figures.largest) == (min(values), max(values))
    assert figures.mean == pytest.approx(statistics.fmean(values))
    assert figures.std == pytest.approx(statistics.pstdev(values))
    later = [v for v in EVAL["age"].to_pylist() if v is not None]
    drift = (statistics.fmean(later) - statistics.fmean(values)) / statistics.pstdev(values)
    assert of(found.dense, feature="age", split="eval").drift == pytest.approx(drift)


def test_labels_of_a_space(tmp_path: Path) -> None:
    found = report(tmp_path, TRAIN, EVAL, tasks=_spaced())
    inside = [
        (long, seconds)
        for click, long, seconds in zip(*(TRAIN[c].to_pylist() for c in ("click", "long_view", "watch_time")))
        if click
    ]
    figures = of(found.labels, task="long_view", split="train")
    assert (figures.rows, figures.inside, figures.outside_positive) == (500, len(inside), 0)
    assert figures.mean == pytest.approx(statistics.fmean(row[0] for row in inside))
    seconds = of(found.labels, task="watch_time", split="train")
    assert seconds.mean == pytest.approx(statistics.fmean(row[1] for row in inside))
    assert seconds.std == pytest.approx(statistics.pstdev(row[1] for row in inside))
    assert seconds.largest == max(row[1] for row in inside)


def _spaced() -> list[dict[str, str]]:
    return [
        {"name": "click", "kind": "binary", "label": "click"},
        {"name": "long_view", "kind": "binary", "label": "long_view", "space": "click"},
        {"name": "watch_time", "kind": "regression", "label": "watch_time", "space": "click"},
    ]


def test_hashed_strings_say_what_shares_a_row(found: Report) -> None:
    tags = {tag for row in TRAIN["tags"].to_pylist() for tag in (row or [])[-3:]}
    table = of(found.tables, table="tag")
    assert table.hashed
    assert (table.needed, table.suggested) == (None, None)
    assert table.values == pytest.approx(len(tags), abs=5)
    assert of(found.features, feature="tags", split="train").encode == "hash"
    assert of(found.features, feature="tags", split="train").largest is None


def test_moments(tmp_path: Path) -> None:
    rows = 500
    features = {
        "sequences": [{"name": "watched", "table": "item", "max_length": 10, "times": "at", "now": "now"}],
        "tables": [{"name": "user", "rows": 100, "dim": 8}, {"name": "item", "rows": 60, "dim": 8}],
        "sparse": [{"name": "user_id", "table": "user"}],
    }
    lists = [[1, 2, 3]] * rows
    made = {"watched": lists, "at": [[1000, 4000, 5000]] * rows, "now": [5000] * rows}
    found = report(tmp_path, changed(TRAIN, **made), changed(TRAIN, **made), features=features)
    ages = of(found.features, feature="watched", split="train").ages
    assert (ages.events, ages.median_s, ages.under_1s) == (3 * rows, 511, pytest.approx(1 / 3))
    assert found.day_column == "now"
    late = report(
        tmp_path, changed(TRAIN, **(made | {"at": [[1000, 4000, 5001]] * rows})), TRAIN.slice(0, 0), features=features
    )
    assert ("times", "train") in [(f.kind, f.split) for f in late.findings]
