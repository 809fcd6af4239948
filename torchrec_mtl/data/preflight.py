"""Does the data fit the config? Answered from the Parquet footers alone, before anything is built (no torch needed)."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.columns import config_columns, schema_problems
from torchrec_mtl.data.files import DataFile


def check_schema(files: Sequence[DataFile], config: RunConfig, *, labels: bool = True) -> list[str]:
    """Compare the files' columns with those the config names.

    Args:
        files: opened files.
        config: of the run.
        labels: False for data to predict on, which needs no labels.

    Returns:
        One message a problem: a missing column, a type that does not fit, files that disagree. Empty where all is well.
    """
    query = None if config.retrieval is None else config.retrieval.query
    columns = config_columns(config.data, config.features, config.tasks, labels=labels, query=query)
    return schema_problems([(file.path, file.schema) for file in files], columns)


def check_keys(files: Sequence[DataFile], config: RunConfig) -> list[str]:
    """Return one message for each column of ``data.keys`` that a file lacks."""
    return [
        f"{file.path}: no column '{key}' of data.keys.{did_you_mean(key, file.schema.names)}"
        for file in files
        for key in config.data.keys
        if key not in file.schema.names
    ]
