"""Initial rows of tables, the same for every sharding plan and world size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from torchrec_mtl.config.features import FeaturesConfig, TableConfig
from torchrec_mtl.noise import stable_seed

_BLOCK_ROWS = 65_536


def initialise_tables(state: Mapping[str, object], features: FeaturesConfig, seed: int) -> None:
    """Fill every table (or this rank's shards of it) uniformly in +-init.

    Rows come in blocks from a generator seeded by (seed, table, block), so that a table does not depend on the sharding
    plan or the world size, and can be made again without a copy. Copies of a table for several tasks start equal.
    Values are drawn in fp32, and rounded for tables of fp16.

    Args:
        state: state dict of the model or of its tables; keys end in ``embedding_bags.<table>.weight`` or
            ``embeddings.<table>.weight``.
        features: the tables.
        seed: seed of the run.
    """
    tables = {table.name: table for table in features.tables}
    with torch.no_grad():
        for key, value in state.items():
            *_, collection, name, kind = ("", "", *key.split("."))
            if (
                kind != "weight"
                or collection not in {"embedding_bags", "embeddings"}
                or name.split("@")[0] not in tables
            ):
                continue
            for shard, row, column in local_shards(value):
                _fill(shard, row, column, tables[name.split("@")[0]], seed)


def local_shards(value: object) -> list[tuple[Tensor, int, int]]:
    """Return (tensor, first row, first column) of the parts of a sharded or plain tensor that lie on this rank."""
    if hasattr(value, "local_shards"):
        return [(s.tensor, *s.metadata.shard_offsets) for s in value.local_shards()]
    if hasattr(value, "to_local"):  # DTensor of a replicated table
        return [(value.to_local(), 0, 0)]
    return [(cast(Tensor, value), 0, 0)]


def _fill(shard: Tensor, row: int, column: int, table: TableConfig, seed: int) -> None:
    end = row + shard.shape[0]
    for block in range(row // _BLOCK_ROWS, -(-end // _BLOCK_ROWS)):
        first = block * _BLOCK_ROWS
        size = min(_BLOCK_ROWS, table.rows - first)
        generator = torch.Generator().manual_seed(stable_seed(seed, table.name, block))
        values = torch.empty(size, table.dim).uniform_(-table.init, table.init, generator=generator)
        low, high = max(row, first), min(end, first + size)
        shard[low - row : high - row].copy_(values[low - first : high - first, column : column + shard.shape[1]])
