"""Parquet files as tests want them cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_groups(path: Path, table: pa.Table, groups: Sequence[int] = ()) -> Path:
    """Write a file, in row groups of the sizes given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for size in groups or [max(len(table), 1)]:
            writer.write_table(table.slice(start, size), row_group_size=size)
            start += size
    return path
