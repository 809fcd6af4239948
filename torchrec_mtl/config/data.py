"""Where the rows come from, and what to do with bad ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt, WithJsonSchema

from torchrec_mtl.config.base import Config, Name


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Files = Annotated[
    tuple[Name, ...],
    BeforeValidator(_as_tuple),
    Field(min_length=1),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
        mode="validation",
    ),
]


class DataConfig(Config):
    """Parquet files and how to batch them."""

    train: Files
    """File, folder, or glob, or a list of them; local, or any URI that pyarrow opens (s3://, gs://, hdfs://)."""
    eval: Files | None = None
    """Evaluated during training."""
    test: Files | None = None
    """Evaluated once, at the end, with the best checkpoint."""
    prepare: Name | None = None
    """Python script beside the YAML that writes the data: run as ``python SCRIPT --out DIR`` where the training file is
    missing."""
    batch_size: PositiveInt = 1024
    """Rows of a GLOBAL batch, over all ranks."""
    eval_batch_size: PositiveInt | None = None
    """By default four times batch_size."""
    streams: PositiveInt = 8
    """Slices of the data that make up a batch; the world size must divide it, and it must divide the batch sizes."""
    window: PositiveInt = 16384
    """Rows of a stream shuffled together."""
    shuffle: bool = True
    """Another order of rows in each epoch; off: the order of the files."""
    keys: tuple[Name, ...] = ()
    """Columns that name a row (user, item, time): copied into predictions. No input, unless a feature reads one too."""
    group: Name | None = None
    """Column whose values are the groups of gauc. No input, unless a feature reads it too."""
    outcomes: tuple[Name, ...] = ()
    """Columns known only after the fact: using one as a feature is an error."""
    bad_ids: Literal["error", "drop", "clamp"] = "error"
    """An id outside its table: stop, leave it out, or put it on row 0 (both counted)."""
    null_labels: Literal["error", "mask"] = "error"
    """A null label: stop, or weight 0 for that task."""
    statistics_rows: PositiveInt = 10_000_000
    """Most rows read for the means and standard deviations of dense columns and regression labels."""
    prefetch: PositiveInt = 4
    """Batches read ahead."""
