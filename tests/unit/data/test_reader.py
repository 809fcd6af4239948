"""The promise of the reader: global batches do not depend on the number of ranks, and nothing is lost or repeated."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.reader import ParquetReader

LAYOUTS = {
    "many row groups": [[300, 71, 45], [500], [3, 211], [99]],
    "one row group": [[700]],
    "fewer rows than streams": [[3], [2]],
    "one row": [[1]],
    "whole batches": [[64, 64]],
}


@pytest.fixture
def reader(numbered, write, tmp_path):
    """Write numbered rows and return a function that opens a reader on them."""

    def build(layout="many row groups", **options):
        files = LAYOUTS[layout]
        run, table = numbered(sum(map(sum, files)))
        start = 0
        for i, groups in enumerate(files):
            if not (tmp_path / f"{i}.parquet").exists():
                write(f"{i}.parquet", table.slice(start, sum(groups)), groups)
            start += sum(groups)
        settings = {"batch_size": 32, "streams": 8, "window": 50, "seed": 7} | options
        return ParquetReader(open_files([str(tmp_path)]), Encoder(run.data, run.features, run.tasks), **settings)

    return build


def numbers(batch):
    """Row numbers in the order of slots, -1 where there is padding; every part of the batch must tell the same."""
    real = batch.valid.bool()
    number = batch.ids["group"]
    assert batch.dense[:, 0].long()[real].tolist() == number[real].tolist()
    assert batch.labels[:, 0].long()[real].tolist() == number[real].tolist()
    assert batch.sparse["number"].values().tolist() == number[real].tolist()
    lengths = (number % 4).clamp(max=3) * real
    assert batch.sequences["list"].lengths().tolist() == lengths.tolist()
    assert batch.sequences["list"].values().tolist() == number.repeat_interleave(lengths).tolist()
    assert not batch.weights[~real].any()
    return dict(zip(batch.rows.tolist(), number.where(real, -1).tolist()))


def run(build, world_size, layout="many row groups", epoch=0, first=0, stop=None, **options):
    """Return the global batches as lists over slots."""
    ranks = [
        build(layout, rank=rank, world_size=world_size, **options).epoch(epoch, first) for rank in range(world_size)
    ]
    merged = []
    for batches in itertools.islice(zip(*ranks, strict=True), None if stop is None else stop - first):
        assert {len(batch.valid) for batch in batches} == {batches[0].global_size // world_size}
        assert len({batch.step for batch in batches}) == 1
        slots = {}
        for batch in batches:
            slots |= numbers(batch)
        assert sorted(slots) == list(range(batches[0].global_size))
        merged.append([slots[i] for i in sorted(slots)])
    return merged


def flat(batches):
    return [number for batch in batches for number in batch if number >= 0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_global_batches_are_the_same_at_every_world_size(reader, layout, shuffle):
    alone = run(reader, 1, layout, shuffle=shuffle)
    for world_size in (2, 4, 8):
        assert run(reader, world_size, layout, shuffle=shuffle) == alone
    count = sum(map(sum, LAYOUTS[layout]))
    assert sorted(flat(alone)) == list(range(count))
    assert len(alone) == reader(layout).steps_per_epoch == -(-count // 32)


def test_padding_is_in_the_last_step_only(reader):
    assert all(-1 not in batch for batch in run(reader, 1)[:-1])


def test_resume_at_other_world_sizes_continues_the_epoch(reader):
    alone = run(reader, 1)
    mixed = run(reader, 2, stop=7) + run(reader, 4, first=7, stop=13) + run(reader, 1, first=13)
    assert mixed == alone


@pytest.mark.parametrize("first", [1, 12, 13, 38, 39, 40])
def test_resume_at_any_step(reader, first):
    assert run(reader, 1, first=first) == run(reader, 1)[first:]


def test_steps_count_over_epochs(reader):
    read = reader()
    steps = read.steps_per_epoch
    assert [batch.step for batch in read.epoch(2, steps - 2)] == [3 * steps - 2, 3 * steps - 1]


def test_epochs_and_seeds_differ_in_order_alone(reader):
    orders = [flat(run(reader, 1, epoch=epoch, seed=seed)) for epoch, seed in ((0, 7), (1, 7), (0, 8))]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_batches_mix_the_whole_data(reader):
    first = flat(run(reader, 1)[:1])
    assert np.ptp(first) > 0.5 * reader().num_rows


def test_unshuffled_single_stream_is_file_order(reader):
    assert flat(run(reader, 1, streams=1, shuffle=False)) == list(range(reader().num_rows))


def test_unshuffled_streams_read_their_slices_in_order(reader):
    batches = run(reader, 1, "whole batches", shuffle=False)
    assert [number for batch in batches for number in batch[:4]] == list(range(16))


def test_each_row_group_is_decoded_once(reader):
    for layout in LAYOUTS:
        read = reader(layout)
        list(read.epoch(0))
        assert read.rows_decoded == read.num_rows


def test_resume_decodes_only_what_is_left(write, numbered):
    config, table = numbered(4000)
    files = open_files(str(write("a.parquet", table, [100] * 40)))
    encoder = Encoder(config.data, config.features, config.tasks)
    read = ParquetReader(files, encoder, batch_size=40, streams=4, window=100)
    list(read.epoch(0, first_step=90))
    assert read.rows_decoded <= 800


def test_memory_holds_a_row_group_a_stream(write, numbered, monkeypatch):
    config, table = numbered(4000)
    files = open_files(str(write("a.parquet", table, [100] * 40)))
    read = ParquetReader(
        files, Encoder(config.data, config.features, config.tasks), batch_size=40, streams=4, window=50
    )
    held = []
    original = ParquetReader._read_window

    def watch(self, order, window, cache):
        result = original(self, order, window, cache)
        held.append((sum(map(len, cache.values())), len(result[0])))
        return result

    monkeypatch.setattr(ParquetReader, "_read_window", watch)
    list(read.epoch(0))
    assert max(cached for cached, _ in held) <= 4 * 100
    assert max(rows for _, rows in held) <= 4 * 50


def test_one_epoch_does_not_disturb_another(reader):
    read = reader()
    expected = flat(run(reader, 1))
    both = list(zip(read.epoch(0), read.epoch(1)))
    assert [n for batch, _ in both for n in numbers(batch).values() if n >= 0] == expected


def test_world_size_must_divide_streams(reader):
    with pytest.raises(ValueError, match=r"world size 3 does not divide data\.streams 8\. Use 1, 2, 4, 8 ranks"):
        reader(world_size=3)


def test_batch_size_must_be_a_multiple_of_streams(reader):
    with pytest.raises(ValueError, match=r"batch size 30 is no multiple of data\.streams 8"):
        reader(batch_size=30)


def test_bad_value_names_its_file(reader, tmp_path):
    reader()
    table = pq.read_table(tmp_path / "2.parquet")
    bad = table["number"].to_numpy().copy()
    bad[5] = -1
    pq.write_table(table.set_column(0, "number", [bad]), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"feature 'number', column 'number' of .*/2\.parquet: 1 ids outside"):
        list(reader().epoch(0))


def test_missing_column_is_told_before_reading(reader, tmp_path):
    reader()
    pq.write_table(pq.read_table(tmp_path / "1.parquet").drop_columns(["list"]), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"sequence 'list', column 'list': not in .*/1\.parquet"):
        reader()
