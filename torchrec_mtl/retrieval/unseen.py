"""Searches of an item index that leave out what each query has seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.arrow import split_lists
from torchrec_mtl.data.rows import element_indices
from torchrec_mtl.retrieval.index import ItemIndex

Floats = npt.NDArray[np.float32]


def search_unseen(
    index: ItemIndex, queries: Floats, k: int, weights: Mapping[str, float], seen: pa.Array | None
) -> tuple[pa.Array, Floats]:
    """Find the best items that are not among the seen ones.

    Args:
        index: of items.
        queries: [B, K, D] of floats.
        k: how many items a query.
        weights: task -> how much it counts; 1 for others.
        seen: [B] lists of ids, of the type of the index's; None where nothing is left out.

    Returns:
        ids [B * k], query by query, and scores [B, k], the largest first; null and -inf where there are no more.

    Raises:
        ValueError: as ``ItemIndex.search``.
    """
    if seen is None:
        ids, scores = index.search(queries, k, weights)
        return ids.flatten(), scores
    starts, lengths, elements = split_lists(seen)
    # So many more that k are left whatever is taken out.
    ids, scores = index.search(queries, k + int(lengths.max(initial=0)), weights)
    wide, found = scores.shape[1], ids.flatten()
    places = {name: pc.index_in(part, value_set=index.ids) for name, part in (("found", found), ("seen", elements))}
    codes = {name: part.fill_null(-1).to_numpy(zero_copy_only=False) for name, part in places.items()}
    owners = np.repeat(np.arange(len(queries)), lengths)
    there = element_indices(starts, np.concatenate([[0], np.cumsum(lengths)]))
    rows = np.repeat(np.arange(len(queries)), wide)
    taken = np.isin(rows * (len(index) + 1) + codes["found"], owners * (len(index) + 1) + codes["seen"][there])
    taken = taken.reshape(-1, wide) & np.isfinite(scores)  # an empty place is nobody's
    order = np.argsort(taken, axis=1, kind="stable")[:, :k]
    gone = np.take_along_axis(taken, order, axis=1)
    chosen = pa.array((order + np.arange(len(queries))[:, None] * wide).ravel(), mask=gone.ravel())
    return found.take(chosen), np.where(gone, np.float32(-np.inf), np.take_along_axis(scores, order, axis=1))
