"""What the planner may do with each table, as the YAML says, and how much of it a step reads."""

from __future__ import annotations

import torch
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import DataType

from torchrec_mtl.config.features import FeaturesConfig, SequenceConfig, SparseConfig, TableConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.embeddings import table_copies
from torchrec_mtl.registry import resolve


def table_constraints(config: RunConfig, device: torch.device) -> dict[str, ParameterConstraints]:
    """Return what the planner may choose from, and the ids a sample it reckons with, by table.

    Args:
        config: the run; its tables may name sharding types, a kernel, and the size of a cache.
        device: of the ranks.
    """
    sharing = resolve("head", config.head.type).tables
    constraints: dict[str, ParameterConstraints] = {}
    for table in config.features.tables:
        types: list[str] = [*table.sharding] if table.sharding is not None else _types(config, device)
        for copy, _ in table_copies(table.name, sharing, config.task_names):
            constraints[copy] = ParameterConstraints(
                sharding_types=types,
                compute_kernels=None if table.kernel == "auto" else [table.kernel],
                cache_params=_cache(config, table),
                # TorchRec would reckon with what is looked up as it is stored.
                output_dtype=DataType.FP32 if table.dtype == "fp16" else None,
                pooling_factors=ids_a_sample(config.features, table.name),
            )
    return constraints


def prefetches(config: RunConfig) -> bool:
    """Whether rows of cached tables are fetched ahead."""
    return config.train.pipeline == "prefetch_sparse_dist"


def ids_a_sample(features: FeaturesConfig, table: str) -> list[float]:
    """Return how many ids of a sample each feature looks up in a table: its longest list, or 1 where none is set.

    TorchRec would reckon with one id a table, whatever reads it, and with that plan too little memory and time for
    tables of sequences.
    """
    both: tuple[SparseConfig | SequenceConfig, ...] = (*features.sparse, *features.sequences)
    readers = [f for f in both if f.table == table]
    return [float(f.max_length or 1) for f in readers]


def _cache(config: RunConfig, table: TableConfig) -> CacheParams | None:
    """Return what is said of the cache; it holds, too, where the planner caches a table by itself."""
    if table.cache_load_factor is None and not prefetches(config):
        return None
    return CacheParams(load_factor=table.cache_load_factor, prefetch_pipeline=prefetches(config) or None)


def _types(config: RunConfig, device: torch.device) -> list[str]:
    # Not data parallel: such tables have no fused optimizer, and TorchRec fails on a data-parallel EmbeddingCollection
    # that two features read.
    types = ["table_wise"] if device.type == "cpu" else ["table_wise", "row_wise", "table_row_wise"]
    if config.optim.sparse.type == "rowwise_adagrad":
        # Cut into columns, a table has one state a row and part: another optimizer, which no other plan can go on with.
        return types
    return [*types, "column_wise", "table_column_wise"]
