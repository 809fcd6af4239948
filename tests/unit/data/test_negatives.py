"""Items drawn beside the rows: the same at any world size, from where they should be, and nothing but candidates."""

import numpy as np
import pytest
import torch

from tests.retrieval_runs import NUM_ITEMS, corpus, impressions, retrieval_config
from tests.runs import write
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.retrieval import NegativesConfig
from torchrec_mtl.data.corpus import Corpus, read_corpus
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.found import Found
from torchrec_mtl.data.frequencies import Frequencies, count_items
from torchrec_mtl.data.ids import NULL_KEY
from torchrec_mtl.data.negatives import Negatives
from torchrec_mtl.data.one_side import one_sided
from torchrec_mtl.data.reader import ParquetReader

STREAMS, BATCH = 4, 16
COUNTS = NegativesConfig(uniform=8, popular=4, hard=4, found=("found.parquet",))


@pytest.fixture
def given(tmp_path):
    """Encoder, files of 40 rows, their items, and what was found: item 7 places on for users that are even."""
    files = {"train": write(tmp_path / "train.parquet", impressions(40, 1), row_group=10)}
    files["items"] = files["eval"] = write(tmp_path / "items.parquet", corpus(), row_group=25)
    run = parse(retrieval_config(files, tmp_path / "run"))
    train = open_files(files["train"])
    frequencies = count_items(train, "item_id")
    encoder = Encoder(run.data, run.features, run.tasks, frequencies=frequencies, query="user_id")
    items = one_sided(open_files(files["items"]), run.features, "item")
    plain = Encoder(run.data, run.features, run.tasks, labels=False)
    users = np.arange(0, 1000, 2)
    return encoder, train, read_corpus(items, plain, "item_id"), frequencies, Found(users, (users + 7) % NUM_ITEMS)


def open_reader(given, *, rank=0, world_size=1, config=COUNTS, seed=3):
    encoder, train, items, frequencies, found = given
    negatives = Negatives(config, items, frequencies, seed=seed, streams=STREAMS, found=found if config.hard else None)
    return ParquetReader(
        train,
        encoder,
        batch_size=BATCH,
        streams=STREAMS,
        window=8,
        seed=1,
        rank=rank,
        world_size=world_size,
        negatives=negatives,
    )


def by_slot(batches):
    """Every slot's item, query, label, weight, valid, present, ids of user and item, of batches of all ranks."""
    found = {}
    for batch in batches:
        user, item = batch.sparse["user_id"].to_dense(), batch.sequences["item_id"].to_dense()
        for i, slot in enumerate(batch.rows.tolist()):
            assert slot not in found
            ids = (batch.ids["item"][i].item(), batch.ids["query"][i].item(), user[i].tolist(), item[i].tolist())
            flags = (batch.valid[i].item(), batch.candidates.present[i].item())
            found[slot] = (
                *ids,
                *flags,
                batch.labels[i].tolist(),
                batch.weights[i].tolist(),
                batch.candidates.log_share[i].item(),
            )
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_batches_do_not_depend_on_the_number_of_ranks(given, world_size):
    one = [by_slot([batch]) for batch in open_reader(given).epoch(1)]
    ranks = [open_reader(given, rank=r, world_size=world_size).epoch(1) for r in range(world_size)]
    several = [by_slot(batches) for batches in zip(*ranks, strict=True)]
    assert several == one
    assert all(sorted(batch) == list(range(BATCH + COUNTS.total)) for batch in one)


def test_a_reader_that_begins_later_draws_the_same(given):
    whole = list(open_reader(given).epoch(0))
    resumed = list(open_reader(given).epoch(0, 2))
    assert [by_slot([b]) for b in resumed] == [by_slot([b]) for b in whole[2:]]


def test_other_steps_and_seeds_draw_others(given):
    drawn = [
        tuple(by_slot([batch])[slot][0] for slot in range(BATCH, BATCH + COUNTS.total))
        for seed in (3, 4)
        for batch in open_reader(given, seed=seed).epoch(0)
    ]
    assert len(set(drawn)) == len(drawn)


def test_what_is_drawn_is_an_item_and_nothing_else(given):
    encoder, _, items, frequencies, _ = given
    for batch in open_reader(given).epoch(0):
        drawn = (batch.rows >= BATCH) & batch.candidates.present.bool()
        assert drawn.any()
        assert not batch.full
        assert batch.candidates.num_rows == int(batch.valid.sum())
        assert batch.valid[: batch.candidates.num_rows].all()
        assert not batch.valid[batch.candidates.num_rows :].any()
        assert not batch.labels[drawn].any()
        assert not batch.weights[drawn].any()
        assert set(batch.ids["item"][drawn].tolist()) <= set(items.keys.tolist())
        assert (batch.sequences["item_id"].lengths()[drawn] == 1).all()
        assert (batch.sparse["tags"].lengths()[drawn] == 1).all()
        assert not batch.sparse["user_id"].lengths()[drawn].any()
        assert not batch.sequences["watched"].lengths()[drawn].any()
        tags = dict(zip(items.keys.tolist(), items.rows.lists["tags"].flat.tolist(), strict=True))
        ids = batch.ids["item"].tolist()
        found = [t.tolist() for t in batch.sparse["tags"].to_dense()]
        assert [found[i] for i in drawn.nonzero().flatten().tolist()] == [
            [tags[ids[i]]] for i in drawn.nonzero().flatten().tolist()
        ]
        np.testing.assert_array_equal(
            batch.candidates.log_share.numpy(), frequencies.log_share(batch.ids["item"].numpy())
        )
    assert encoder.wanted[-1].name == "user_id"


def test_hard_ones_are_of_what_was_found_for_a_row_of_their_stream(given):
    config = NegativesConfig(hard=8, found=("found.parquet",))
    count = 0
    for batch in open_reader(given, config=config).epoch(0):
        queries = batch.ids["query"][: batch.candidates.num_rows].tolist()
        streams = (batch.rows[: batch.candidates.num_rows] // (BATCH // STREAMS)).tolist()
        for i in range(batch.candidates.num_rows, len(batch.rows)):
            if batch.candidates.present[i]:
                stream = (batch.rows[i].item() - BATCH) // 2
                mine = {q for q, s in zip(queries, streams, strict=True) if s == stream}
                assert batch.ids["item"][i].item() in {given[2].keys[(q + 7) % NUM_ITEMS] for q in mine if q % 2 == 0}
                count += 1
    assert count > 5


def test_padding_and_unknown_queries_have_none():
    found = Found(np.array([5, 5, 9]), np.array([1, 2, 3]))
    picked = found.pick(np.array([[5, 5, NULL_KEY], [9, 7, 5]]), np.array([[0.0, 0.999, 0.5], [1.0, 0.0, 0.49]]))
    assert picked.tolist() == [[1, 2, -1], [3, -1, 1]]
    assert (Found(np.zeros(0, np.int64), np.zeros(0, np.int64)).pick(np.array([[1]]), np.array([[0.5]])) == -1).all()


def test_shares_are_as_asked_for(given):
    rows = given[2].rows
    items = Corpus(rows, np.arange(NUM_ITEMS))
    shares = np.array([0.5, 0.3, 0.2])
    frequencies = Frequencies("item", np.array([3, 4, 99]), np.log(shares).astype(np.float32), -9.0)
    config = NegativesConfig(uniform=40_000, popular=40_000)
    drawn = Negatives(config, items, frequencies, seed=0, streams=4).draw(0, range(4), np.zeros((4, 1), np.int64))
    uniform, popular = drawn[:, :10_000].ravel(), drawn[:, 10_000:].ravel()
    counts = np.bincount(uniform, minlength=NUM_ITEMS)
    assert abs(counts / 40_000 - 1 / NUM_ITEMS).max() < 0.003
    # Item 99 is not in the corpus: the others share what it has.
    assert np.bincount(popular, minlength=5)[3:].tolist() == pytest.approx([25_000, 15_000], rel=0.03)
    assert set(popular.tolist()) == {3, 4}


def test_popular_ones_want_items_that_are_known(given):
    nobody = Frequencies("item", np.array([-5]), np.zeros(1, np.float32), -1.0)
    with pytest.raises(ValueError, match=r"no item of retrieval\.items is in data\.train"):
        Negatives(NegativesConfig(popular=4), given[2], nobody, seed=0, streams=4)


def test_without_negatives_nothing_changes(given):
    encoder, train = given[:2]
    plain = ParquetReader(train, encoder, batch_size=BATCH, streams=STREAMS, window=8, seed=1)
    for batch, more in zip(plain.epoch(0), open_reader(given).epoch(0), strict=True):
        rows = more.candidates.num_rows
        assert batch.candidates.num_rows == rows
        assert torch.equal(batch.rows[:rows], more.rows[:rows])
        assert torch.equal(batch.dense[:rows], more.dense[:rows])
        assert batch.global_size == BATCH
        assert more.global_size == BATCH + COUNTS.total
