import pyarrow as pa
import pytest

from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.preflight import check_schema

Y = {"name": "y", "kind": "binary", "label": "y", "loss": {"type": "bce"}}


def check(config, write, **tables):
    files = open_files([str(write(f"{name}.parquet", table)) for name, table in tables.items()])
    return check_schema(files, config)


def replace(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_planted_data_fits(config, write, planted):
    assert check(config(), write, a=planted, b=planted) == []


def test_missing_columns_are_all_named_with_the_nearest(config, write, planted):
    found = check(config(), write, a=planted.rename_columns({"item_id": "itemid", "click": "clicked"}))
    assert len(found) == 2
    assert found[0].startswith("feature 'item_id', column 'item_id': not in ")
    assert found[0].endswith("a.parquet. Did you mean 'itemid'?")
    assert found[1].startswith("label of task 'click', column 'click': not in ")
    assert found[1].endswith("Did you mean 'clicked'?")


def test_each_problem_is_told_once_for_many_files(config, write, planted):
    bad = planted.drop_columns(["age"])
    found = check(config(), write, a=planted, b=bad, c=bad)
    assert len(found) == 1
    assert "b.parquet" in found[0]


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        (
            "user_id",
            pa.float64(),
            "holds double, wanted: integers or strings, or lists of them (pandas writes integers",
        ),
        ("user_id", pa.struct([("a", pa.int64())]), "holds struct<a: int64>, wanted: integers or strings"),
        ("watched", pa.int64(), "holds int64, wanted: lists of integers or strings"),
        ("watched", pa.list_(pa.float32()), "float>, wanted: lists of integers or strings"),
        ("age", pa.string(), "holds string, wanted: numbers or booleans"),
        ("click", pa.string(), "holds string, wanted: numbers or booleans"),
    ],
)
def test_type_that_does_not_fit_is_named(config, write, planted, column, kind, expected):
    (found,) = check(config(), write, a=replace(planted, column, pa.nulls(len(planted), kind)))
    assert f"column '{column}' of " in found
    assert expected in found


def test_strings_under_encode_id_are_refused(config, write):
    features = {"tables": [{"name": "t", "rows": 4, "dim": 2}], "sparse": [{"name": "x", "table": "t", "encode": "id"}]}
    run = config(features=features, tasks=[{"name": "y", "kind": "binary", "label": "y", "loss": {"type": "bce"}}])
    (found,) = check(run, write, a=pa.table({"x": ["a"], "y": [1]}))
    assert "holds string, wanted: integers, or lists of them (encode: hash takes strings)" in found


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        (pa.array([1]), pa.array([1], pa.int8()), True),
        (pa.array(["a"]), pa.array(["a"]).dictionary_encode(), True),
        (pa.array([1]), pa.nulls(1), True),
        (pa.array([1]), pa.array(["a"]), False),
        (pa.array([1]), pa.array([[1]]), False),
        (pa.nulls(1), pa.array([[1]]), False),
    ],
)
def test_files_must_hold_ids_alike(config, write, first, second, agree):
    features = {"tables": [{"name": "t", "rows": 4, "dim": 2}], "sparse": [{"name": "x", "table": "t"}]}
    run = config(features=features, tasks=[{"name": "y", "kind": "binary", "label": "y", "loss": {"type": "bce"}}])
    tables = {"a": {"x": first, "y": [1]}, "b": {"x": second, "y": [1]}, "c": {"x": second, "y": [1]}}
    found = check(run, write, **tables)
    assert (found == []) == agree
    if not agree:
        assert len(found) == 1
        assert "Write all files alike" in found[0]


DATES = " (cast dates to integers, and say in the sequence's time_unit what these count)"


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        ("at", pa.list_(pa.uint32()), None),
        ("at", pa.large_list(pa.float32()), None),
        ("at", pa.null(), None),
        ("at", pa.int64(), "holds int64, wanted: lists of integers or floats."),
        ("at", pa.list_(pa.string()), "string>, wanted: lists of integers or floats."),
        ("at", pa.list_(pa.bool_()), "bool>, wanted: lists of integers or floats."),
        ("at", pa.list_(pa.timestamp("us")), f"timestamp[us]>, wanted: lists of integers or floats{DATES}."),
        ("now", pa.float64(), None),
        ("now", pa.null(), None),
        ("now", pa.list_(pa.int64()), "int64>, wanted: integers or floats."),
        ("now", pa.date32(), f"holds date32[day], wanted: integers or floats{DATES}."),
    ],
)
def test_moments_are_numbers(config, write, column, kind, expected):
    sequence = {"name": "seen", "table": "t", "max_length": 2, "times": "at", "now": "now"}
    run = config(features={"tables": [{"name": "t", "rows": 4, "dim": 4}], "sequences": [sequence]}, tasks=[Y])
    columns = {"seen": pa.array([[1]]), "at": pa.array([[5]]), "now": pa.array([7]), "y": pa.array([1])}
    found = check(run, write, a=pa.table(columns), b=pa.table(columns | {column: pa.nulls(1, kind)}))
    if expected is None:
        assert found == []
    else:
        (message,) = found
        assert message.startswith(f"{'times' if column == 'at' else 'now'} of sequence 'seen', column '{column}' of ")
        assert message.endswith(expected)


def test_moments_are_wanted_for_predictions_too(config, write):
    sequence = {"name": "seen", "table": "t", "max_length": 2, "times": "at", "now": "now"}
    run = config(features={"tables": [{"name": "t", "rows": 4, "dim": 4}], "sequences": [sequence]}, tasks=[Y])
    files = open_files([str(write("a.parquet", {"seen": [[1]], "now": [7]}))])
    (message,) = check_schema(files, run, labels=False)
    assert message.startswith("times of sequence 'seen', column 'at': not in ")


def test_column_named_twice_is_refused(config, write, planted):
    (found,) = check(config(), write, a=planted.append_column("age", planted["age"]))
    assert "2 columns of" in found


def test_prediction_needs_no_labels(config, write, planted):
    files = open_files([str(write("a.parquet", planted.drop_columns(["click", "long_view", "watch_time"])))])
    assert len(check_schema(files, config())) == 3
    assert check_schema(files, config(), labels=False) == []
