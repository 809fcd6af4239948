"""Which table each part of the boundary's tensors comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Shapes: F pooled features, P pooled columns.


@dataclass(frozen=True)
class PooledField:
    """A pooled feature in the boundary's first tensor.

    Attributes:
        table: number of its table in ``Layout.tables``.
        column: its first column.
        mean: pooled by mean, else by sum.
    """

    table: int
    column: int
    mean: bool


@dataclass(frozen=True)
class LayoutTensors:
    """A layout as tensors on a device.

    Attributes:
        tables: [F] numbers of tables.
        mean: [F] whether pooled by mean.
        per_width: [F] number of the features of the same width.
        slots: [F] position among the features of the same width, in the order of columns.
        columns: width -> columns of its features, in the order of ``slots``.
        column_tables: [P] table of each column.
    """

    tables: Tensor
    mean: Tensor
    per_width: Tensor
    slots: Tensor
    columns: Mapping[int, Tensor]
    column_tables: Tensor


@dataclass(frozen=True)
class Layout:
    """Which table each part of the boundary's tensors comes from.

    Attributes:
        tables: names of all shared tables, the narrow ones first.
        dims: their widths.
        pooled: the fields in the boundary's first tensor [B, P], in the order in which their ids are listed. Empty
            where nothing is pooled; the first tensor is then an unpooled one.
        unpooled: table of each further tensor [N, d].
    """

    tables: tuple[str, ...]
    dims: tuple[int, ...]
    pooled: tuple[PooledField, ...]
    unpooled: tuple[int, ...]
    _tensors: dict[torch.device, LayoutTensors] = field(default_factory=dict, compare=False, repr=False)

    def tensors(self, device: torch.device) -> LayoutTensors:
        """Return the layout as tensors, made once a device."""
        if device not in self._tensors:
            self._tensors[device] = self._as_tensors(device)
        return self._tensors[device]

    def _as_tensors(self, device: torch.device) -> LayoutTensors:
        width = sum(self.dims[f.table] for f in self.pooled)
        columns: dict[int, list[int]] = {}
        slots = [0] * len(self.pooled)
        column_tables = [0] * width
        # In the order of columns, so that where all widths are equal the columns can be taken as they lie.
        for i, f in sorted(enumerate(self.pooled), key=lambda pair: pair[1].column):
            dim = self.dims[f.table]
            own = columns.setdefault(dim, [])
            slots[i] = len(own) // dim
            own.extend(range(f.column, f.column + dim))
            column_tables[f.column : f.column + dim] = [f.table] * dim

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return LayoutTensors(
            tables=ints([f.table for f in self.pooled]),
            mean=torch.tensor([f.mean for f in self.pooled], dtype=torch.bool, device=device),
            per_width=ints([len(columns[self.dims[f.table]]) // self.dims[f.table] for f in self.pooled]),
            slots=ints(slots),
            columns={dim: ints(own) for dim, own in columns.items()},
            column_tables=ints(column_tables),
        )


def order_tables(dims: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and widths of tables, the narrow ones first: the order of ``Layout.tables``."""
    names = sorted(dims, key=lambda name: dims[name])  # stable: otherwise as given
    return tuple(names), tuple(dims[name] for name in names)
