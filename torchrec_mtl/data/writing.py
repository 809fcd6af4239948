"""Parquet files written table by table, whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mtl.atomic import whole_file


@contextmanager
def parquet_file(out: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what appends a table to a file that takes the place of ``out`` when all of it is there.

    The first table decides on the columns' types.

    Raises:
        ValueError: ``out`` cannot be written.
    """
    writer: pq.ParquetWriter | None = None
    with whole_file(out) as partial:

        def write(table: pa.Table) -> None:
            nonlocal writer
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table.cast(writer.schema))

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()
