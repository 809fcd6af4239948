"""Sizes by hand."""

import pytest

from tests.unit.planning.configs import config
from torchrec_mtl.config.features import TableConfig
from torchrec_mtl.planning.sizes import copies, largest, needed_bytes, table_bytes


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("rowwise_adagrad", 1000 * 128 * 4 + 1000 * 4),
        ("adagrad", 2 * 1000 * 128 * 4),
        ("adam", 3 * 1000 * 128 * 4),
        ("sgd", 1000 * 128 * 4),
    ],
)
def test_a_table_is_its_weights_and_the_state_of_its_optimizer(optimizer: str, expected: int) -> None:
    table = TableConfig(name="item", rows=1000, dim=128)
    assert table_bytes(table, optimizer) == expected
    half = table.model_copy(update={"dtype": "fp16"})
    assert table_bytes(half, optimizer) == expected - 1000 * 128 * 2  # its state stays fp32


def test_a_head_with_own_tables_needs_them_once_a_task() -> None:
    shared, own = config(head={"type": "shared_bottom"}), config(head={"type": "single_task"})
    assert (copies(shared), copies(own)) == (1, 3)
    assert needed_bytes(own) == 3 * needed_bytes(shared) == 3 * (100 + 60 + 64) * 36


def test_the_largest_tables_come_first() -> None:
    assert [name for name, _ in largest(config(rows={"tag": 900, "user": 50}), 2)] == ["tag", "item"]
