"""Embedding tables and the features that read them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.later import LATER

Side = Literal["user", "item", "context"]
TimeUnit = Literal["ns", "us", "ms", "s", "min", "h", "d"]
Sharding = Literal[
    "table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise", "grid_shard"
]  # no data_parallel: such tables are not fused
Kernel = Literal["auto", "fused", "fused_uvm", "fused_uvm_caching"]  # no dense: such tables are not fused

GAP_BUCKETS = 32
"""How long ago an event was, in buckets: floor(log2(1 + seconds)); the last begins after 68 years."""


class TableConfig(Config):
    """One embedding table."""

    name: Name
    """What features call it."""
    rows: PositiveInt
    """Number of rows; ids are 0 .. rows - 1."""
    dim: PositiveInt
    """Width of a row; a multiple of 4."""
    pooling: Literal["mean", "sum"] = "mean"
    """How several ids of one feature become one vector."""
    init: PositiveFloat = 0.01
    """Rows start uniformly in +-init. Small, so that an id first seen after training adds little."""
    sharding: Annotated[tuple[Sharding, ...], Field(min_length=1)] | None = None
    """Sharding types the planner may use for this table, such as [table_wise]; by default all that the device has."""
    dtype: Annotated[Literal["fp32", "fp16"], LATER] = "fp32"
    """Type of the stored rows; what is looked up, gradients, and the optimizer's state are fp32 in any case."""
    kernel: Annotated[Kernel, LATER] = "auto"
    """Where rows lie, on CUDA: fused: in GPU memory; fused_uvm: in host memory; fused_uvm_caching: in host memory, with
    a cache on the GPU; auto: the planner chooses."""
    cache_load_factor: Annotated[Annotated[float, Field(gt=0, le=1)] | None, LATER] = None
    """fused_uvm_caching: share of the rows that the cache holds; by default 0.2."""


class SparseConfig(Config):
    """A feature of ids: one a row, or a list."""

    name: Name
    """What it is called in the model."""
    table: Name
    """Name of the table that holds its embeddings; several features may share one."""
    column: Name | None = None
    """Column of the data; by default the feature's name."""
    side: Side = "context"
    """Whose feature it is; retrieval towers read one side each."""
    encode: Literal["auto", "id", "hash"] = "auto"
    """id: integers used as they are; hash: a stable 64-bit hash modulo the table's rows; auto: id for integers, hash
    for strings."""
    max_length: PositiveInt | None = None
    """Keep the last ids of a list only."""

    @property
    def source(self) -> str:
        """The data column."""
        return self.column or self.name


class SequenceConfig(Config):
    """A list of ids in order of time, oldest first, read one embedding a position."""

    name: Name
    """What it is called in the model."""
    table: Name
    """Name of the table that holds its embeddings; several features may share one."""
    max_length: PositiveInt
    """The last ids are kept."""
    column: Name | None = None
    """Column of the data; by default the feature's name."""
    side: Side = "user"
    """Whose feature it is."""
    behavior: Name | None = None
    """Type of behaviour (click, like, purchase); by default the feature's name."""
    target: Name | None = None
    """Sparse feature of the item that is scored, for target attention."""
    encode: Literal["auto", "id", "hash"] = "auto"
    """As for sparse features."""
    times: Name | None = None
    """Column with the moment of each id, a list as long; the bottom then knows how long ago each was."""
    now: Name | None = None
    """Column with the row's own moment; goes with ``times``."""
    time_unit: TimeUnit = "s"
    """What both columns count."""

    @property
    def source(self) -> str:
        """The data column."""
        return self.column or self.name


class DenseConfig(Config):
    """A numeric column, normalised to mean 0 and standard deviation 1 over the training data; null becomes the mean."""

    name: Name
    """What it is called in the model."""
    column: Name | None = None
    """Column of the data; by default the feature's name."""
    side: Side = "context"
    """Whose feature it is."""
    transform: Literal["none", "log1p"] = "none"
    """log1p: sign(x) log(1 + |x|), before normalisation."""
    normalize: bool = True
    """Off: the values are used as they are (null becomes 0)."""

    @property
    def source(self) -> str:
        """The data column."""
        return self.column or self.name


def _name_only(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class FeaturesConfig(Config):
    """All features of a run."""

    tables: tuple[TableConfig, ...] = ()
    """Embedding tables."""
    sparse: tuple[SparseConfig, ...] = ()
    """Features of ids, one vector each."""
    sequences: tuple[SequenceConfig, ...] = ()
    """Lists of ids, one vector a position."""
    dense: tuple[Annotated[DenseConfig, BeforeValidator(_name_only)], ...] = Field(default=())
    """Names, or mappings where a column needs more than its name."""

    @property
    def sequence_tables(self) -> frozenset[str]:
        """Tables that a sequence reads: they live in the ``EmbeddingCollection``, which shares none with an EBC."""
        return frozenset(s.table for s in self.sequences)

    @property
    def pooled(self) -> tuple[SparseConfig, ...]:
        """Sparse features looked up in the ``EmbeddingBagCollection``, in order."""
        return tuple(s for s in self.sparse if s.table not in self.sequence_tables)

    @property
    def unpooled(self) -> tuple[SparseConfig | SequenceConfig, ...]:
        """Features looked up in the ``EmbeddingCollection``, in order: sparse ones, then the sequences."""
        return (*(s for s in self.sparse if s.table in self.sequence_tables), *self.sequences)
