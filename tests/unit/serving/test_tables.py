"""Tables on their way from a checkpoint to a bundle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from torchrec_mtl.serving.layout import Layout, Stored, TableFile
from torchrec_mtl.serving.tables import map_tables, write_tables

ROWS, DIM = 1_000_000, 32


class Counting:
    """Stands for a checkpoint: row i of its table holds i everywhere."""

    def __init__(self) -> None:
        self.dtypes = {"stored": torch.float32}

    def copy_into(self, name: str, part: torch.Tensor, offsets: tuple[int, int]) -> None:
        part.copy_(torch.arange(offsets[0], offsets[0] + len(part)).unsqueeze(1).expand_as(part))


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc on this system")
def test_a_table_is_never_in_memory_whole(tmp_path: Path):
    layout = Layout(
        files=(TableFile(name="t.npy", rows=ROWS, dim=DIM, bits=32),),
        tables=(Stored(table="t", file=0, first=0, rows=ROWS),),
        fields=(),
        histories=(),
    )
    size, before = ROWS * DIM * 4, anonymous_bytes()
    write_tables(layout, Counting(), {"t": "stored"}, tmp_path)
    assert anonymous_bytes() - before < size / 4
    assert (tmp_path / "t.npy").stat().st_size == pytest.approx(size, rel=0.01)
    (table,) = map_tables(layout, tmp_path)
    np.testing.assert_array_equal(table[:, 0].numpy(), np.arange(ROWS, dtype=np.float32))
    np.testing.assert_array_equal(table[-1].numpy(), np.full(DIM, ROWS - 1, np.float32))
