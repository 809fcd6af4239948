"""The catalogue in memory: names that are there once, and the layout of the rows it is put beside."""

import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.data.corpus import laid_out_as, read_corpus
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.one_side import one_sided

FEATURES = FeaturesConfig.model_validate(
    {
        "tables": [{"name": "t", "rows": 50, "dim": 4}],
        "sparse": [
            {"name": "user", "table": "t", "side": "user"},
            {"name": "groups", "table": "t", "side": "user"},
            {"name": "movie", "table": "t", "side": "item"},
            {"name": "genres", "table": "t", "side": "item"},
        ],
        "dense": [{"name": "age", "side": "user"}, {"name": "length", "side": "item"}],
    }
)
ROWS = {"user": [1, 2], "groups": [[3], [4, 5]], "age": [1.0, 2]}
ROWS |= {"movie": [6, 7], "genres": [[8, 9], []], "length": [3.0, 4]}


@pytest.fixture
def encoder():
    return Encoder(DataConfig(train="x"), FEATURES, ())


def read(write, encoder, columns, groups=None):
    files = one_sided(open_files(str(write("items.parquet", columns, groups))), FEATURES, "item")
    return read_corpus(files, encoder, "id")


def test_items_lie_as_the_rows_do_and_lack_what_is_the_users(write, encoder):
    items = read(
        write,
        encoder,
        {"id": ["a", "b", "c"], "movie": [10, None, 12], "genres": [[1], [], [2, 3]], "length": [5.0, 6, 7]},
        groups=[2, 1],
    )
    rows = encoder.encode(pa.table(ROWS), "train")
    found = laid_out_as(items, rows)
    assert found.single_names == rows.single_names == ("user", "movie")
    assert found.present.tolist() == [[False, True], [False, False], [False, True]]
    assert found.single[[0, 2], 1].tolist() == [10, 12]
    assert found.lists["groups"].lengths.tolist() == [0, 0, 0]
    assert found.lists["genres"].lengths.tolist() == [1, 0, 2]
    assert found.lists["genres"].flat.tolist() == [1, 2, 3]
    assert found.dense[:, 1].tolist() == [5, 6, 7]
    assert not found.dense[:, 0].any()
    joined = type(rows).concat([rows, found.take(np.array([2, 0]))])
    assert len(joined) == 4


def test_an_item_is_named_once(write, encoder):
    with pytest.raises(ValueError, match=r"retrieval\.items: 1 rows name an item that another row names"):
        read(write, encoder, {"id": [1, 2, 1], "movie": [1, 2, 3], "genres": [[1]] * 3, "length": [1.0] * 3})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("movie", [[1], [2]], "'movie': a list in retrieval.items, one id a row in data.train"),
        ("genres", [1, 2], "'genres': one id a row in retrieval.items, a list in data.train"),
    ],
)
def test_lists_and_single_ids_do_not_mix(write, encoder, name, values, message):
    columns = {"id": [1, 2], "movie": [1, 2], "genres": [[1], [2]], "length": [1.0, 2]} | {name: values}
    items = read(write, encoder, columns)
    with pytest.raises(ValueError, match=message):
        laid_out_as(items, encoder.encode(pa.table(ROWS), "train"))
