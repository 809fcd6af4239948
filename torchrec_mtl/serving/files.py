"""A bundle applied to Parquet files, row group by row group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.writing import parquet_file
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
    with parquet_file(out) as write:
        for file in files:
            here = set(file.schema.names)
            missing.update((name, None) for name in wanted if name not in here)
            columns = list(dict.fromkeys([*keys, *(name for name in wanted if name in here)]))
            for group in range(len(file.row_groups)):
                table = file.read_row_group(group, columns)
                write(pa.table({**{key: table[key] for key in keys}, **predictor(table)}))
                rows += table.num_rows
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
