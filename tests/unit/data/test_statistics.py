import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.statistics import Moments, Statistics


def collected(run, *paths):
    return collect(open_files([str(path) for path in paths]), run.data, run.features, run.tasks)


def tasks(**changes):
    task = {"name": "time", "kind": "regression", "label": "watch_time", "loss": {"type": "mse"}}
    return [task | changes]


def test_equal_numpy_over_the_whole_data(config, write, planted):
    run = config(tasks=tasks(space="click", sample_weight="importance"))
    paths = [write("a.parquet", planted.slice(0, 1000), [400, 600]), write("b.parquet", planted.slice(1000), [2000])]
    found = collected(run, *paths)
    assert found.rows == 3000
    for name, transform in (("age", None), ("hour", None), ("duration", np.log1p)):
        column = planted[name]
        values = column.drop_null().to_numpy().astype(float)
        values = transform(values) if transform else values
        dense = found.dense[name]
        assert (dense.mean, dense.std) == pytest.approx((values.mean(), values.std()), rel=1e-12)
        assert dense.nulls == column.null_count > 0
    click = planted["click"].to_numpy() == 1
    label, weight = planted["watch_time"].to_numpy()[click], planted["importance"].to_numpy()[click]
    mean = np.average(label, weights=weight)
    std = np.sqrt(np.average((label - mean) ** 2, weights=weight))
    time = found.labels["time"]
    assert (time.mean, time.std, time.weight) == pytest.approx((mean, std, weight.sum()), rel=1e-5)
    assert (time.rows, time.positive_rate) == (click.sum(), 1.0)
    users = planted["user_id"]
    ids = found.features["user_id"]
    assert (ids.ids, ids.empty) == (3000 - users.null_count, users.null_count)
    assert (ids.largest, ids.distinct) == (max(users.drop_null().to_pylist()), len(set(users.drop_null().to_pylist())))


def test_normalise_the_data_they_were_taken_from(config, write, planted):
    run = config()
    statistics = collected(run, write("a.parquet", planted))
    dense = Encoder(run.data, run.features, run.tasks, statistics).encode(planted, "a").dense
    present = ~np.isnan(np.stack([planted[name].to_numpy() for name in ("age", "hour", "duration")], axis=1))
    for k in range(3):
        values = dense[present[:, k], k].astype(float)
        assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=1e-6)
        assert not dense[~present[:, k], k].any()


def test_survive_json_exactly(config, write, planted, tmp_path):
    statistics = collected(config(), write("a.parquet", planted))
    statistics.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json") == statistics


def test_constant_and_empty_columns_have_standard_deviation_one(config, write, planted):
    table = planted.set_column(4, "age", pa.array([0.1] * len(planted))).set_column(5, "hour", pa.nulls(len(planted)))
    dense = collected(config(), write("a.parquet", table, [1000, 2000])).dense
    assert (dense["age"].mean, dense["age"].std) == (pytest.approx(0.1), 1.0)
    assert (dense["hour"].mean, dense["hour"].std, dense["hour"].nulls) == (0.0, 1.0, 3000)


def test_moments_are_stable_far_from_zero():
    rng = np.random.default_rng(0)
    values = 1e9 + rng.normal(size=100_000)
    moments = Moments()
    for block in np.array_split(values, 37):
        moments.add(block)
    assert moments.std == pytest.approx(values.std(), rel=1e-9)


def test_a_limit_of_rows_takes_row_groups_spread_over_the_files(config, write, planted):
    run = config(data={"statistics_rows": 600})
    paths = []
    for i in range(3):
        part = planted.slice(i * 1000, 1000)
        paths.append(write(f"{i}.parquet", part.set_column(4, "age", pa.array([float(i)] * 1000)), [100] * 10))
    found = collected(run, *paths)
    assert found.rows == 600
    assert found.dense["age"].mean == 1.0


def test_a_row_group_larger_than_the_limit_is_cut(config, write, planted):
    assert collected(config(data={"statistics_rows": 10}), write("a.parquet", planted)).rows == 10


def test_every_problem_is_counted_over_all_files(config, write, planted):
    users = [100 + i if i % 10 == 0 else 5 for i in range(len(planted))]
    clicks = [None if i % 100 == 0 else 1 for i in range(len(planted))]
    bad = planted.set_column(0, "user_id", pa.array(users)).set_column(7, "click", pa.array(clicks))
    paths = [write(f"{i}.parquet", bad, [1000, 2000]) for i in range(5)]
    with pytest.raises(ValueError, match="outside table") as error:
        collected(config(), *paths)
    labels, ids = str(error.value).splitlines()
    assert "column 'user_id' of" in ids
    assert (
        "2.parquet and 2 more files: 1,500 ids outside table 'user' of 100 rows (0 to 99) (found 100 to 3090)." in ids
    )
    assert "column 'click' of" in labels
    assert "150 null labels" in labels


def test_events_after_their_row_are_counted_before_training(config, write):
    sequence = {"name": "seen", "table": "t", "max_length": 2, "times": "at", "now": "now"}
    features = {"tables": [{"name": "t", "rows": 4, "dim": 4}], "sequences": [sequence]}
    task = {"name": "y", "kind": "binary", "label": "y", "loss": {"type": "bce"}}
    columns = {"seen": [[1, 2], [3]], "now": [10, 20], "y": [0, 1]}
    paths = [write(f"{i}.parquet", columns | {"at": [[5, 11 + i], [19]]}) for i in range(2)]
    with pytest.raises(ValueError, match=r"1.parquet: 2 events lie after .*, by so many s \(found 1 to 2\)\."):
        collected(config(features=features, tasks=[task]), *paths)


def test_mistyped_columns_are_told_before_reading(config, write, planted):
    with pytest.raises(ValueError, match=r"dense feature 'age', column 'age' of .* holds string"):
        collected(config(), write("a.parquet", planted.set_column(4, "age", pa.array(["x"] * len(planted)))))
