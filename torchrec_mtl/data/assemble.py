"""Encoded rows to the batch that TorchRec trains on.

Shapes: n real rows, B rows with padding, F features, M ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.rows import Bools, Ints, Rows

_NO_IDS = np.zeros(0, np.int64)


def make_batch(
    rows: Rows,
    pooled: Sequence[str],
    unpooled: Sequence[str],
    *,
    slots: Ints,
    step: int,
    global_size: int,
    num_drawn: int = 0,
) -> Batch:
    """Turn rows into a batch, padded to one row for each slot.

    Args:
        rows: n real rows.
        pooled: names of the features of ``Batch.sparse``, in order.
        unpooled: names of the features of ``Batch.sequences``, in order.
        slots: [B] place of each row in the global batch: the n real rows, then the padding.
        step: number of the global batch.
        global_size: rows of the global batch.
        num_drawn: of the real rows, the last so many are items drawn; they are not valid either.

    Returns:
        A batch of B rows. Padding has valid 0, weight 0, zero dense values, and no ids.
    """
    size = len(slots)
    valid = torch.zeros(size)
    valid[: len(rows) - num_drawn] = 1.0
    return Batch(
        dense=_pad(rows.dense, size),
        sparse=make_kjt(rows, pooled, size),
        sequences=make_kjt(rows, unpooled, size),
        labels=_pad(rows.labels, size),
        weights=_pad(rows.weights, size),
        valid=valid,
        rows=torch.from_numpy(slots),
        ids={name: _pad(values, size) for name, values in rows.ids.items()},
        step=step,
        global_size=global_size,
        full=len(rows) == size and num_drawn == 0,
        gaps=_gaps(rows),
    )


def make_kjt(rows: Rows, keys: Sequence[str], size: int) -> KeyedJaggedTensor:
    """Gather features into one ``KeyedJaggedTensor``; rows past the last are empty.

    Args:
        rows: n rows.
        keys: F features; those of one id a row in the order of ``Rows.single_names``. None gives an empty tensor.
        size: B, at least n.

    Returns:
        Values int64 [M] by feature then row, lengths int32 [F * B].
    """
    lengths = np.zeros((len(keys), size), np.int32)
    single = [i for i, key in enumerate(keys) if key not in rows.lists]
    parts = [_NO_IDS] * len(keys)
    if single:
        values, present = _by_feature(rows, [keys[i] for i in single])
        lengths[single, : len(rows)] = 1 if present is None else present
        for i, row in enumerate(single):
            parts[row] = values[i] if present is None else values[i][present[i]]
    for i, key in enumerate(keys):
        if key in rows.lists:
            lengths[i, : len(rows)] = rows.lists[key].lengths
            parts[i] = rows.lists[key].flat
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(np.concatenate([_NO_IDS, *parts])),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        stride=size,
        length_per_key=[len(part) for part in parts],  # spares TorchRec a sum over lengths on the device
    )


def _gaps(rows: Rows) -> dict[str, Tensor]:
    """Return the buckets of the sequences that have any, in the order of the values of ``make_kjt``."""
    flat = {name: jagged.flat_gaps for name, jagged in rows.lists.items()}
    return {name: torch.from_numpy(gaps.astype(np.int64)) for name, gaps in flat.items() if gaps is not None}


def _by_feature(rows: Rows, names: Sequence[str]) -> tuple[Ints, Bools | None]:
    """Return the ids [F1, n] of neighbouring single-id features, and which are present."""
    first = rows.single_names.index(names[0])
    columns = slice(first, first + len(names))
    assert rows.single_names[columns] == tuple(names)
    values = np.ascontiguousarray(rows.single[:, columns].T)
    return values, None if rows.present is None else np.ascontiguousarray(rows.present[:, columns].T)


def _pad(values: npt.NDArray[np.generic], size: int) -> Tensor:
    """Return values [n, ...] with zeros up to ``size`` rows."""
    if len(values) == size:
        return torch.from_numpy(values)
    padded = np.zeros((size, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
