"""What the machine can do with one thread, and how much of it a training step asks for.

The peaks are those of ``benchmarks.peaks``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measured import Sides
from benchmarks.peaks import matrix_products, triad
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.embeddings import table_copies
from torchrec_mtl.registry import resolve
from torchrec_mtl.training.session import Session

GEMM, BANDWIDTH = "GEMM peak", "bandwidth"


def limits() -> Sides:
    """Return the sides to interleave with what is held against them: GFLOP/s and GB/s."""
    return {GEMM: matrix_products(), BANDWIDTH: triad()}


def count_flops(session: Session, batch: Batch) -> float:
    """Return the floating-point operations of the matrix products of a step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        for _ in session.run(iter([batch])):
            pass
    return float(counter.get_total_flops())


def count_table_bytes(config: RunConfig, batch: Batch) -> int:
    """Return the bytes of rows and optimizer state that a step touches (see ``touched_bytes``)."""
    sharing = resolve("head", config.head.type).tables
    tables = {table.name: table for table in config.features.tables}
    readers: dict[str, list[torch.Tensor]] = {}
    for feature in config.features.pooled:
        readers.setdefault(feature.table, []).append(batch.sparse[feature.name].values())
    return sum(
        len(table_copies(name, sharing, config.task_names)) * touched_bytes(ids, tables[name].dim)
        for name, ids in readers.items()
    )


def touched_bytes(ids: Sequence[torch.Tensor], dim: int) -> int:
    """Return the bytes that one table with row-wise Adagrad costs.

    Forward reads a row a lookup; backward reads and writes each different row and its one number of state.

    Args:
        ids: of the features that read the table.
        dim: width of a row.

    Example:
        >>> touched_bytes([torch.tensor([3, 3, 5])], dim=4)  # 3 x 16 + 2 x 2 x (16 + 4)
        128
    """
    together = np.concatenate([t.numpy() for t in ids])
    row = 4 * dim
    return together.size * row + 2 * np.unique(together).size * (row + 4)
