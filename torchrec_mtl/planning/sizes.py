"""Bytes of tables before anything is planned: rows and optimizer state, which no plan can be below."""

from __future__ import annotations

from torchrec_mtl.config.features import TableConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.embeddings import table_copies
from torchrec_mtl.registry import resolve


def table_bytes(table: TableConfig, optimizer: str) -> int:
    """Return the bytes of one copy of a table with the state of its optimizer.

    Args:
        table: ``rows`` x ``dim`` numbers of its ``dtype``.
        optimizer: ``optim.sparse.type``: one number a row for ``rowwise_adagrad``, one or two a weight for ``adagrad``
            and ``adam``, none for ``sgd``; of 4 bytes, which TorchRec takes for as many as a weight has.

    Example:
        >>> table_bytes(TableConfig(name="item", rows=1000, dim=16), "rowwise_adagrad")
        68000
    """
    states = {"rowwise_adagrad": 1, "adagrad": table.dim, "adam": 2 * table.dim, "sgd": 0}
    return table.rows * (table.dim * (2 if table.dtype == "fp16" else 4) + states[optimizer] * 4)


def copies(config: RunConfig) -> int:
    """Return how many copies of each table the head has: one shared, one a task, or both."""
    return len(table_copies("", resolve("head", config.head.type).tables, config.task_names))


def needed_bytes(config: RunConfig) -> int:
    """Return the bytes of all copies of all tables with the state of their optimizer."""
    one = sum(table_bytes(t, config.optim.sparse.type) for t in config.features.tables)
    return copies(config) * one


def largest(config: RunConfig, count: int = 5) -> tuple[tuple[str, int], ...]:
    """Return the largest tables with the bytes of one copy, largest first."""
    sizes = [(t.name, table_bytes(t, config.optim.sparse.type)) for t in config.features.tables]
    return tuple(sorted(sizes, key=lambda one: -one[1])[:count])
