"""What a search found becomes hard negatives, but for what the query likes."""

import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.found import read_found
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.lookup import Lookup
from torchrec_mtl.losses.binary import BinaryCrossEntropy

RETRIEVAL = RetrievalConfig(items=("items.parquet",), item="movie", query="user")
TASKS = [TaskConfig(name=n, kind="binary", label=n, loss=BinaryCrossEntropy.Config()) for n in ("click", "like")]
MOVIES = ["a", "b", "c", "d"]
TRAIN = {
    "user": ["u", "u", "v", "w", "v"],
    "movie": ["a", "b", "c", "c", "d"],
    "click": [1.0, 0.0, 1.0, 1.0, None],
    "like": [0.0, 0.0, 0.0, 1.0, 0.0],
}


def read(write, found, fixed=None):
    files = write("train.parquet", TRAIN, [2, 3])
    kind = pa.list_(pa.string()) if fixed is None else pa.list_(pa.string(), fixed)
    table = pa.table({"user": list(found), "ids": pa.array(list(found.values()), kind)})
    places = Lookup(encode_keys(pa.array(MOVIES)))
    found_files = open_files(str(write("found.parquet", table, [1] * len(found))))
    return read_found(found_files, open_files(str(files)), RETRIEVAL, TASKS, places)


def items_of(found, user, count=8):
    keys = encode_keys(pa.array([user])).repeat(count)
    places = found.pick(keys, (np.arange(count) + 0.5) / count)
    return {MOVIES[place] if place >= 0 else None for place in places.tolist()}


@pytest.mark.parametrize("fixed", [None, 3])
def test_positives_of_the_query_are_left_out_and_those_of_others_are_not(write, fixed):
    found = read(write, {"u": ["a", "b", "c"], "v": ["c", "d", "x"], "z": ["a", None, "x"]}, fixed)
    assert items_of(found, "u") == {"b", "c"}
    assert items_of(found, "v") == {"d"}
    assert items_of(found, "z") == {"a"}
    assert items_of(found, "w") == {None}


def test_where_nothing_is_left_it_is_said(write):
    with pytest.raises(ValueError, match=r"retrieval\.negatives\.found: no item is left"):
        read(write, {"u": ["a"], "v": ["c", "x"]})
