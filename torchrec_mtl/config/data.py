"""Where the rows come from, and what to do with bad ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from torchrec_mtl.config.base import Config, Name


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Files = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class DataConfig(Config):
    """Parquet files and how to batch them."""

    train: Files
    """File, folder, or glob, or a list of them; local, or any URI that pyarrow opens (s3://, gs://, hdfs://)."""
    eval: Files | None = None
    """Evaluated during training."""
    test: Files | None = None
    """Evaluated once, at the end, with the best checkpoint."""
    prepare: str | None = None
    """Python script beside the YAML that writes the data: run once as ``python SCRIPT --out DIR`` when the training file is missing."""
    batch_size: PositiveInt = 1024
    """Rows of a GLOBAL batch, over all ranks."""
    eval_batch_size: PositiveInt | None = None
    """By default four times batch_size."""
    streams: PositiveInt = 8
    """Slices of the data that make up a batch; the world size must divide it, and it must divide the batch sizes."""
    window: PositiveInt = 16384
    """Rows of a stream shuffled together."""
    shuffle: bool = True
    keys: tuple[Name, ...] = ()
    """Columns that name a row (user, item, time): copied into predictions, never an input."""
    group: Name | None = None
    """Column whose values are the groups of gauc; never an input."""
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
