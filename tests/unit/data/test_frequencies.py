"""How often an item is in the training data: over files and row groups, ids of any kind, unknown ones."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.frequencies import count_items
from torchrec_mtl.data.ids import encode_keys


@pytest.mark.parametrize("names", [["b", "a", "b", None, "c", "b", "a", "b"], [5, 3, 5, None, 9, 5, 3, 5]])
def test_shares_are_those_of_all_rows(tmp_path, names):
    pq.write_table(pa.table({"item": names[:5]}), tmp_path / "0.parquet", row_group_size=2)
    pq.write_table(pa.table({"item": names[5:]}), tmp_path / "1.parquet")
    found = count_items(open_files(str(tmp_path)), "item")
    wanted = pa.array([names[0], names[1], names[4], None])
    np.testing.assert_allclose(np.exp(found.log_share(encode_keys(wanted))), [4 / 8, 2 / 8, 1 / 8, 1 / 8], rtol=1e-6)
    assert np.exp(found.log_shares).sum() == pytest.approx(1)


def test_an_item_that_is_not_there_counts_as_half_a_row(tmp_path):
    pq.write_table(pa.table({"item": [1, 2, 2, 4]}), tmp_path / "0.parquet")
    found = count_items(open_files(str(tmp_path)), "item")
    shares = found.log_share(np.array([0, 2, 3, 2**60]))
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, np.log([0.125, 0.5, 0.125, 0.125]), rtol=1e-6)
    assert found.log_rest == math.log(0.125)


def test_with_items_drawn_shares_are_those_of_the_whole_batch(tmp_path):
    pq.write_table(pa.table({"item": [1, 2, 2, 4]}), tmp_path / "0.parquet")
    counted = count_items(open_files(str(tmp_path)), "item")
    np.testing.assert_allclose(counted.share(np.array([1, 2, 3, 4])), [0.25, 0.5, 0, 0.25], rtol=1e-6)
    corpus = np.array([2, 3, 4, 5, 6])  # 1 is in the data alone
    mixed = counted.mixed(corpus, rows=10, popular=6, uniform=4)
    by_hand = {1: 2.5, 2: 5 + 4 + 0.8, 3: 0.8, 4: 2.5 + 2 + 0.8, 5: 0.8, 6: 0.8}
    np.testing.assert_allclose(
        np.exp(mixed.log_share(np.array(list(by_hand)))), np.array(list(by_hand.values())) / 20, rtol=1e-5
    )
    assert np.exp(mixed.log_shares).sum() == pytest.approx(1)
    plain = counted.mixed(corpus, rows=10, popular=0, uniform=0)
    keys = np.array([1, 2, 3, 4, 5])
    np.testing.assert_allclose(plain.log_share(keys), counted.log_share(keys), rtol=1e-5)
