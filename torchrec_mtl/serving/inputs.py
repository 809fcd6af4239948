"""Encoded rows to the inputs of a program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data.rows import Ints, Jagged, Rows
from torchrec_mtl.serving.layout import History, Layout, PooledField

# Shapes: B rows, F fields of a group, M ids, N events.

Group = tuple[Tensor, Tensor, Tensor]
RowInputs = tuple[Tensor, list[Group], list[tuple[Tensor, ...]]]


class InputMaker:
    """Makes the inputs of a program for any rows, without a Python loop over them.

    Args:
        layout: of the tables.
        one_user: for a program in which all rows are candidates for one user.
    """

    def __init__(self, layout: Layout, *, one_user: bool) -> None:
        """See the class."""
        self._one_user = one_user
        self._histories = layout.histories
        self._groups = layout.groups(one_user=one_user)

    def __call__(self, rows: Rows, user: Rows | None = None) -> RowInputs:
        """Return dense columns, groups of pooled fields, and histories, as `Program.forward` takes them.

        Args:
            rows: B of them.
            user: one row, whose fields and histories of the user's side all rows share.
        """

        def of(field: PooledField | History) -> Rows:
            return user if self._one_user and field.user and user is not None else rows

        return (
            torch.from_numpy(rows.dense),
            [_group(of(group[0]), group) for group in self._groups],
            [_history(of(history), history) for history in self._histories],
        )


def _group(rows: Rows, fields: Sequence[PooledField]) -> Group:
    """Return ids [M], as rows of the tables' file, field by field; where each row's begin, [F, B]; and divisors."""
    names = [field.feature for field in fields]
    firsts = np.array([field.first for field in fields])
    columns = {name: i for i, name in enumerate(rows.single_names)}
    if not any(name in rows.lists for name in names):
        places = [columns[name] for name in names]
        ids = rows.single[:, places].T + firsts[:, None]
        ones = torch.ones(*ids.shape, 1)
        if rows.present is None:
            starts = np.arange(ids.size).reshape(ids.shape)
            return torch.from_numpy(ids.reshape(-1)), torch.from_numpy(starts), ones
        present = rows.present[:, places].T
        return torch.from_numpy(ids[present]), _starts(present), ones
    parts, lengths = [], np.empty((len(fields), len(rows)), np.int64)
    for i, (name, first) in enumerate(zip(names, firsts)):
        column = rows.lists[name] if name in rows.lists else _as_list(rows, columns[name])
        parts.append(column.flat + first)
        lengths[i] = column.lengths
    divisors = np.maximum(lengths, 1) if fields[0].pooling == "mean" else np.ones_like(lengths)
    divisor = torch.from_numpy(divisors.astype(np.float32)[:, :, None])
    return torch.from_numpy(np.concatenate(parts)), _starts(lengths), divisor


def _as_list(rows: Rows, column: int) -> Jagged:
    values = rows.single[:, column]
    present = np.ones(len(rows), bool) if rows.present is None else rows.present[:, column]
    return Jagged.from_lengths(values[present], present.astype(np.int64))


def _starts(lengths: Ints | np.ndarray) -> Tensor:
    """Return where each begins, of the same shape, for lengths in the order of memory."""
    flat = lengths.reshape(-1).astype(np.int64)
    return torch.from_numpy((np.cumsum(flat) - flat).reshape(lengths.shape))


def _history(rows: Rows, history: History) -> tuple[Tensor, ...]:
    """Return ids [N] as rows of the table's file, lengths [B], and gaps [N] where there are any."""
    column = rows.lists[history.feature]
    parts = [torch.from_numpy(column.flat + history.first), torch.from_numpy(column.lengths)]
    if history.gaps:
        gaps = column.flat_gaps
        assert gaps is not None, "the sequence has times"
        parts.append(torch.from_numpy(gaps.astype(np.int64)))
    return tuple(parts)
