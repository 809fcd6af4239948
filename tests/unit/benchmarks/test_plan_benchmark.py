"""The model of 2 TB that is planned."""

import pytest

from benchmarks.plan import make_config, rows_of_tables
from torchrec_mtl.config.load import parse
from torchrec_mtl.planning.sizes import needed_bytes


def test_the_model_is_what_the_table_says() -> None:
    rows = rows_of_tables(0)
    assert (len(rows), min(rows), max(rows)) == (100, 1_000, 2_000_000_000)
    assert sum(rows) * 128 * 4 == pytest.approx(2e12, rel=1e-6)
    assert rows == rows_of_tables(0) != rows_of_tables(1)


def test_its_config_is_valid_on_gpus_and_its_states_are_counted() -> None:
    made = make_config()
    run = parse({**made, "train": {"device": "cuda"}})
    assert needed_bytes(run) == sum(rows_of_tables(0)) * 129 * 4
    for ranks in (128, 256):
        assert run.data.batch_size % ranks == run.data.streams % 256 == 0
