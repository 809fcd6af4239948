"""A bundle applied to Parquet files, row group by row group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mtl.atomic import whole_file
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.serving.columns import completed
from torchrec_mtl.serving.predictor import Predictor


def predict_files(predictor: Predictor, data: Sequence[str], out: Path) -> tuple[int, tuple[str, ...]]:
    """Write the key columns of files and one column a prediction, in the order of the input.

    Args:
        predictor: of a bundle.
        data: Parquet files, folders, or globs.
        out: Parquet file to write.

    Returns:
        The number of rows, and the columns that some file lacks: their defaults were taken.

    Raises:
        ValueError: a key is missing, columns do not fit, or a name is used twice.
    """
    files, keys = open_files(data), predictor.about.keys
    wanted = [column.name for column in predictor.columns]
    _check(files, keys, predictor)
    rows, missing = 0, dict[str, None]()
    writer: pq.ParquetWriter | None = None
    with whole_file(out) as partial:
        try:
            for file in files:
                here = set(file.schema.names)
                missing.update((name, None) for name in wanted if name not in here)
                columns = list(dict.fromkeys([*keys, *(name for name in wanted if name in here)]))
                for group in range(len(file.row_groups)):
                    table = file.read_row_group(group, columns)
                    scores = predictor(table)
                    made = pa.table({**{key: table[key] for key in keys}, **scores})
                    writer = writer or pq.ParquetWriter(partial, made.schema)
                    writer.write_table(made.cast(writer.schema))
                    rows += len(made)
        finally:
            if writer is not None:
                writer.close()
    return rows, tuple(missing)


def _check(files: Sequence[DataFile], keys: Sequence[str], predictor: Predictor) -> None:
    if twice := sorted(set(keys) & set(predictor.outputs)):
        raise ValueError(f"data.keys and the predictions share the names {twice}; rename these keys, and train again")
    for file in files:
        if lacking := [key for key in keys if key not in file.schema.names]:
            raise ValueError(f"{file.path} has no column {', '.join(lacking)}, which data.keys names; add it")
        completed(file.schema.empty_table(), [c.name for c in predictor.columns], file.path, strict=False)
        if not any(column.name in file.schema.names for column in predictor.columns):
            raise ValueError(f"{file.path} has none of the columns that the bundle reads; is it the right file?")
