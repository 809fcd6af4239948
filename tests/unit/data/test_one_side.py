"""Files of one side: what may be missing, and how it is read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.one_side import first_of_each, one_sided

FEATURES = FeaturesConfig.model_validate(
    {
        "tables": [{"name": "item", "rows": 9, "dim": 4}, {"name": "user", "rows": 9, "dim": 4}],
        "sparse": [
            {"name": "item", "table": "item", "side": "item"},
            {"name": "user", "table": "user", "side": "user"},
            {"name": "hour", "table": "user"},
        ],
        "sequences": [
            {"name": "watched", "table": "item", "max_length": 3, "side": "user", "times": "at", "now": "now"},
            {"name": "alike", "table": "item", "max_length": 3, "side": "item", "column": "similar"},
        ],
        "dense": [{"name": "price", "side": "item"}, {"name": "age", "side": "user"}],
    }
)
OF_ITEMS, OF_USERS = {"item", "similar", "price"}, {"user", "watched", "at", "now", "age"}


def files(folder, columns):
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=2)
    return open_files(str(folder / "rows.parquet"))


@pytest.mark.parametrize(("side", "needed"), [("item", OF_ITEMS), ("user", OF_USERS)])
def test_columns_of_other_sides_may_be_missing(tmp_path, side, needed):
    [file] = one_sided(files(tmp_path, {"name": ["a"]}), FEATURES, side)
    assert file.optional == (OF_ITEMS | OF_USERS | {"hour"}) - needed


def test_what_is_missing_is_null_and_what_is_there_is_read(tmp_path):
    [file] = one_sided(files(tmp_path, {"item": [1, 2, 3], "age": [5, 6, 7]}), FEATURES, "item")
    assert set(file.schema.names) == {"item", "age", "user", "hour", "watched", "at", "now"}
    table = file.read_row_group(1, ["user", "item", "age", "user"])
    assert table.to_pydict() == {"user": [None], "item": [3], "age": [7]}
    assert file.read_row_group(0, ["user"]).to_pydict() == {"user": [None, None]}  # as many as there are rows


def test_files_are_cut_down_to_the_first_row_of_each_key(tmp_path):
    for name, users in (("0", ["b", "a", "b", "c", "c"]), ("1", ["c", "c"]), ("2", ["d", "a", None, "d"])):
        rows = pa.table({"user": users, "age": range(len(users))})
        pq.write_table(rows, tmp_path / f"{name}.parquet", row_group_size=2)
    keys, cut = first_of_each(one_sided(open_files(str(tmp_path)), FEATURES, "user"), "user")
    assert [file.row_groups for file in cut] == [(2, 1, 0), (0,), (1, 1)]
    read = [file.read_row_group(i, ["user", "age"]) for file in cut for i in range(len(file.row_groups))]
    whole = pa.concat_tables(read)
    assert whole["user"].to_pylist() == ["b", "a", "c", "d", None]
    assert whole["age"].to_pylist() == [0, 1, 3, 0, 2]
    assert keys.tolist() == encode_keys(whole["user"].combine_chunks()).tolist()


def test_a_column_that_both_sides_read_is_needed(tmp_path):
    again = {**FEATURES.sparse[0].model_dump(), "name": "last", "column": "item", "side": "user"}
    sparse = [feature.model_dump() for feature in FEATURES.sparse]
    both = FeaturesConfig.model_validate(FEATURES.model_dump() | {"sparse": [*sparse, again]})
    [file] = one_sided(files(tmp_path, {"item": [1]}), both, "user")
    assert "item" not in file.optional
