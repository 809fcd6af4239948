import numpy as np
import pyarrow as pa
import torch
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)

from torchrec_mtl.data.assemble import make_kjt
from torchrec_mtl.data.encode import Encoder


def batch_of(config, table, size):
    encoder = Encoder(config.data, config.features, config.tasks)
    rows = encoder.encode(table, "x")
    return encoder.batch(rows, slots=np.arange(size)[::-1].copy(), step=3, global_size=2 * size)


def test_padding_is_empty_and_weighs_nothing(config, planted):
    batch = batch_of(config(), planted.slice(0, 5), size=8)
    assert batch.valid.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert batch.rows.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    for values in (batch.dense, batch.labels, batch.weights):
        assert len(values) == 8
        assert not values[5:].any()
    for kjt in (batch.sparse, batch.sequences):
        assert kjt.stride() == 8
        assert not kjt.lengths().view(len(kjt.keys()), 8)[:, 5:].any()
    assert (batch.step, batch.global_size) == (3, 16)


def test_features_go_to_their_collection_in_config_order(config, planted):
    batch = batch_of(config(), planted, size=len(planted))
    assert batch.sparse.keys() == ["user_id", "tags"]
    assert batch.sequences.keys() == ["item_id", "watched"]
    assert (batch.sparse.values().dtype, batch.sparse.lengths().dtype) == (torch.int64, torch.int32)
    users, watched = batch.sparse["user_id"], batch.sequences["watched"]
    expected = planted["user_id"].to_pylist()
    assert users.values().tolist() == [user for user in expected if user is not None]
    assert users.lengths().tolist() == [int(user is not None) for user in expected]
    histories = [history[-10:] if history else [] for history in planted["watched"].to_pylist()]
    assert watched.values().tolist() == [item for history in histories for item in history]


def test_precomputed_lengths_per_key_are_true(config, planted):
    kjt = batch_of(config(), planted, size=len(planted)).sparse
    assert kjt.length_per_key() == kjt.lengths().view(2, -1).sum(1).tolist()


def test_mixed_single_and_list_features_keep_their_order(config):
    features = {
        "tables": [{"name": "t", "rows": 10, "dim": 2}],
        "sparse": [{"name": name, "table": "t"} for name in ("a", "l", "b")],
    }
    table = pa.table({"a": [1, None], "b": [3, 4], "l": [[5, 6], []], **{k: [0, 0] for k in TARGETS}})
    kjt = batch_of(config(features=features), table, size=3).sparse
    assert kjt.keys() == ["a", "l", "b"]
    assert kjt.values().tolist() == [1, 5, 6, 3, 4]
    assert kjt.lengths().tolist() == [1, 0, 0, 2, 0, 0, 1, 1, 0]


TARGETS = ("click", "long_view", "watch_time")


def test_run_without_ids_has_an_empty_kjt_that_moves(config, planted):
    batch = batch_of(config(features={"dense": ["hour"]}), planted, size=len(planted))
    for kjt in (batch.sparse, batch.to(torch.device("cpu")).sequences):
        assert kjt.keys() == []
        assert kjt.stride() == len(planted)
        assert kjt.values().numel() == kjt.lengths().numel() == 0
        assert kjt.to_dict() == {}


def test_batch_without_any_id_passes_the_embeddings(config, planted):
    encoder = Encoder(config().data, config().features, config().tasks)
    rows = encoder.encode(planted.schema.empty_table(), "x")
    batch = encoder.batch(rows, slots=np.arange(4), step=0, global_size=4)
    pooled = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, num_embeddings=5, embedding_dim=4, feature_names=[feature])
            for name, feature in (("user", "user_id"), ("tag", "tags"))
        ]
    )
    table = EmbeddingConfig(name="item", num_embeddings=5, embedding_dim=4, feature_names=["item_id", "watched"])
    assert pooled(batch.sparse).values().tolist() == [[0.0] * 8] * 4
    assert EmbeddingCollection(tables=[table])(batch.sequences)["watched"].lengths().tolist() == [0, 0, 0, 0]
    assert batch.sequences.permute([1, 0]).keys() == ["watched", "item_id"]


def test_kjt_of_a_slice_holds_only_its_rows(config, planted):
    encoder = Encoder(config().data, config().features, config().tasks)
    rows = encoder.encode(planted, "x")
    part = make_kjt(rows.slice(10, 30), ["user_id", "tags"], 20)
    whole = make_kjt(rows, ["user_id", "tags"], len(rows))
    for key in ("user_id", "tags"):
        lengths = whole[key].lengths()
        start, stop = int(lengths[:10].sum()), int(lengths[:30].sum())
        assert part[key].values().tolist() == whole[key].values()[start:stop].tolist()
